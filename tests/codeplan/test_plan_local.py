"""Plans from a model in one process and in two, and by the command."""

import inspect
import json
import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import yaml

from tests import tiny
from tests.codeplan.plan_worker import ROWS, ask
from tests.codeplan.scripted import data
from tests.invariant.launch import launch
from trl_akd.cli import plans
from trl_akd.cli.errors import run
from trl_akd.codeplan.plan_config import PlanGenerationConfig
from trl_akd.codeplan.ranker_config import RankerBenchmark, RankerData, RankerModel, RankerRanking


def save(folder: Path, template: str | None = None) -> Path:
    tiny.model(max_position_embeddings=16_384).save_pretrained(folder)
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def answers(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


@pytest.mark.distributed
def test_two_processes_make_the_same_requests_as_one(tmp_path: Path):
    for folder in ("one", "two"):
        save(tmp_path / folder / "model")
    launch(tmp_path, "ddp", "tests.codeplan.plan_worker", str(tmp_path / "two"))
    ask(tmp_path / "one")
    reports = [json.loads((tmp_path / "two" / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert reports[0] == reports[1] and reports[0][0] == 2
    assert [report["requests"] for report in reports[0][1:]] == [3, 2]
    assert [report["stopped"] for report in reports[0][1:]] == ["max_requests", None]
    assert len(answers(tmp_path / "one")) == 2 * len(ROWS)
    one, two = (sorted(answers(tmp_path / folder), key=lambda row: row["id"]) for folder in ("one", "two"))
    assert two == one


@pytest.mark.parametrize("style", ["completion", "chat"])
def test_the_command_with_a_local_model(tmp_path: Path, style: str, capsys: pytest.CaptureFixture[str]):
    template = "<user>{{ messages[0]['content'] }}</user>" if style == "chat" else None
    model = save(tmp_path / "model", template)
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    recipe = {"model_name_or_path": str(model), "dataset_name": str(tmp_path / "rows.jsonl"), "prompt_style": style}
    recipe |= {"output_dir": str(tmp_path / "out"), "max_new_tokens": 4, "num_plans": 2}
    (tmp_path / "plans.yaml").write_text(yaml.safe_dump(recipe))
    assert run(plans.main, ["--config", str(tmp_path / "plans.yaml"), "--limit", "2"]) == 0
    assert "0 of 4 plans" in capsys.readouterr().out
    assert len(answers(tmp_path / "out")) == 4
    assert (tmp_path / "out" / "plans.jsonl").read_text() == ""
    tiny.model(seed=1, max_position_embeddings=16_384).save_pretrained(model)
    assert run(plans.main, ["--config", str(tmp_path / "plans.yaml")]) == 2
    assert "was generated with weights=" in capsys.readouterr().err


def test_chat_needs_a_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[0]))
    flags = ["--model_name_or_path", str(save(tmp_path / "model")), "--dataset_name", str(tmp_path / "rows.jsonl")]
    assert run(plans.main, [*flags, "--output_dir", str(tmp_path / "out")]) == 2
    assert "`prompt_style` is 'chat', and the model's tokenizer has no chat template" in capsys.readouterr().err


def test_rows_are_read_before_a_model_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "rows.jsonl").write_text(json.dumps({**ROWS[0], "solutions": []}))
    assert run(plans.main, ["--model_name_or_path", "./none", "--dataset_name", str(tmp_path / "rows.jsonl")]) == 2
    assert "row '1' has no solutions" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [PlanGenerationConfig, RankerBenchmark, RankerData, RankerModel, RankerRanking])
def test_fields_are_documented_in_their_order(kind: type):
    documented = re.findall(r"^    (\w+) \(`", inspect.getdoc(kind) or "", re.MULTILINE)
    inherited = [field.name for base in kind.__bases__ if is_dataclass(base) for field in fields(base)]
    names = [field.name for field in fields(kind)][len(inherited) :]
    assert [name for name in documented if name in names] == names


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "rows"), [(("apps/train",), 5), (("mbpp/mbpp.jsonl", "--dataset_split", "train[600:610]"), 10)]
)
def test_real_data_through_a_tiny_teacher(tmp_path: Path, dataset: tuple[str, ...], rows: int):
    path, *split = dataset
    flags = ["--model_name_or_path", str(save(tmp_path / "model")), "--dataset_name", str(data(path)), *split]
    flags += ["--prompt_style", "completion", "--max_new_tokens", "8", "--max_solutions", "2"]
    assert run(plans.main, [*flags, "--output_dir", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len({answer["id"] for answer in answers(tmp_path / "out")}) == rows
    assert report["wanted"] == len(answers(tmp_path / "out")) == report["plans"] + sum(report["rejected"].values())
