"""Benchmarks during training on one process; `tests/invariant` tests several."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from tests import tiny
from tests.evaluation.conftest import write_lines
from trl_akd.akd.akd_config import AKDConfig
from trl_akd.akd.akd_trainer import AKDTrainer
from trl_akd.evaluation.callback import PassAtKCallback
from trl_akd.evaluation.cards import read_judged_samples
from trl_akd.evaluation.report import compare
from trl_akd.evaluation.results import evaluation_folder, read_results


class Interruption(TrainerCallback):
    def on_save(self, args, state, control, **kwargs):
        control.should_training_stop = True


def make_trainer(tmp_path: Path, **settings) -> AKDTrainer:
    student, teacher = tiny.save_pair(tmp_path / "models")
    args = AKDConfig(
        output_dir=str(tmp_path / "out"),
        teacher_model_name_or_path=teacher,
        per_device_train_batch_size=2,
        eval_strategy="steps",
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        seed=3,
        **{"max_steps": 2, "save_strategy": "no", "eval_steps": 1, **settings},
    )
    return AKDTrainer(student, args=args, train_dataset=tiny.rows(8), eval_dataset=tiny.rows(4, seed=1))


def callback(trainer: Trainer, file: Path, **settings) -> PassAtKCallback:
    settings = {"prompt_style": "completion", "max_new_tokens": 4, "allow_code_execution": True, **settings}
    made = PassAtKCallback(trainer, str(file), **settings)
    trainer.add_callback(made)
    return made


def results(score: float) -> dict:
    metrics = {"pass@1": score, "pass@1_low": score / 2, "pass@1_high": 1.0, "confidence": 0.95}
    return {"metrics": metrics, "errors": {"correct": 3, "wrong_answer": 1, "NameError/undefined": 2}}


def test_it_logs_at_every_evaluation(tmp_path: Path, benchmark_file: Path):
    trainer = make_trainer(tmp_path)
    callback(trainer, benchmark_file)
    trainer.train()
    steps = [log["step"] for log in trainer.state.log_history if "eval_pass@1" in log]
    assert steps == [1, 2]
    assert {"eval_pass@1", "eval_pass@1_low", "eval_pass@1_high", "eval_loss"} <= set(trainer.evaluate())


def test_programs_are_kept_and_reported_to_trackers(tmp_path: Path, benchmark_file: Path, monkeypatch):
    tables = []
    tracker = SimpleNamespace(Table=lambda dataframe: dataframe, log=tables.append)
    monkeypatch.setitem(sys.modules, "wandb", tracker)
    trainer = make_trainer(tmp_path)
    callback(trainer, benchmark_file, log_completions=True)
    trainer.args.report_to = ["wandb"]
    trainer.evaluate()
    [table] = [entry["eval_completions"] for entry in tables]
    assert list(table) == ["step", "task_id", "prompt", "completion", "status", "error_type"]
    assert set(table.step) == {0} and len(table) == 3 and set(table.status) <= {"passed", "failed", "timed_out"}
    folder = evaluation_folder(tmp_path / "out", 0)
    assert [row["completion"] for row in read_judged_samples(folder)] == list(table.completion)
    assert compare({"a": read_results(folder), "b": read_results(folder)})[1]["p_first"] == 1.0


def test_full_disk_does_not_end_the_run(tmp_path: Path, benchmark_file: Path, monkeypatch, caplog):
    trainer = make_trainer(tmp_path)
    made = callback(trainer, benchmark_file)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(made, "_save", fail)
    assert "eval_pass@1" in trainer.evaluate()
    assert "programs of this evaluation were not saved" in caplog.text


def test_score_is_the_fraction_of_passed_problems(tmp_path: Path):
    file = write_lines(
        tmp_path / "half.jsonl",
        [
            {"task_id": 1, "prompt": "x = 1 #", "test": "assert x == 1"},
            {"task_id": 2, "prompt": "x = 1 #", "test": "assert x == 2"},
        ],
    )
    trainer = make_trainer(tmp_path)
    callback(trainer, file, max_new_tokens=1)
    assert trainer.evaluate()["eval_pass@1"] == 0.5


def test_the_best_model_is_evaluated_again(tmp_path: Path, benchmark_file: Path, monkeypatch):
    best = {"metric_for_best_model": "eval_pass@1", "load_best_model_at_end": True, "save_strategy": "steps"}
    trainer = make_trainer(tmp_path, **best, save_steps=1)
    made = callback(trainer, benchmark_file)
    scores = iter([0.75, 0.25, 0.5])
    monkeypatch.setattr(made, "_evaluate", lambda: results(next(scores)))
    trainer.train()
    assert trainer.state.best_metric == 0.75
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    trainer.create_model_card()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| three | pass@1 | 0.750 | 0.375 to 1.000 |" in card
    assert re.search(r"\| NameError +\| +2 \| 33.3% \|", card), "outcomes of its programs"
    assert "How the teacher, and the student before training, score" in card
    assert trainer.evaluate()["eval_pass@1"] == 0.5, "the weights are others than at the step's first evaluation"


def test_card_compares_the_student_before_and_after_training(tmp_path: Path, benchmark_file: Path, monkeypatch):
    trainer = make_trainer(tmp_path, eval_on_start=True)
    scores = iter([0.25, 0.5, 0.75])
    monkeypatch.setattr(callback(trainer, benchmark_file), "_evaluate", lambda: results(next(scores)))
    trainer.train()
    trainer.create_model_card()
    card = (tmp_path / "out" / "README.md").read_text()
    assert re.search(r"\| pass@1 \| before training \| 0.250 \|.*\n\| pass@1 \|  after training \| 0.750 \|", card)
    assert "How the teacher scores" in card and "before training, score" not in card


def test_card_of_a_resumed_run_has_earlier_scores(tmp_path: Path, benchmark_file: Path, monkeypatch):
    """The card of a run that was interrupted after the evaluation of its best model."""
    best = {"metric_for_best_model": "eval_pass@1", "load_best_model_at_end": True, "save_strategy": "steps"}
    for score in (0.75, 0.25):
        trainer = make_trainer(tmp_path, **best, save_steps=2, eval_steps=2, max_steps=4)
        monkeypatch.setattr(callback(trainer, benchmark_file), "_evaluate", lambda score=score: results(score))
        if score == 0.75:
            trainer.add_callback(Interruption())
        trainer.train(resume_from_checkpoint=score == 0.25)
    assert trainer.state.global_step == 4
    trainer.create_model_card()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| three | pass@1 | 0.750 | 0.375 to 1.000 | problems 3," in card and "step 2 |" in card


def test_first_of_several_datasets_runs_the_benchmark(tmp_path: Path, benchmark_file: Path, monkeypatch):
    trainer = make_trainer(tmp_path)
    trainer.eval_dataset = {"a": trainer.eval_dataset, "b": trainer.eval_dataset}
    made = callback(trainer, benchmark_file)
    scores = iter([0.25])
    monkeypatch.setattr(made, "_evaluate", lambda: results(next(scores)))
    assert trainer.evaluate()["eval_pass@1"] == 0.25


def test_evaluation_does_not_affect_training(tmp_path: Path, benchmark_file: Path):
    losses = []
    for judged in (False, True):
        trainer = make_trainer(tmp_path / str(judged))
        if judged:
            callback(trainer, benchmark_file, num_samples=2, temperature=1.0)
        trainer.train()
        losses.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
        assert trainer.model.generation_config.max_new_tokens is None
    assert losses[0] == losses[1]


def test_failed_evaluation_ends_the_run_with_an_error(tmp_path: Path, benchmark_file: Path, monkeypatch):
    trainer = make_trainer(tmp_path)
    made = callback(trainer, benchmark_file)
    monkeypatch.setattr(made._executor, "stream", lambda *args, **kwargs: iter(()))
    with pytest.raises(KeyError):
        trainer.evaluate()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": (2,)}, "`k` asks for pass@2, but `num_samples` is 1"),
        ({"prompt_style": "chat"}, "tokenizer has no chat template"),
        ({"prompt_style": "prose"}, "is unknown"),
        ({"max_new_tokens": 256}, "3 of 3 prompts, such as that of 'double', exceed the positions"),
        (
            {"max_new_tokens": 256, "prompt_style": "template"},
            r"or set prompt_style \(in a recipe, eval_prompt_style\) to 'completion' .* 'alpaca'.*contain\.$",
        ),
        ({"max_new_tokens": 256, "prompt_style": "completion"}, r"max_new_tokens=256; lower it\.$"),
    ],
)
def test_wrong_settings(settings: dict, message: str, tmp_path: Path, benchmark_file: Path):
    with pytest.raises(ValueError, match=message):
        callback(make_trainer(tmp_path), benchmark_file, **settings)


def test_another_format_than_in_training_is_a_warning(tmp_path: Path, benchmark_file: Path, caplog):
    trainer = make_trainer(tmp_path)
    callback(trainer, benchmark_file)
    assert not [message for message in caplog.messages if "Problems are given" in message]
    callback(trainer, benchmark_file, prompt_style="template", prompt_template="comment")
    [warning] = [message for message in caplog.messages if "Problems are given" in message]
    assert "with the template `comment`" in warning and "trained without a template" in warning
    assert "set `prompt_style` to 'completion'" in warning and "`eval_prompt_style`" in warning


def test_a_trainer_that_never_evaluates(tmp_path: Path, benchmark_file: Path):
    args = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    trainer = Trainer(tiny.model(), args, processing_class=tiny.tokenizer(), train_dataset=[torch.zeros(1)])
    with pytest.raises(ValueError, match="`eval_strategy` is 'no'"):
        callback(trainer, benchmark_file)


def test_consent_is_required(tmp_path: Path, benchmark_file: Path, monkeypatch):
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    with pytest.raises(PermissionError):
        callback(make_trainer(tmp_path), benchmark_file, allow_code_execution=None)
