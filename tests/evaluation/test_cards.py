"""Results of evaluations on model cards, in folders and on the Hub, and as datasets."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import load_dataset
from huggingface_hub import EvalResult, ModelCard

from tests.evaluation.conftest import write_lines
from tests.evaluation.test_runner import SOLUTIONS, settings
from tests.hub.fixtures import hub
from tests.hub.loopback import Hub
from trl_akd.cli import main
from trl_akd.cli.evaluate import _update_card
from trl_akd.evaluation.cards import (
    card_scores,
    card_sections,
    read_judged_samples,
    samples_content,
    update_model_card,
)
from trl_akd.evaluation.runner import evaluate
from trl_akd.hub.datasets import dataset_files
from trl_akd.hub.scores import FewerProblemsError
from trl_akd.hub.upload import HubError

__all__ = ["hub"]

RESULTS = {
    "benchmark": {"name": "humaneval", "dataset": "openai/openai_humaneval", "revision": "abc", "problems": 2,
                  "fingerprint": "f00"},
    "metrics": {"pass@1": 0.5, "pass@1_low": 0.1, "pass@1_high": 0.9, "confidence": 0.95},
    "errors": {"correct": 2, "wrong_answer": 1, "<img src=x>|/undefined": 1},
    "tasks": {"a": {"samples": 2, "correct": 2}, "b": {"samples": 2, "correct": 0}},
}  # fmt: skip
SETTINGS = {"temperature": 0.8, "top_p": 0.95, "max_new_tokens": 8, "prompt_style": "completion"}


def update(model: str, **options) -> str:
    return update_model_card(
        model, card_scores(RESULTS, SETTINGS), card_sections(RESULTS), revision=None, folder=Path("outputs"), **options
    )


def test_metadata_of_scores():
    [score] = card_scores(RESULTS, SETTINGS)
    assert (score.dataset_type, score.dataset_revision, score.metric_type) == (
        "openai/openai_humaneval",
        "abc",
        "pass@1",
    )
    expected = {"interval": [0.1, 0.9], "confidence": 0.95, "problems": 2, "num_samples": 2, "temperature": 0.8}
    assert expected.items() <= score.metric_args.items()


@pytest.mark.parametrize(("style", "template"), [("completion", None), ("chat", None), ("template", "alpaca")])
def test_the_template_is_named_if_prompts_contain_it(style: str, template: str | None):
    settings = {**SETTINGS, "prompt_style": style, "prompt_template": "alpaca"}
    [score] = card_scores(RESULTS, settings)
    assert (score.metric_args["prompt_style"], score.metric_args.get("prompt_template")) == (style, template)


def test_text_of_programs_is_escaped():
    [section] = card_sections(RESULTS).values()
    assert "<img" not in section and r"&lt;img src=x&gt;\|" in section


def test_card_on_the_hub(hub: Hub):
    theirs = ModelCard("---\nlicense: mit\n---\n\n# Student\n\nWords.\n")
    repository = hub.add("me/student", {"README.md": str(theirs).encode(), "config.json": b"{}"})
    for _ in range(2):
        assert update("me/student") == "https://huggingface.co/me/student"
    card = ModelCard(repository.files["README.md"].decode())
    [score] = card.data.eval_results
    assert isinstance(score, EvalResult) and card.data.license == "mit" and "Words." in card.text
    assert card.text.count("## Evaluation") == 1 and "### Outcomes of the programs: humaneval" in card.text
    assert set(repository.files) == {"README.md", "config.json"}


def test_a_repository_keeps_a_score_of_more_problems(hub: Hub):
    repository = hub.add("me/student", {"README.md": b"# Student\n"})
    update("me/student")
    before = dict(repository.files)
    fewer = {**RESULTS, "benchmark": {**RESULTS["benchmark"], "problems": 1}}
    with pytest.raises(FewerProblemsError, match=r"^the card keeps its score of 2 problems"):
        update_model_card("me/student", card_scores(fewer, SETTINGS), {}, revision=None, folder=Path("outputs"))
    assert repository.files == before


@pytest.mark.parametrize("update_card", [None, True])
def test_a_score_of_fewer_problems_is_one_line(update_card: bool | None, tmp_path: Path, capsys):
    (tmp_path / "README.md").write_text("# Student\n")
    update(str(tmp_path))
    before = (tmp_path / "README.md").read_text()
    fewer = {**RESULTS, "benchmark": {**RESULTS["benchmark"], "problems": 1}, "generation": SETTINGS}
    config = SimpleNamespace(model_name_or_path=str(tmp_path), update_card=update_card, model_revision=None)
    _update_card(config, SimpleNamespace(results=fewer, folder=tmp_path))
    assert capsys.readouterr().out == (
        "Note: the scores were not added to the model card: the card keeps its score of 2 problems of 'humaneval', "
        "because the new one is of only 1; evaluate all problems (without `limit`), or delete the score from the card "
        "first.\n"
    )
    assert (tmp_path / "README.md").read_text() == before


def test_repository_without_a_card(hub: Hub):
    repository = hub.add("me/student", {"config.json": b"{}"})
    update("me/student")
    assert ModelCard(repository.files["README.md"].decode()).data.eval_results[0].metric_value == 0.5


@pytest.mark.parametrize(("status", "reason"), [(403, "may not write to 'me/student'"), (412, "failed")])
def test_refusal_names_the_results(hub: Hub, status: int, reason: str):
    repository = hub.add("me/student", {"README.md": b"# Student\n"})
    hub.fail("POST .*/commit/", status)
    with pytest.raises(HubError, match=reason) as caught:
        update("me/student")
    assert "the results are in 'outputs', and the same command adds them" in str(caught.value)
    assert repository.files == {"README.md": b"# Student\n"}


def test_repository_that_does_not_exist(hub: Hub):
    with pytest.raises(HubError, match="'me/student', its namespace or its branch does not exist on the Hub"):
        update("me/student")


def test_comparison_on_the_card(benchmark_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    student = tmp_path / "student"
    student.mkdir()
    (student / "README.md").write_text("# Student\n")
    bodies = {"teacher": "    return 1", "before": "    return 2", "after": "    return x"}
    for name, body in bodies.items():
        samples = write_lines(
            tmp_path / f"{name}.jsonl", [{"task_id": task, "completion": body} for task in SOLUTIONS]
        )
        evaluate(settings(benchmark_file, tmp_path, samples=str(samples), output_dir=str(tmp_path / name)))
        file = tmp_path / name / "results.json"
        model = {"name": str(student if name == "after" else f"/models/{name}"), "commit": None}
        file.write_text(json.dumps({**json.loads(file.read_text()), "model": model}))
    folders = [str(tmp_path / name) for name in bodies]
    assert main(["evaluate", "--compare", *folders, "--update_card"]) == 0
    assert f"Comparison added to the model card: {student / 'README.md'}." in capsys.readouterr().out
    card = (student / "README.md").read_text()
    assert re.search(r"\| pass@1 \| +teacher, `teacher` \|", card) and re.search(r"\| +`before` \|", card)
    assert re.search(r"\| +this model \|", card) and "accuracy loss" in card and "/models" not in card


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model_name_or_path", "model", "--benchmark", "x.jsonl"], "'model' has no README.md; create one"),
        (["--model_name_or_path", "a/b/c", "--benchmark", "x.jsonl"], "neither the folder of a model nor a name"),
        (["--samples", "x.jsonl", "--benchmark", "x.jsonl"], "`update_card` is on, but `samples` have no model card"),
    ],
)
def test_models_without_a_card(flags: list[str], message: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    assert main(["evaluate", *flags, "--update_card"]) == 2
    assert message in capsys.readouterr().err


def test_programs_as_a_dataset(benchmark_file: Path, tmp_path: Path):
    rows = [{"task_id": task, "completion": "    return '```<b>'"} for task in SOLUTIONS]
    samples = write_lines(tmp_path / "samples_of_others.jsonl", rows)
    evaluate(settings(benchmark_file, tmp_path, samples=str(samples), output_dir=str(tmp_path / "out")))
    with pytest.raises(FileNotFoundError, match=r"samples\.jsonl"):
        samples_content(tmp_path / "out")  # the samples are in the file of the other tool
    write_lines(
        tmp_path / "out" / "samples.jsonl",
        [{"task_id": task, "sample": 0, "solution": "x", "completion": "```<b>"} for task in SOLUTIONS],
    )
    files = dataset_files("me/programs", samples_content(tmp_path / "out"))
    (tmp_path / "pushed").mkdir()
    for name, content in files.items():
        (tmp_path / "pushed" / name).write_bytes(content)
    pushed = list(load_dataset(str(tmp_path / "pushed"), split="train"))
    assert len(pushed) == len(SOLUTIONS) and {"status", "error_type", "label", "solution"} <= pushed[0].keys()
    card = files["README.md"].decode()
    assert "## Scores" in card and "## Outcomes" in card and str(tmp_path) not in card


@pytest.mark.parametrize("file", ["samples.jsonl", "verdicts.jsonl"])
@pytest.mark.parametrize("row", [{}, {"task_id": ["a"]}, {"task_id": "a", "sample": "0"}])
def test_a_damaged_line_is_named(file: str, row: dict, tmp_path: Path):
    for name in ("samples.jsonl", "verdicts.jsonl"):
        (tmp_path / name).write_text(json.dumps({"task_id": "a", "sample": 0} if name != file else row) + "\n")
    with pytest.raises(ValueError, match=rf"{file}, line 1 has no `task_id` or no `sample`; correct or delete"):
        read_judged_samples(tmp_path)
