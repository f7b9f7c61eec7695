"""Dry runs of IterKD use no real server, run all stages, and report the same errors as a real run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trl_akd.cli import main
from trl_akd.cli.mock_server import run_mock_server, write_prompts
from trl_akd.generation import OpenAIGenerator
from trl_akd.iterkd.cycle.prompts import TeachingPrompts
from trl_akd.iterkd.cycle.records import Fault, Pair, Question
from trl_akd.iterkd.cycle.verification import verify
from trl_akd.iterkd.judge.prompts import JudgePrompt
from trl_akd.iterkd.judge.reader import parse_judgement
from trl_akd.iterkd.judge.rubric import MAX_TOTAL, Judgement

NOBODY = "http://127.0.0.1:9/v1"  # the port where everything is discarded

Write = Callable[[dict[str, Any]], str]


@pytest.fixture
def served(settings: dict[str, Any]) -> dict[str, Any]:
    """Keys of a recipe whose server does not exist."""
    left_out = ("teacher_model_name_or_path", "test_size", "eval_strategy", "max_steps")
    kept = {key: value for key, value in settings.items() if key not in left_out}
    return kept | {
        "text_teacher_model_name_or_path": "some/teacher",
        "backend": "openai",
        "base_url": NOBODY,
        "max_requests": 1,
    }


@pytest.mark.end_to_end
def test_all_stages_run_and_no_files_remain(
    served: dict[str, Any], recipe: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = recipe(served | {"decontaminate": ["apps"], "cycles": 7})
    before = set(tmp_path.rglob("*"))
    assert main(["iterkd", "--config", path, "--dry_run"]) == 0
    assert set(tmp_path.rglob("*")) == before
    out = capsys.readouterr().out
    for said in ("Cycle 1 of 2, new questions", "Cycle 2 of 2, feedback", "apps: left out", "Dry run passed"):
        assert said in out
    assert "text of some/teacher" in out and "what the real teacher writes" in out


@pytest.mark.end_to_end
def test_teacher_model_for_distributions_and_mock_server_for_text(
    settings: dict[str, Any], served: dict[str, Any], recipe: Write, capsys: pytest.CaptureFixture[str]
):
    own = {
        key: value
        for key, value in served.items()
        if key not in ("text_teacher_model_name_or_path", "backend", "base_url")
    }
    teacher = settings["teacher_model_name_or_path"]
    path = recipe(own | {"teacher_model_name_or_path": teacher})
    assert main(["iterkd", "--config", path, "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert f"text of {teacher}" in out and "kd/" in out


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"base_url": None}, "give both the backend openai and an address"),
        ({"text_teacher_model_name_or_path": None, "backend": None, "base_url": None}, "no model writes answers"),
        ({"prompts_file": "prompts.yaml"}, "lacks the field {instruction}"),
        ({"dataset_name": "seeds.json"}, "row 0 has 1 inputs and 0 outputs"),
    ],
)
def test_errors_equal_those_of_a_real_run(
    served: dict[str, Any],
    recipe: Write,
    changed: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    Path("prompts.yaml").write_text("correct: Answer!")
    Path("seeds.json").write_text(json.dumps([{"instruction": "Add one.", "tests": {"inputs": ["1"], "outputs": []}}]))
    content = {key: value for key, value in {**served, **changed}.items() if value is not None}
    assert main(["iterkd", "--config", recipe(content), "--dry_run"]) == 2
    out, err = capsys.readouterr()
    assert message in err and "Dry run passed" not in out


@pytest.mark.parametrize("chat", [False, True])
def test_replies_of_all_kinds(chat: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("http_proxy", NOBODY)
    prompts_file, judge_file = write_prompts(tmp_path)
    prompts, judge_prompt = TeachingPrompts.from_file(prompts_file), JudgePrompt(Path(judge_file).read_text())
    with run_mock_server() as url:
        teacher = OpenAIGenerator(url, "anybody", chat=chat, max_retries=0)

        def ask(prompt: str, **sampling: Any) -> str:
            [[completion]] = teacher.generate([prompt], **sampling)
            return completion.text

        right, faulty = ask(prompts.for_answer("Add.")), ask(prompts.for_fault("Add.", "name"))
        judged = [parse_judgement(ask(judge_prompt.render("Add.", answer))) for answer in (right, faulty)]
        asked = {ask(prompts.for_question("Add.", "hard"), temperature=1.0, seed=seed) for seed in range(4)}
    assert [found.total for found in judged if isinstance(found, Judgement)] == [MAX_TOTAL, 0.0]
    assert len(asked) == 4
    pair = Pair(Question("1", "Add."), right, (Fault(faulty, "name"),))
    assert verify([pair], unverified="keep").pairs == [pair]
