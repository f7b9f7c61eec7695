"""The ranker: classes, data, training on real verdicts, and ranking."""

import json
import random
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    EvalPrediction,
    GPT2Config,
    LlamaConfig,
    RobertaConfig,
    TrainingArguments,
    XLNetConfig,
)

from tests import tiny
from trl_akd.cli import ranker as command
from trl_akd.cli.errors import run
from trl_akd.codeplan.ranker import (
    RANKER_LABELS,
    Ranker,
    _metrics,
    make_ranker_trainer,
    program_text,
    rank_samples,
    ranker_label,
    ranker_rows,
)
from trl_akd.evaluation.evaluation_config import EvaluationConfig
from trl_akd.evaluation.runner import evaluate
from trl_akd.execution import CodeExecutor
from trl_akd.metrics.taxonomy import CAUSES, OWN_CAUSES, classify
from trl_akd.text_pairs import encode_pairs, hold_out

PROBLEMS = {"double": "Double x.", "one": "Return one."}
BENCHMARK = [
    {"task_id": "double", "prompt": "def double(x):\n", "entry_point": "double", "test": "assert double(2) == 4"},
    {"task_id": "one", "prompt": "def one():\n", "entry_point": "one", "test": "assert one() == 1"},
]


def classifier(num_labels: int, seed: int = 0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=tiny.VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        num_labels=num_labels,
        pad_token_id=256,
        eos_token_id=257,
        bos_token_id=None,
    )
    return AutoModelForSequenceClassification.from_config(config)


def arguments(folder: Path, **settings) -> TrainingArguments:
    common = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    return TrainingArguments(str(folder), **{**common, **settings})


# Classes


def test_every_error_type_has_a_class_of_each_kind():
    for name in [None, "wrong_answer", *CAUSES, *OWN_CAUSES]:
        for kind, labels in RANKER_LABELS.items():
            assert ranker_label(name, kind) in labels
            assert (ranker_label(name, kind) == "correct") is (name is None)
    assert ranker_label("wrong_answer", "ternary") == "wrong_answer"
    assert ranker_label("timeout", "ternary") == "execution_error"
    assert len(RANKER_LABELS["error_type"]) == len(set(RANKER_LABELS["error_type"]))
    with pytest.raises(ValueError, match="error type 'infra_error' is unknown"):
        ranker_label("infra_error", "binary")


def test_classes_are_those_of_the_executor():
    programs = {
        "x = 4": None,
        "x = 3": "wrong_answer",
        "x": "NameError",
        "x = [][0]": "IndexError",
        "x = (": "SyntaxError",
    }
    with CodeExecutor(1, allow_code_execution=True) as executor:
        for program, error_type in programs.items():
            [result] = executor.run([(program, "assert x == 4")])
            assert classify(result, program).error_type == error_type
            assert ranker_label(error_type, "error_type") in RANKER_LABELS["error_type"]


# Data


def sample(task_id: str, number: int, solution: str) -> dict:
    return {"task_id": task_id, "sample": number, "solution": solution}


def verdict(task_id: str, number: int, error_type: str | None) -> dict:
    return {"task_id": task_id, "sample": number, "label": {"error_type": error_type}}


def test_rows_join_samples_and_verdicts():
    samples = [sample("one", 1, "b"), sample("one", 0, "a"), sample("double", 0, "c"), sample("double", 1, "a")]
    verdicts = [
        verdict("one", 0, None),
        verdict("one", 1, "NameError"),
        verdict("double", 0, "infra_error"),
    ]
    assert ranker_rows(PROBLEMS, samples, verdicts) == [
        {"id": "one", "problem": "Return one.", "program": "a", "label": "correct"},
        {"id": "one", "problem": "Return one.", "program": "b", "label": "NameError"},
    ]


def test_equal_programs_count_once():
    samples = [sample("one", number, "a") for number in range(3)]
    assert len(ranker_rows(PROBLEMS, samples, [verdict("one", number, None) for number in range(3)])) == 1


