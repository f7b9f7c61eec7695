"""Real problems, programs and plans: MBPP with plans of a large model, and APPS."""

import json
from pathlib import Path

import pytest
from datasets import Dataset

from tests import tiny
from trl_akd.codeplan.encoding import ProblemEncoder, prepare_problems

from . import world

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"


@pytest.fixture
def mbpp() -> Dataset:
    plans = sorted((DATA / "mbpp" / "example_plans").glob("*.txt"))
    if not plans:
        pytest.skip("MBPP and its example plans are not in ../shared/data")
    rows = {row["task_id"]: row for row in map(json.loads, (DATA / "mbpp" / "mbpp.jsonl").read_text().splitlines())}
    return Dataset.from_list(
        [
            {
                "problem": rows[int(plan.stem)]["text"],
                "solution": rows[int(plan.stem)]["code"],
                "plan": plan.read_text(),
            }
            for plan in plans
        ]
    )


@pytest.fixture
def apps() -> Dataset:
    """APPS has no plans; the lines of the solutions, which are equally long, are used instead."""
    folders = sorted(path.parent for path in (DATA / "apps" / "train").glob("*/solutions.json"))
    if not folders:
        pytest.skip("APPS is not in ../shared/data")
    rows = []
    for folder in folders:
        solutions = json.loads((folder / "solutions.json").read_text())
        question = (folder / "question.txt").read_text()
        rows.append({"problem": question, "solutions": solutions, "plans": [text[:200] for text in solutions]})
    return Dataset.from_list(rows)


@pytest.mark.parametrize("family", ["codegen", "t5"])
def test_mbpp(trainer, mbpp: Dataset, family):
    given = {"processing_class": world.roberta_tokenizer()} if family == "t5" else {}
    model = world.t5() if family == "t5" else tiny.model(family, n_positions=2048, n_ctx=2048)
    made = trainer(model, train_dataset=mbpp, max_length=2048, max_steps=10, learning_rate=3e-3, **given)
    assert len(made.train_dataset) == len(mbpp)
    made.train()
    losses = [log["codeplan/plan_loss"] for log in made.state.log_history if "codeplan/plan_loss" in log]
    assert losses[-1] < losses[0]


def test_apps(trainer, apps: Dataset):
    prepared, report = prepare_problems(apps, ProblemEncoder(tiny.tokenizer(), max_length=8192))
    assert report.kept == len(prepared) == len(apps)
    assert max(map(len, prepared["solutions"])) > 1
    made = trainer(
        tiny.model("llama", max_position_embeddings=8192), train_dataset=apps, max_length=8192,
        per_device_train_batch_size=1, schedule="alternate",
    )  # fmt: skip
    made.train()
    assert len([log for log in made.state.log_history if "loss" in log]) == 2
