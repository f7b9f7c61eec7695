"""Errors and results of the trainer of cycles."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from transformers import TrainerCallback

from tests.iterkd import cycle_world
from tests.iterkd.cycle_world import RuleTeacher
from trl_akd.execution import CodeExecutor
from trl_akd.iterkd.iterkd_config import IterKDConfig
from trl_akd.report import save_report

pytestmark = pytest.mark.lengthy


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    cycle_world.prepare(folder)
    return folder


class Tracker(TrainerCallback):
    """Records what a tracker would get, by step."""

    def __init__(self) -> None:
        self.logs: list[tuple[int, dict[str, float]]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        self.logs.append((state.global_step, {name: value for name, value in logs.items() if name != "epoch"}))


class Interruption(TrainerCallback):
    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("interrupted")


def test_partially_trained_student_is_refused(world: Path, tmp_path: Path):
    """Without a checkpoint, the run would start from partially trained weights."""
    trainer = cycle_world.trainer(
        world, tmp_path, RuleTeacher(), None, callbacks=[Interruption()], save_strategy="no", keep_unverified=True
    )
    with pytest.raises(RuntimeError, match="interrupted"):
        trainer.train()
    with pytest.raises(ValueError, match=r"has been trained before, .* create a new trainer"):
        trainer.train()


def test_a_run_requires_a_teacher_and_refuses_a_checkpoint(world: Path, tmp_path: Path):
    trainer = cycle_world.trainer(world, tmp_path, RuleTeacher(), None)
    with pytest.raises(ValueError, match="`resume_from_checkpoint` is 'checkpoint-2'"):
        trainer.train("checkpoint-2")
    trainer.text_teacher = None
    with pytest.raises(ValueError, match="`text_teacher` is missing"):
        trainer.train()


def test_models_must_not_change_between_starts(world: Path, tmp_path: Path):
    def run(**changed: Any) -> None:
        trainer = cycle_world.trainer(world, tmp_path, RuleTeacher(), None, max_requests=2, **changed)
        trainer.judge = changed.pop("judge", trainer.judge)
        trainer.train()
        assert trainer.stopped is not None and "`max_requests` is reached" in trainer.stopped

    run()
    for changed, message in (
        ({"learning_rate": 1e-5}, r"learning_rate=0\.003, not 1e-05"),
        ({"lr_scheduler_type": "cosine"}, "lr_scheduler_type='linear', not 'cosine'"),
    ):
        with pytest.raises(ValueError, match=message):
            run(**changed)
    trainer = cycle_world.trainer(world, tmp_path, RuleTeacher(), None)
    trainer.judge = None
    with pytest.raises(ValueError, match="judge='RuleTeacher', not None"):
        trainer.train()


def test_a_spent_budget_leaves_the_last_student_in_memory(world: Path, tmp_path: Path):
    cycle_world.trainer(world, tmp_path, RuleTeacher(), None, cycles=1, keep_unverified=True).train()
    trainer = cycle_world.trainer(world, tmp_path, RuleTeacher(), None, max_requests=3, keep_unverified=True)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    assert trainer.stopped is not None and len(trainer.reports) == 1
    trainer.save_model(str(tmp_path / "last"))
    saved = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("last", "cycle-0/student")]
    assert saved[0] == saved[1]
    assert any(not tensor.equal(before[name]) for name, tensor in trainer.model.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"new_easy": -1}, "`new_easy` is -1"),
        ({"mix_hard": -1.0}, "`mix_hard` is -1.0"),
        ({"questions_per_cycle": 0}, "`questions_per_cycle` is 0"),
        ({"min_question_chars": 0}, "`min_question_chars` is 0; give at least 1"),
        ({"fault_kinds": ["typo"]}, r"`fault_kinds` is \['typo'\]"),
        (
            {"fault_kinds": ["name"], "faults_per_question": 0},
            r"`fault_kinds` is \['name'\], which has no effect while `faults_per_question` is 0; raise that, or leave",
        ),
        ({"easy_at_least": 1.0}, r"`hard_at_most` is 2\.0 and `easy_at_least` 1\.0"),
        ({"teacher_temperature": -1.0}, r"`teacher_temperature` is -1\.0"),
        ({"teacher_top_p": 0.0}, r"`teacher_top_p` is 0\.0"),
        ({"prompts_file": "nowhere.yaml"}, "`prompts_file` 'nowhere.yaml' cannot be used: .*No such file"),
        ({"judge_prompt_file": "nowhere.txt"}, "`judge_prompt_file` 'nowhere.txt' cannot be used: .*No such file"),
    ],
)
def test_errors_name_the_fields_of_the_run(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        IterKDConfig("outputs", use_cpu=True, **settings)


def test_the_loss_of_the_last_training_is_returned(world: Path, tmp_path: Path):
    losses = [
        cycle_world.trainer(world, tmp_path, RuleTeacher(), None, cycles=1, keep_unverified=True).train().training_loss
        for _ in range(2)
    ]
    assert losses[0] > 0 and losses[1] == 0, "the second time, nothing is trained"


def test_the_model_card_has_models_and_scores(world: Path, tmp_path: Path):
    teacher = RuleTeacher()
    with CodeExecutor(1, allow_code_execution=True) as executor:
        trainer = cycle_world.trainer(world, tmp_path, teacher, executor, cycles=1)
        trainer.held_out_name = "mbpp"
        trainer.train()
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / "README.md")
    for part in (
        "| Teacher that writes the answers | `RuleTeacher` |",
        "| Judge | `RuleTeacher` |",
        "| Cycles | `1` |",
        f"| Prompt template | `{trainer.args.prompt_template}` |",
        f"| Seed questions | `{len(trainer.seeds)}` |",
        f"| Optimizer steps | `{trainer.state.global_step}` |",
        f"| Rows per optimizer step | `{trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps}` |",
        f"| Learning rate | `{trainer.args.learning_rate:g} (",
        f"| Seed | `{trainer.args.seed}` |",
    ):
        assert part in card.text, part
    assert "## Cycles" in card.text and "No benchmark" not in card.text
    (score,) = card.data.eval_results
    assert (score.dataset_name, score.metric_value) == ("mbpp", trainer.reports[-1].held_out["pass@1"])


def test_trackers_and_the_report_get_the_cycles_one_after_another(world: Path, tmp_path: Path):
    def run() -> list[tuple[int, dict[str, float]]]:
        tracker = Tracker()
        changed = {"callbacks": [tracker], "logging_strategy": "steps", "logging_steps": 1}
        with CodeExecutor(1, allow_code_execution=True) as executor:
            trainer = cycle_world.trainer(world, tmp_path, RuleTeacher(), executor, **changed)
            trainer.train()
        assert trainer.args.run_name == str(tmp_path), "one run of a tracker for all cycles"
        save_report(trainer)
        return tracker.logs

    logs = run()
    steps = [step for step, entry in logs if "loss" in entry]
    assert steps == list(range(1, len(steps) + 1)), "the second cycle follows the first"
    reports = [(step, entry) for step, entry in logs if "iterkd/cycle" in entry]
    assert [entry["iterkd/cycle"] for _, entry in reports] == [1, 2] and reports[-1][0] == steps[-1]
    for _, entry in reports:
        assert {"iterkd/pairs", "iterkd/feedback", "iterkd/hard", "eval_pass@1", "eval_pass@1_low"} <= entry.keys()
    html = (tmp_path / "report.html").read_text()
    assert "Mean feedback" in html and "Losses on correct answers and against faulty ones" in html
    assert f"2 cycles, {steps[-1]} optimizer steps" in html and "Not shown" not in html
    again = run()
    assert [entry for entry in again if "iterkd/cycle" in entry[1]] == reports, "at the same steps, when continued"