@pytest.mark.parametrize(
    ("samples", "verdicts", "message"),
    [
        ([], [verdict("one", 0, None)], "sample 0 of problem 'one', but no such sample"),
        ([sample("x", 0, "a")], [verdict("x", 0, None)], "problem 'x', but no such problem"),
        ([sample("one", 0, "a")], [verdict("one", 0, "infra_error")], "there is no verdict on any program"),
    ],
)
def test_files_that_do_not_belong_together(samples: list, verdicts: list, message: str):
    with pytest.raises(ValueError, match=message):
        ranker_rows(PROBLEMS, samples, verdicts)


def test_split_by_problem():
    rows = [{"id": str(number % 10), "program": str(number)} for number in range(40)]
    train, held_out = hold_out(rows, 0.3, seed=0)
    assert len({row["id"] for row in held_out}) == 3 and len(train) + len(held_out) == 40
    assert not {row["id"] for row in train} & {row["id"] for row in held_out}
    assert hold_out(rows[::-1], 0.3, seed=0)[1] == held_out[::-1]
    with pytest.raises(ValueError, match="does not split 10 problems into two parts"):
        hold_out(rows, 0.01, seed=0)


def test_long_pairs_keep_parts_of_both_texts():
    tokenizer = tiny.tokenizer()
    for problem, program in product(["p" * 10, "p" * 1000], ["q" * 10, "q" * 1000]):
        [ids] = encode_pairs(tokenizer, [problem], [program_text(program)], 200)["input_ids"]
        text = tokenizer.decode(ids)
        assert len(ids) <= 200 and text.startswith("pp") and "# Program\nq" in text
        assert text.count("p") + text.count("q") >= min(len(problem) + len(program), 150)


# Training


