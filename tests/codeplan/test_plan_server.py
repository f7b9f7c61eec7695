"""Plans from correct, busy, faulty, slow and unreachable servers."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.import_utils import is_serve_available

from tests.generation.server import Fault, Server, serving
from tests.generation.test_transformers_serve import model, url
from trl_akd.cli import plans
from trl_akd.codeplan.plan_generation import PlanGenerator
from trl_akd.generation import GenerationError, OpenAIGenerator

__all__ = ["model", "url"]  # fixtures: a real server with a tiny model

PLAN = "1. Begin.\n2. End."
ROWS = [{"id": str(number), "problem": f"Print {number}.", "solutions": [f"print({number})"]} for number in range(6)]


class Teacher(Server):
    """Answer every request with a plan."""

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = super().answer(path, {**body, "prompt": PLAN, "messages": [{"content": PLAN}]})
        for choice in answer["choices"]:
            choice |= {"message": {"content": PLAN}} if "message" in choice else {"text": PLAN}
        return answer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("tests.generation.server.Server", Teacher)
    with serving() as running:
        yield running


def generator(server: Server, tmp_path: Path, **settings: Any) -> PlanGenerator:
    client = {name: settings.pop(name) for name in ("concurrency", "timeout", "max_retries") if name in settings}
    asked = OpenAIGenerator(server.url, "tiny", chat=True, **{"backoff": 0.01, "timeout": 5.0, **client})
    return PlanGenerator(asked, output=tmp_path / "answers.jsonl", progress=False, **settings)


def answers(tmp_path: Path) -> int:
    return len((tmp_path / "answers.jsonl").read_text().splitlines())


def test_plans(server: Server, tmp_path: Path):
    made = generator(server, tmp_path)
    assert [row["plans"] for row in made.run(ROWS)] == [[PLAN]] * 6
    assert (made.report.requests, made.report.tokens) == (6, 48), "prompts' tokens, as the server counts them, too"
    assert not any(body.get("stop") for body in server.bodies), "a chat model may begin its answer with a heading"


@pytest.mark.parametrize(
    "refusal", ["content_filter", "This model's maximum context length is 4096 tokens", "no reason at all"]
)
def test_only_the_refused_prompt_fails(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], refusal: str
):
    """The command continues with the other problems, succeeds, and does not send the prompt again."""
    server.refuses = lambda body: Fault(400, refusal) if "Print 0." in json.dumps(body) else None
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    where = [
        "--backend",
        "openai",
        "--base_url",
        server.url,
        "--model_name_or_path",
        "tiny",
        "--dataset_name",
        str(data),
    ]
    flags = [*where, "--output_dir", str(tmp_path / "plans")]
    plans.main(flags)
    out = capsys.readouterr().out
    assert "5 of 6 plans" in out and "Rejected: 1 refused" in out
    written = [json.loads(line) for line in (tmp_path / "plans" / "plans.jsonl").read_text().splitlines()]
    assert [(row["id"], row["plan_solutions"]) for row in written] == [(str(number), [0]) for number in range(1, 6)]
    asked = len(server.bodies)
    plans.main(flags)
    assert len(server.bodies) == asked
    answered = [json.loads(line) for line in (tmp_path / "plans" / "answers.jsonl").read_text().splitlines()]
    assert sum(refusal in str(answer["refusal"]) for answer in answered if answer["finish_reason"] == "refused") == 1


@pytest.mark.parametrize("status", [401, 403, 404])
def test_refusal_of_all_prompts_ends_the_run(server: Server, tmp_path: Path, status: int):
    server.refuses = lambda body: Fault(status, "no")
    with pytest.raises(GenerationError, match=f"status {status}"):
        generator(server, tmp_path, concurrency=1).run(ROWS)
    assert len(server.bodies) <= 2, "one more may be under way"


def test_busy_server_is_retried(server: Server, tmp_path: Path):
    server.faults.extend([Fault(429, headers={"Retry-After": "0"}), Fault(500), Fault(body="garbage"), Fault(503)])
    made = generator(server, tmp_path, concurrency=1)
    assert sum(len(row["plans"]) for row in made.run(ROWS)) == 6
    assert made.report.requests == 10, "repetitions are requests"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault(429), "gave no valid response in 2 attempts, the last of which failed with status 429"),
        (Fault(500, body="oh"), "with status 500: 'oh'"),
        (Fault(body="<html>"), "because its response is not JSON: '<html>'"),
        (Fault(body='{"choices": []}'), "its response has no choices"),
        (Fault(delay=2.0), "because no response arrived within 0.3 s"),
        (Fault(hang_up=True), "because of"),
        (Fault(401, body="who?"), "refused with status 401: 'who\\?'; check `api_key`"),
    ],
)
def test_server_error_keeps_recorded_answers(server: Server, tmp_path: Path, fault: Fault, message: str):
    good = json.dumps(server.answer("/v1/chat/completions", {"temperature": 0.2}))
    faults = 1 if fault.status == 401 else 2  # a refusal is not repeated
    server.faults.extend([Fault(body=good), Fault(body=good), *[fault] * faults])
    made = generator(server, tmp_path, concurrency=1, timeout=0.3, max_retries=1, batch_size=4)
    with pytest.raises(GenerationError, match=message):
        made.run(ROWS)
    before = len(server.bodies)
    assert answers(tmp_path) == before - faults >= 2, "also those of the batch that failed"
    again = generator(server, tmp_path)
    assert sum(len(row["plans"]) for row in again.run(ROWS)) == 6
    assert len(server.bodies) - before == 6 - (before - faults)


def test_budgets_use_the_reported_tokens(server: Server, tmp_path: Path):
    made = generator(server, tmp_path, max_requests=4, batch_size=3)
    made.run(ROWS)
    assert (len(server.bodies), made.report.requests, made.report.stopped) == (4, 4, "max_requests")
    made = generator(server, tmp_path, max_tokens=8, batch_size=1)
    made.run(ROWS)
    assert (len(server.bodies), made.report.tokens, made.report.stopped) == (5, 8, "max_tokens")


# The command


def flags(server: Server, tmp_path: Path, *more: str) -> list[str]:
    dataset = tmp_path / "rows.jsonl"
    dataset.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    where = ["--backend", "openai", "--base_url", server.url, "--model_name_or_path", "tiny"]
    return [*where, "--dataset_name", str(dataset), "--output_dir", str(tmp_path), *more]


def test_the_command(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    plans.main(flags(server, tmp_path, "--max_requests", "4"))
    out = capsys.readouterr().out
    assert "4 of 6 plans; 4 requests and 32 tokens in this run." in out and "`max_requests` is reached" in out
    assert "Problems without a plan, left out: 2." in out
    assert len((tmp_path / "plans.jsonl").read_text().splitlines()) == 4
    plans.main(flags(server, tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "plans.jsonl").read_text().splitlines()]
    assert rows == [{**row, "plans": [PLAN], "plan_solutions": [0]} for row in ROWS]
    assert len(server.bodies) == 6
    assert json.loads((tmp_path / "report.json").read_text())["requests"] == 2
    assert json.loads((tmp_path / "answers.settings.json").read_text())["model"] == "tiny"


def test_kill_9_of_the_command(server: Server, tmp_path: Path):
    """While the fourth request hangs, the first three are on disk; the next run requests the rest."""
    good = Fault(body=json.dumps(server.answer("/v1/chat/completions", {"temperature": 0.2})))
    server.faults.extend([good, good, good, Fault(delay=30.0)])
    command = [sys.executable, "-m", "trl_akd.cli.plans", *flags(server, tmp_path, "--concurrency", "1")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ})
    while len(server.bodies) < 4:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert answers(tmp_path) == 3
    made = generator_like_the_command(server, tmp_path)
    made.run(ROWS)
    assert len(server.bodies) == 7 and answers(tmp_path) == 6


def generator_like_the_command(server: Server, tmp_path: Path) -> PlanGenerator:
    settings = json.loads((tmp_path / "answers.settings.json").read_text())
    return generator(server, tmp_path, settings=settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "`model_name_or_path` is missing"),
        (["--model_name_or_path", "m"], "`dataset_name` is missing"),
        (["--model_name_or_path", "m", "--dataset_name", "./none.jsonl"], "There is no file or folder './none.jsonl'"),
        (["--model_name_or_path", "m", "--dataset_name", "x", "--backend", "openai"], "`base_url` is None"),
        (["--model_name_or_path", "m", "--dataset_name", "x", "--nun_plans", "2"], "did you mean `--num_plans`"),
        (["--model_name_or_path", "m", "--dataset_name", "x", "--num_plans", "0"], "`num_plans` is 0"),
    ],
)
def test_errors_have_one_sentence(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    from trl_akd.cli.errors import run

    assert run(plans.main, arguments) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and error.count("\n") == 1


def test_error_of_a_refusing_server_has_one_sentence(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from trl_akd.cli.errors import run

    server.faults.extend([Fault(404)] * 6)
    assert run(plans.main, flags(server, tmp_path)) == 2
    assert "refused with status 404" in capsys.readouterr().err


# A real server


@pytest.mark.slow
@pytest.mark.skipif(not is_serve_available(), reason="needs what `transformers serve` does: transformers[serving]")
def test_transformers_serve(url: str, model: Path, tmp_path: Path):
    asked = OpenAIGenerator(url, str(model), timeout=60, max_retries=1)
    made = PlanGenerator(asked, tmp_path / "answers.jsonl", n=2, temperature=1.0, max_new_tokens=8, progress=False)
    made.run([{"id": "1", "problem": "P", "solutions": ["x"]}])
    assert made.report.requests == 2 and made.report.tokens > 0 and answers(tmp_path) == 2
    assert sum(made.report.rejected.values()) + made.report.plans == 2
    made.run([{"id": "1", "problem": "P", "solutions": ["x"]}])
    assert made.report.requests == 0
