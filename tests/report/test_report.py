"""Reports of runs: what they show, what they never show, and files that are damaged or missing."""

import json
import logging
import os
import re
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.report.conftest import write, write_evaluation, write_run
from trl_akd.cli import main
from trl_akd.codeplan.plan_sampling import PlanScore
from trl_akd.evaluation.results import evaluation_folder
from trl_akd.report.page import make_visible, shorten
from trl_akd.report.writer import try_to_write_report, write_report

HOSTILE = {
    "script": "<script>alert(1)</script>",
    "end of an element": "</pre></details></body></html>",
    "attribute": '" onmouseover="alert(1)" x=\'',
    "image": "![x](https://example.org/x.png) <img src=x onerror=alert(1)>",
    "link": "[x](javascript:alert(1))",
    "end of CDATA": "]]><svg onload=alert(1)>",
    "template": "{{ 7 * 7 }}{% for x in () %}",
    "NUL": "a\0b",
    "right to left": "a\u202eb",
    "half of a surrogate pair": "a\ud800b",
    "terminal": "\x1b[31mred",
}


class Page(HTMLParser):
    """Elements of a page, with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def check_safe(html: str) -> Page:
    """Check that a page has no script and loads nothing."""
    page = Page(html)
    for tag, attributes in page.tags:
        assert tag not in ("script", "img", "iframe", "object", "embed", "link", "base", "form", "foreignobject")
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "style", "xlink:href")]
        assert not str(attributes.get("href", "#")).lower().startswith(("javascript", "data"))
    assert "@import" not in html and "url(" not in html
    return page


def test_report_of_a_training_run(run_dir: Path):
    html = write_report(run_dir).read_text(encoding="utf-8")
    text = check_safe(html).text
    for shown in ("student-akd", "org/student, at revision c0ffee", "trl-akd akd --config recipe.yaml"):
        assert shown in text
    for shown in ("0.500", "0.250 to 1.000", "student before training", "forward KL", "β, the weight of reverse KL"):
        assert shown in text
    assert "1 (50.0%)" in text and "NameError" in text and "return x * 2" in text, "outcomes and programs"
    assert "How the teacher scores" in text and "Whether the programs that this model writes" not in text
    assert "β KL(q ‖ p)" in text and "$" not in text, "the equation can be read"
    assert "Not shown" not in text


def test_further_evaluations_have_their_roles(run_dir: Path, tmp_path: Path):
    verdicts = {"a": ("passed", None), "b": ("passed", None)}
    places = [
        write_evaluation(tmp_path / "t", "/elsewhere/teacher", verdicts),
        write_evaluation(tmp_path / "s", str(run_dir), {"a": ("passed", None)}),
        write_evaluation(tmp_path / "o", "org/other", verdicts),
    ]
    html = write_report(run_dir, places).read_text()
    rows = re.findall(r"<tr><td>([\w ]+)</td><td>humaneval</td>", html)
    assert rows == ["student before training", "student", "teacher", "student", "other"]
    assert "How the teacher scores" not in html


def test_report_of_an_evaluation(tmp_path: Path):
    folder = write_evaluation(tmp_path / "out", "org/model", {"a": ("passed", None), "b": ("timed_out", "timeout")})
    text = check_safe(write_report(folder).read_text()).text
    assert "model on humaneval" in text and "0.500" in text and "timeout" in text and "namespace" in text
    command = "--model_name_or_path student --benchmark humaneval.jsonl --temperature 0.8 --base_url http://host/v1"
    assert f"trl-akd evaluate {command} --num_samples 2 --allow_code_execution" in text


def test_plans_are_shown_with_the_selected_one(tmp_path: Path):
    folder = write_evaluation(tmp_path / "out", "org/model", {"a": ("passed", None)})
    results = json.loads((folder / "results.json").read_text())
    scores = [
        asdict(PlanScore(plan, -1.0, fraction))
        for plan, fraction in (("1. Guess.", 0.0), ("1. Read x.\n2. Double it.", 1.0), ("1. Wait.", None))
    ]
    curve = {str(number): {"pass@1": [number / 10, 0.0, 1.0, 0.95]} for number in (0, 1, 3)}
    plans = {"curve": curve, "problems": {"a": {"chosen": {"0": None, "1": 0, "3": 1}, "scores": scores}}}
    plans |= {"judged_by_public_tests": 0, "without_public_tests": 0, "too_long": 2, "written_by": "LM head"}
    write(folder / "results.json", json.dumps({**results, "plans": plans}))
    text = check_safe(write_report(folder).read_text()).text
    assert "Plan 1, 0% of the public tests passed" in text and "0.300 (0.000 to 1.000)" in text
    assert "Plan 2, selected, 100% of the public tests passed" in text and "2. Double it." in text
    assert "Plan 31. Wait." in text.replace("\n", "") and "2 plans exceed the model's positions" in text
    assert "Not shown" not in text


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE.keys())
def test_text_of_models_and_files_is_escaped(hostile: str, tmp_path: Path):
    run = write_run(tmp_path / "run", facts={hostile: hostile}, explanation=hostile.replace("\ud800", ""))
    folder = evaluation_folder(run, 3)
    write_evaluation(folder, hostile, {hostile: ("failed", hostile)}, solution=hostile, completion=hostile + "x")
    page = check_safe(write_report(run).read_text(encoding="utf-8"))
    assert page.text.count(make_visible(hostile)) >= 5, "shown as it is: fact, problem, outcome, program, completion"
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202a-\u202e]", page.text.replace("\n", ""))


def test_long_texts_are_cut(tmp_path: Path):
    run = write_run(tmp_path / "run")
    for solution in ("x" * 10**6, "x\n" * 10**5):
        write_evaluation(evaluation_folder(run, 3), "run", {"a": ("passed", None)}, solution=solution)
        assert write_report(run).stat().st_size < 100_000
        assert "more characters not shown" in (run / "report.html").read_text()
    assert shorten("short\n") == "short"


def test_secrets_and_paths_are_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-value")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 20)
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "somebody"))
    program = f"key = 'sk-very-secret-value'\ntoken = 'hf_{'x' * 20}'\nopen('{tmp_path}/home/somebody/a.py')"
    program += f"\n# see file://{tmp_path}/home/somebody/b.py"
    padding = "y" * (6000 - len("key = 'sk-very"))  # the text is cut within the secret
    run = write_run(tmp_path / "run", facts={"Data folder": f"{tmp_path}/run/data"})
    write_evaluation(
        evaluation_folder(run, 3), "run", {"a": ("passed", None)}, solution=program, completion=padding + program
    )
    html = write_report(run).read_text()
    assert "sk-very" not in html and "hf_xx" not in html and str(tmp_path) not in html and "/home/me" not in html
    assert "/data/models" not in html and "me:word" not in html
    assert "[removed: the environment variable OPENAI_API_KEY]" in html and "open(&#39;a.py&#39;)" in html


DAMAGE = {
    "run.json": ("{", '{"facts": 3}', "[]", "\0"),
    "trainer_state.json": ("{", "[]", '{"log_history": [3]}', '{"log_history": [{"step": "x", "loss": NaN}]}'),
    "evaluation/step-3/results.json": ("{", "[]", '{"benchmark": {}, "metrics": {}, "tasks": {}}'),
    "evaluation/step-3/verdicts.jsonl": ("{\n", '{"task_id": 1}', "\udcff\n"),
    "evaluation/step-3/samples.jsonl": ('{"task_id": "b", "sample": 0}', "3"),
    "README.md": ("---\na: [\n---\n", "\udcff"),
    "cycles.json": ("[{}]", "3"),
    "usage.json": ("[]", "{"),
    "ledger/items.jsonl": ("{\n", '{"kind": "pair"}', '{"kind": "pair", "cycle": 0, "id": "a"}'),
}


@pytest.mark.parametrize(("name", "content"), [(name, each) for name, several in DAMAGE.items() for each in several])
def test_damaged_file_is_left_out_with_a_warning(
    name: str, content: str, run_dir: Path, caplog: pytest.LogCaptureFixture
):
    path = run_dir / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with caplog.at_level(logging.WARNING):
        html = write_report(run_dir).read_text()
    check_safe(html)
    assert ("Method and settings" in html and "Sample programs" in html) or name.startswith(("run", "eval", "trainer"))
    if "NaN" not in content:
        assert caplog.messages and "Not shown" in html, "said once in the report and once in the log"


def test_failure_is_one_warning(run_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    write_report(run_dir)
    before = (run_dir / "report.html").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert try_to_write_report(run_dir) is None
    assert [message for message in caplog.messages if "report" in message] == [
        f"The report of {run_dir} was not written: [Errno 28] No space left on device. Nothing else is lost; "
        "`trl-akd report` writes it again."
    ]
    assert (run_dir / "report.html").read_bytes() == before


@pytest.mark.parametrize("content", [None, {}, {"notes.txt": "x"}])
def test_other_folders_are_refused(content: dict[str, str] | None, tmp_path: Path):
    if content is not None:
        (tmp_path / "run").mkdir()
    for name, text in (content or {}).items():
        write(tmp_path / "run" / name, text)
    with pytest.raises(
        FileNotFoundError, match=r"no such folder; check the path|has no readable file of a run, such as run.json"
    ):
        write_report(tmp_path / "run")


def test_programs_of_an_earlier_run_are_left_out(run_dir: Path):
    write_evaluation(evaluation_folder(run_dir, 7), "run", {"a": ("passed", None)}, solution="stale = 1")
    assert "stale = 1" not in write_report(run_dir).read_text()


def test_run_in_progress_is_shown_from_its_last_checkpoint(run_dir: Path):
    state = json.loads((run_dir / "trainer_state.json").read_text())
    (run_dir / "trainer_state.json").unlink()
    for step in (2, 10):
        history = [log for log in state["log_history"] if log["step"] <= 2]
        write(run_dir / f"checkpoint-{step}" / "trainer_state.json", json.dumps({"log_history": history[: step + 1]}))
    assert "2 optimizer steps" in write_report(run_dir).read_text()


def test_iterkd_in_progress_is_shown_from_its_ledger(tmp_path: Path):
    feedback = {"score": 0.25, "easy": 0.5, "medium": 0.25, "hard": 0.25}
    counts = {"questions": 7, "origins": {}, "pairs": 5, "faults": {}, "without_fault": 0, "dropped": {}}
    report = {"kind": "report", "cycle": 0, "id": "report", **counts, "feedback": feedback, "held_out": {}}
    pair = {"kind": "pair", "cycle": 0, "id": "q", "correct": "2 * x", "faults": [{"kind": "name", "text": "2 * y"}]}
    question = {"kind": "question", "cycle": 1, "id": "q", "instruction": "Double x."}
    write(tmp_path / "ledger" / "items.jsonl", "".join(f"{json.dumps(each)}\n" for each in (report, pair, question)))
    for place in ("cycle-0", "cycle-1/checkpoint-9"):
        write(
            tmp_path / place / "trainer_state.json", json.dumps({"log_history": [{"step": len(place), "loss": 1.0}]})
        )
    text = check_safe(write_report(tmp_path).read_text()).text
    assert "1 cycle, 20 optimizer steps" in text and "0.50 / 0.25 / 0.25" in text and "2 * y" in text
    with open(tmp_path / "ledger" / "items.jsonl", "a") as ledger:
        ledger.write('{"kind": "pair", "cyc')  # interrupted
    assert (
        check_safe(write_report(tmp_path).read_text()).text.partition("Written by")[0]
        == text.partition("Written by")[0]
    )


def test_an_interrupted_verdict_does_not_hide_the_programs(run_dir: Path):
    for name in ("samples.jsonl", "verdicts.jsonl"):
        with open(evaluation_folder(run_dir, 3) / name, "a") as file:
            file.write('{"task_id": "c", "sam')
    text = check_safe(write_report(run_dir).read_text()).text
    assert "return x * 2" in text and "Not shown" not in text


@pytest.mark.parametrize(("measured", "score"), [(1, "1.000"), (None, "0.500"), (9, "0.500")])
def test_the_saved_model_is_that_of_its_step(measured: int | None, score: str, tmp_path: Path):
    """With `load_best_model_at_end`, it is not the model of the last step."""
    run = write_run(tmp_path / "run", measured_step=measured)
    state = json.loads((run / "trainer_state.json").read_text())
    state["log_history"].append({"step": 1, "eval_pass@1": 1.0})
    write(run / "trainer_state.json", json.dumps(state))
    write_evaluation(evaluation_folder(run, 1), "run, step 1", {"a": ("passed", None), "b": ("passed", None)})
    rows = re.findall(r"<td>humaneval</td><td>pass@1</td><td>([\d.]+)</td>", write_report(run).read_text())
    assert rows == ["0.000", score]


def test_scores_with_and_without_plans_are_in_one_chart(tmp_path: Path):
    run = write_run(tmp_path / "run")
    planned = write_evaluation(tmp_path / "p", str(run), {"a": ("passed", None)})
    results = json.loads((planned / "results.json").read_text())
    curve = {str(number): {"pass@1": [1.0, 0.5, 1.0, 0.95]} for number in (0, 3)}
    plans = {"curve": curve, "problems": {}, "judged_by_public_tests": 0, "without_public_tests": 0, "too_long": 0}
    write(planned / "results.json", json.dumps({**results, "plans": {**plans, "written_by": "LM head"}}))
    html = write_report(run, [planned]).read_text()
    [chart] = [each for each in re.findall(r"<svg.*?</svg>", html, re.DOTALL) if "pass@1 on humaneval" in each]
    labels = [each for each in re.findall(r"<text[^>]*>([^<]+)</text>", chart) if each.startswith("student")]
    assert labels == ["student before training", "student", "student, with plans"]


def test_names_do_not_hide_roles(tmp_path: Path):
    """A setting may have the name of a model as its value."""
    run = write_run(tmp_path / "run", facts={"Reference": "org/student"})
    write_evaluation(tmp_path / "o", "org/student", {"a": ("passed", None)})
    assert "<td>student before training</td>" in write_report(run, [tmp_path / "o"]).read_text()


def test_outcomes_are_compared_within_a_benchmark(run_dir: Path, tmp_path: Path):
    other = write_evaluation(tmp_path / "o", "a-model-with-a-long-name" * 4, {"a": ("failed", "TypeError")})
    results = json.loads((other / "results.json").read_text())
    write(other / "results.json", json.dumps({**results, "benchmark": {**results["benchmark"], "name": "mbpp"}}))
    html = write_report(run_dir, [other]).read_text()
    assert re.findall(r'<th scope="col">outcome, (\w+)</th>', html) == ["humaneval", "mbpp"]
    assert not re.search(r'width="-', html), "long labels leave room for the bars"


def test_command(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    teacher = write_evaluation(tmp_path / "t", "/elsewhere/teacher", {"a": ("passed", None)})
    assert main(["report", str(run_dir), "--evaluations", str(teacher)]) == 0
    assert capsys.readouterr().out == f"Report: {run_dir}/report.html\n"
    for arguments, message in (
        ([], "`run_dir` is missing; give the folder of a run"),
        ([f"{tmp_path}/nowhere"], "but there is no such folder; check the path"),
        ([str(run_dir), "--evaluations", f"{tmp_path}/nowhere"], "There is no results.json in"),
    ):
        assert main(["report", *arguments]) == 2
        assert message in capsys.readouterr().err
