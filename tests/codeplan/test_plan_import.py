"""Import of released plans, paired with problems and solutions."""

import json
from pathlib import Path

import pytest

from tests import tiny
from tests.codeplan.scripted import data
from trl_akd.cli import main
from trl_akd.cli.plans import read_rows
from trl_akd.codeplan.plan_import import import_plans, read_plans
from trl_akd.data.sources import load

PLAN = "1. Read.\n2. Print."


def test_the_authors_plans_for_apps():
    rows, report = import_plans(read_rows(data("apps/train")), read_plans(data("apps/train")))
    assert [len(row["plans"]) for row in rows] == [17, 28, 19, 20, 20]
    for row in rows:
        alike = len(row["plans"]) == len(row["solutions"])
        assert row["plan_solutions"] == (list(range(len(row["plans"]))) if alike else [None] * len(row["plans"]))
    assert (report.plans, report.paired, report.without, report.unknown) == (104, 56, 0, 0)
    assert not report.rejected


def test_the_authors_plans_for_mbpp():
    rows = read_rows(data("mbpp/mbpp.jsonl"), split="train[600:610]")
    found, report = import_plans(rows, read_plans(data("mbpp/example_plans")))
    assert (report.plans, report.paired, report.without) == (5, 5, 5)
    assert [len(row["plans"]) for row in found] == [1] * 5 + [0] * 5


def apps(folder: Path, **files: object) -> Path:
    home = folder / "APPS" / "0000"
    home.mkdir(parents=True)
    for name, value in {"question": "Double it.", "solutions": ["print(1)", "print(2)"], **files}.items():
        text = value if isinstance(value, str) else json.dumps(value)
        (home / f"{name}.{'txt' if name == 'question' else 'json'}").write_text(text)
    return home.parent


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = apps(tmp_path, plans=[PLAN, "no plan"])
    flags = ["--import_plans", str(folder), "--dataset_name", str(folder), "--output_dir", str(tmp_path / "plans")]
    assert main(["plans", *flags]) == 0
    [row] = load(tmp_path / "plans" / "plans.jsonl")
    assert (row["plans"], row["plan_solutions"]) == ([PLAN], [0])
    out = capsys.readouterr().out
    assert "1 plans, 1 of them paired" in out and "Rejected: 1 not numbered" in out
    assert json.loads((tmp_path / "plans" / "report.json").read_text())["rejected"] == {"not_numbered": 1}


def test_folder_of_apps_is_not_a_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = apps(tmp_path)
    tiny.model().save_pretrained(tmp_path / "m")
    tiny.tokenizer().save_pretrained(tmp_path / "m")
    flags = [
        "--model_name_or_path",
        str(tmp_path / "m"),
        "--output_dir",
        str(tmp_path / "out"),
        "--dataset_name",
        str(folder),
    ]
    assert main(["codeplan", *flags]) == 2
    error = capsys.readouterr().err
    assert "contains the problems of APPS, one per folder, not rows" in error and "trl-akd plans" in error


@pytest.mark.parametrize(
    ("plans", "message"),
    [("{", "is not JSON"), ({"a": PLAN}, "give a list of texts"), ([1], "give a list of texts")],
)
def test_invalid_plan_files(tmp_path: Path, plans: object, message: str):
    with pytest.raises(ValueError, match=message):
        read_plans(apps(tmp_path, plans=plans))


def test_folders_without_plans(tmp_path: Path):
    with pytest.raises(ValueError, match=r"contains neither NAME/plans\.json nor NAME\.txt"):
        read_plans(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        read_plans(tmp_path / "none")


def test_a_teacher_and_a_folder(capsys: pytest.CaptureFixture[str]):
    assert main(["plans", "--import_plans", "x", "--model_name_or_path", "m", "--dataset_name", "d"]) == 2
    assert "and `model_name_or_path` is 'm'; plans come from one of them" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", ["num_plans", "max_solutions", "max_requests", "max_tokens", "seed", "reasoning", "prompt_style"]
)
def test_options_of_generation(capsys: pytest.CaptureFixture[str], option: str):
    value = {"reasoning": "forward", "prompt_style": "completion"}.get(option, "3")
    assert main(["plans", "--import_plans", "x", "--dataset_name", "d", f"--{option}", value]) == 2
    assert f"`{option}` is " in (found := capsys.readouterr().err) and "no effect with `import_plans`" in found


@pytest.mark.parametrize("name", ["7.txt", "7/plans.json"])
def test_files_in_other_encodings(tmp_path: Path, name: str):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    text = "1. Café." if name.endswith("txt") else '["1. Café."]'
    path.write_bytes(text.encode("utf-8-sig"))
    assert read_plans(tmp_path) == {"7": ["1. Café."]}
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"is not UTF-8 .*; convert it"):
        read_plans(tmp_path)