def separable_rows(number: int, seed: int = 0) -> list[dict]:
    """Programs that are easy to classify: correct ones contain `return`, others `pass` or an undefined name."""
    source = random.Random(seed)
    bodies = {"correct": "return x", "wrong_answer": "pass", "NameError": "undefined"}
    rows = []
    for index in range(number):
        label = source.choice(list(bodies))
        program = f"def f{index}(x):\n    {bodies[label]}"
        rows.append({"id": str(index // 6), "problem": f"Problem {index // 6}.", "program": program, "label": label})
    return rows


@pytest.mark.parametrize("labels", list(RANKER_LABELS))
def test_a_ranker_learns_is_saved_and_ranks(tmp_path: Path, labels: str):
    settings = {"max_steps": 60, "per_device_train_batch_size": 16, "learning_rate": 3e-3, "seed": 0}
    trainer = make_ranker_trainer(
        classifier(len(RANKER_LABELS[labels])),
        tiny.tokenizer(),
        arguments(tmp_path, **settings),
        separable_rows(192),
        separable_rows(48, seed=1),
        labels=labels,
        max_length=100,
    )
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy"] > 0.9 and metrics["eval_ranking_accuracy"] > 0.9
    trainer.save_model()
    ranker = Ranker.from_pretrained(str(tmp_path), batch_size=2)
    programs = ["def g(x):\n    undefined", "def g(x):\n    return x", "def g(x):\n    pass"]
    scores = ranker.score("Problem 99.", programs)
    assert scores.index(max(scores)) == 1 and all(0 <= score <= 1 for score in scores)
    alone = [ranker.score("Problem 99.", [program])[0] for program in programs]
    assert alone == pytest.approx(scores, abs=1e-5), "padding and company make no difference"


@pytest.mark.parametrize(
    ("config", "usable"),
    [
        (RobertaConfig(max_position_embeddings=34, pad_token_id=1), 32),
        (BertConfig(max_position_embeddings=32), 32),
        (GPT2Config(n_positions=32), 32),
        (LlamaConfig(max_position_embeddings=32, num_key_value_heads=2, head_dim=8), 32),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_pairs_fit_the_positions_of_the_model(tmp_path: Path, config, usable: int, caplog):
    size = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config.update({"vocab_size": 320, "num_labels": 2, "bos_token_id": None, "eos_token_id": 257, **size})
    model, tokenizer = AutoModelForSequenceClassification.from_config(config), tiny.tokenizer()
    row = {"id": "1", "problem": "p" * 40, "program": "c" * 40}
    rows = [{**row, "label": label} for label in ("correct", "wrong_answer")]
    made = make_ranker_trainer(model, tokenizer, arguments(tmp_path, max_steps=1), rows, labels="binary")
    assert f"`max_length` is 1024, but the model has {usable} positions" in caplog.text
    assert {len(row["input_ids"]) for row in made.train_dataset} == {usable} and tokenizer.model_max_length == usable
    made.train()
    assert len(Ranker(model, tokenizer).score("p" * 99, ["c" * 99])) == 1


def test_a_model_of_any_length_keeps_max_length(tmp_path: Path):
    config = XLNetConfig(vocab_size=320, d_model=16, n_layer=1, n_head=2, d_inner=16, num_labels=2)
    model, tokenizer = AutoModelForSequenceClassification.from_config(config), tiny.tokenizer()
    rows = [{"id": "1", "problem": "p", "program": "c", "label": label} for label in ("correct", "wrong_answer")]
    make_ranker_trainer(model, tokenizer, arguments(tmp_path), rows, labels="binary", max_length=100)
    assert tokenizer.model_max_length == 100


def test_ranking_accuracy_by_hand():
    logits = np.array([[2.0, 0.0], [0.0, 0.0], [1.0, 0.0], [3.0, 0.0], [0.0, 0.0]])
    labels = np.array([0, 1, 1, 1, 0])  # class 0 is correct
    groups = ["a", "a", "a", "b", "b"]
    found = _metrics(EvalPrediction(logits, labels), groups, 0)
    assert found == {"accuracy": 2 / 5, "ranking_accuracy": pytest.approx(2 / 3)}
    assert "ranking_accuracy" not in _metrics(EvalPrediction(logits[:1], labels[:1]), ["a"], 0)


def test_a_ranker_needs_several_classes_and_its_own_head(tmp_path: Path):
    rows = [row for row in separable_rows(50) if row["label"] != "correct"]
    with pytest.raises(ValueError, match="all programs to train on belong to one class"):
        make_ranker_trainer(classifier(2), tiny.tokenizer(), arguments(tmp_path), rows, labels="binary")
    with pytest.raises(ValueError, match="the model has 2 classes; load it with num_labels=3"):
        make_ranker_trainer(classifier(2), tiny.tokenizer(), arguments(tmp_path), rows, labels="ternary")
    with pytest.raises(ValueError, match="but not 'correct'; train a ranker"):
        Ranker(classifier(2), tiny.tokenizer())


# Ranking


class ByLength:
    def score(self, problem: str, programs: list[str]) -> list[float]:
        return [len(program) / 10 for program in programs]


def test_samples_are_ranked_per_problem():
    samples = [sample("one", 0, "a"), sample("double", 0, "c"), sample("one", 1, "bb"), sample("one", 2, "c")]
    ranked = rank_samples(ByLength(), PROBLEMS, samples)
    assert [(row["task_id"], row["sample"]) for row in ranked] == [("one", 1), ("one", 0), ("one", 2), ("double", 0)]
    assert ranked[0]["ranker_score"] == 0.2
    assert [row["sample"] for row in rank_samples(ByLength(), PROBLEMS, samples, keep=1)] == [1, 0]
    with pytest.raises(ValueError, match="for problem 'x', which is not in the benchmark"):
        rank_samples(ByLength(), PROBLEMS, [sample("x", 0, "a")])


# The command, on what a real evaluation leaves


@pytest.fixture
def evaluated(tmp_path: Path) -> Path:
    """An evaluation of twelve programs per problem with the real executor."""
    benchmark = tmp_path / "two.jsonl"
    benchmark.write_text("".join(f"{json.dumps(row)}\n" for row in BENCHMARK))
    bodies = ["return 2 * x", "return x", "return undefined", "return x +", "pass", "return x * 2"]
    bodies += [f"return 2 * x  # {number}" for number in range(6)]
    folder = tmp_path / "evaluation"
    folder.mkdir()
    rows = [
        {"task_id": task, "solution": f"{head}    {body}", "sample": number}
        for task, head, fit in (("double", "def double(x):\n", ""), ("one", "def one(x=0.5):\n", ""))
        for number, body in enumerate(bodies)
    ]
    (folder / "samples.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    evaluate(
        EvaluationConfig(
            samples=str(folder / "samples.jsonl"),
            benchmark=str(benchmark),
            output_dir=str(folder),
            allow_code_execution=True,
        )
    )
    return folder


def test_data_train_rank(evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    benchmark = ["--benchmark", str(tmp_path / "two.jsonl")]
    rows = tmp_path / "data.jsonl"
    command.main(["data", "--evaluations", str(evaluated), *benchmark, "--output", str(rows)])
    assert "24 programs" in capsys.readouterr().out
    labels = [json.loads(line)["label"] for line in rows.read_text().splitlines()]
    assert labels.count("correct") == 16 and {"wrong_answer", "NameError", "SyntaxError"} <= set(labels)
    start = tmp_path / "start"
    tiny.model().save_pretrained(start)
    tiny.tokenizer().save_pretrained(start)
    model = tmp_path / "ranker"
    training = ["--max_steps", "2", "--use_cpu", "true", "--report_to", "none", "--test_size", "0.5"]
    files = ["--train_file", str(rows), "--model_name_or_path", str(start), "--output_dir", str(model)]
    command.main(["train", *files, *training, "--max_length", "128", "--labels", "ternary"])
    assert "eval_ranking_accuracy" in json.loads((model / "eval_results.json").read_text())
    ranked = tmp_path / "ranked.jsonl"
    where = ["--samples", str(evaluated / "samples.jsonl"), "--ranker", str(model), "--output", str(ranked)]
    command.main(["rank", *where, *benchmark, "--keep", "3"])
    found = [json.loads(line) for line in ranked.read_text().splitlines()]
    assert [row["task_id"] for row in found] == ["double"] * 3 + ["one"] * 3
    for task in ("double", "one"):
        scores = [row["ranker_score"] for row in found if row["task_id"] == task]
        assert scores == sorted(scores, reverse=True)
    judged = EvaluationConfig(
        samples=str(ranked), benchmark=benchmark[1], output_dir=str(tmp_path / "judged"), allow_code_execution=True
    )
    assert evaluate(judged).results["samples"]["samples"] == 6


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["dance"], "'dance' is not an action of `trl-akd ranker`; choose one of data, train, rank"),
        (["data"], "`benchmark` is missing"),
        (["data", "--benchmark", "humaneval"], "`evaluations` is missing"),
        (["train", "--output_dir", "x"], "`model_name_or_path` is missing"),
        (["train", "--model_name_or_path", "x", "--train_file", "none.jsonl"], "There is no file 'none.jsonl'"),
        (["rank", "--benchmark", "humaneval"], "`ranker` is missing"),
        (["rank", "--benchmark", "humaneval", "--ranker", "r", "--samples", "s", "--keep", "0"], "`keep` is 0"),
        (["rank", "--benchmark", "humaneval", "--rnker", "r"], "did you mean `--ranker`"),
    ],
)
def test_errors_have_one_sentence(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert run(command.main, argv) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


ROW = {"id": "1", "problem": "Add.", "program": "x", "label": "correct"}


@pytest.mark.parametrize(
    ("rows", "flags", "message"),
    [
        ([], [], "rows.jsonl has no rows"),
        ([{**ROW, "problem": None}], [], "line 1 has the value None in the column `problem`; give the file of"),
        ([ROW, {"problem": "Add.", "label": "correct"}], [], "line 2 has the value None in the column `program`"),
        ([{**ROW, "label": 1}], [], "line 1 has the value 1 in the column `label`"),
        ([{**ROW, "id": None}], ["--test_size", "0.5"], "line 1 has the value None in the column `id`"),
    ],
)
def test_rows_to_train_on(rows: list, flags: list[str], message: str, tmp_path: Path, capsys: Any):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    argv = ["train", "--model_name_or_path", "x", "--train_file", str(path), *flags]
    assert run(command.main, [*argv, "--output_dir", str(tmp_path / "out"), "--use_cpu", "true"]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def by_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ranker, "from_pretrained", lambda *args, **kwargs: ByLength())
    monkeypatch.setattr("trl_akd.cli.models.read_model", lambda *args: None)


def rank(tmp_path: Path, rows: list[dict[str, Any]]) -> int:
    (tmp_path / "two.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in BENCHMARK))
    (tmp_path / "samples.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    files = {"samples": "samples.jsonl", "benchmark": "two.jsonl", "output": "ranked.jsonl"}
    flags = [word for name, file in files.items() for word in (f"--{name}", str(tmp_path / file))]
    return run(command.main, ["rank", "--ranker", "x", *flags])


def test_completions_are_ranked_as_whole_programs(tmp_path: Path, by_length: None):
    task = BENCHMARK[0]["task_id"]
    rows = [{"task_id": task, "completion": text, "mine": text} for text in ("    return 1", "    return 1 + 1")]
    assert rank(tmp_path, rows) == 0
    first, second = [json.loads(line) for line in (tmp_path / "ranked.jsonl").read_text().splitlines()]
    assert first["mine"] == "    return 1 + 1" and second["mine"] == "    return 1"
    assert first["solution"].endswith("return 1 + 1")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no samples"),
        ([{"solution": "x"}], "line 1 has no `task_id`"),
        ([{"task_id": "nothing", "solution": "x"}], "line 1 is for the problem 'nothing', which is not among"),
        ([{"task_id": "double"}], "line 1 has neither `solution` nor `completion`"),
        ([{"task_id": "double", "solution": 5}], "`solution` in"),
    ],
)
def test_samples_that_cannot_be_ranked(rows: list, message: str, tmp_path: Path, by_length: None, capsys: Any):
    assert rank(tmp_path, rows) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "row", "message"),
    [
        ("samples.jsonl", {"task_id": "double"}, "samples.jsonl, line 1 has the value None in the column `solution`"),
        ("samples.jsonl", {"solution": "x"}, "samples.jsonl, line 1 has the value None in the column `task_id`"),
        ("verdicts.jsonl", {"task_id": "double"}, "verdicts.jsonl, line 1 has the value None in the column `sample`"),
        ("verdicts.jsonl", {"task_id": "double", "sample": 0, "label": "x"}, "in the column `label`"),
        ("verdicts.jsonl", {"task_id": "double", "sample": 0, "label": {}}, "problem 'double' has the label {}"),
    ],
)
def test_damaged_evaluations(file: str, row: dict, message: str, tmp_path: Path, capsys: Any):
    lines = {"samples.jsonl": sample("double", 0, "x"), "verdicts.jsonl": verdict("double", 0, None), file: row}
    for name, line in lines.items():
        (tmp_path / name).write_text(json.dumps(line))
    (tmp_path / "two.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in BENCHMARK))
    argv = ["data", "--evaluations", str(tmp_path), "--benchmark", str(tmp_path / "two.jsonl")]
    assert run(command.main, [*argv, "--output", str(tmp_path / "out.jsonl")]) == 2
    assert message in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]):
    assert run(command.main, []) == 0
    assert "trl-akd ranker {data,train,rank}" in capsys.readouterr().out
