"""Names of models that cannot be read."""

import json
from pathlib import Path

import pytest

from tests import tiny
from trl_akd.cli import main

TRAINING = "--train_file rows.jsonl --use_cpu true --bf16 false --report_to none"
COMMANDS = {
    "plans": "plans --dataset_name problems.jsonl",
    "templates": "templates --dataset_name rows.jsonl --dataset_train_split train",
    "train a ranker": f"ranker train {TRAINING}",
    "rank": "ranker rank --benchmark bench.jsonl --samples samples.jsonl",
    "regression judge": f"judge train {TRAINING}",
    "generative judge": f"judge train --kind generative {TRAINING}",
    "akd": "akd --dataset_name rows.jsonl --use_cpu true --bf16 false --teacher_model_name_or_path x",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data for every command, an empty folder, and a model without a tokenizer, in the current folder."""
    program = "def f(x):\n    return x"
    row = {"instruction": "Add.", "output": "1", "answer": "1", "problem": "Add.", "program": "1"}
    labels = ({"label": "correct", "scores": [0, 0, 0, 0, 1]}, {"label": "SyntaxError", "scores": [0, 0, 0, 0, 0]})
    test = {"prompt": "def f(x):\n", "test": "def check(f):\n    assert f(1) == 1\n", "entry_point": "f"}
    rows = {
        "bench": [{"task_id": "a", "canonical_solution": "    return x\n", **test}],
        "problems": [{"id": "1", "problem": "Return x.", "solutions": [program]}],
        "rows": [row | label for label in labels],
        "samples": [{"task_id": "a", "completion": "    return x", "solution": program}],
    }
    for name, content in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in content))
    (tmp_path / "empty").mkdir()
    tiny.model().save_pretrained(tmp_path / "without_tokenizer")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_models_that_cannot_be_read(command: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    field = "ranker" if command == "rank" else "model_name_or_path"
    for name, message in (
        ("/no/such/folder", "which is neither a folder nor a name on the Hub; check the spelling."),
        ("./empty", "cannot be read; check the name, the folder or the connection (Unrecognized model in ./empty."),
        ("./without_tokenizer", "cannot be read; check the name, the folder or the connection (Couldn't instantiate"),
        (
            "Qwen/Qwen2.5-Codr-0.5B",
            "cannot be read; check the name, the folder or the connection (We couldn't connect",
        ),
        ("a b/c", "which is neither a folder nor a name on the Hub; check the spelling."),
        ("", ""),
    ):
        assert main([*COMMANDS[command].split(), f"--{field}", name]) == 2
        [line] = capsys.readouterr().err.partition("trl-akd: ")[2].splitlines()
        assert f"`{field}`" in line and (not name or f"`{field}` is {name!r}, " in line) and message in line
