"""Streams of completions from a model and from a server, also when interrupted."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiny
from tests.generation.server import Fault, Server, serving
from trl_akd.generation import Completion, GenerationError, OpenAIGenerator, TransformersGenerator
from trl_akd.generation.protocol import GREEDY, SamplingParams, Usage, collect, stream
from trl_akd.generation.recorded import CompletionStore, RecordedGenerator
from trl_akd.ledger import Ledger

PROMPTS = ["def add(a, b):\n", "x", "# a comment\nprint(", "x", "return"]
SAMPLED = {"n": 3, "temperature": 1.0, "max_new_tokens": 5, "seed": 7}


class Halting:
    """Echo prompts one at a time, and raise an error before the `stops`-th."""

    def __init__(self, stops: int = sys.maxsize, error: BaseException | None = None) -> None:
        self.stops, self.error = stops, error or GenerationError("gone")
        self.asked: list[str] = []

    def generate(self, prompts, **sampling):
        return collect(self.stream(prompts, SamplingParams(**sampling)), len(prompts))

    def stream(self, prompts, sampling=GREEDY):
        for index, prompt in enumerate(prompts):
            if len(self.asked) == self.stops:
                raise self.error
            self.asked.append(prompt)
            yield index, [Completion(f"{prompt}{number}", -1.0, "stop", 2) for number in range(sampling.n)]


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# A model in this process


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_stream_of_a_model_equals_its_completions(batch_size: int):
    generator = TransformersGenerator(tiny.model(), tiny.tokenizer(), batch_size=batch_size)
    arrivals = list(generator.stream(PROMPTS, SamplingParams(**SAMPLED)))
    assert sorted(index for index, _ in arrivals) == list(range(len(PROMPTS)))
    assert collect(arrivals, len(PROMPTS)) == generator.generate(PROMPTS, **SAMPLED)


def test_model_yields_each_batch_before_the_next(monkeypatch: pytest.MonkeyPatch):
    generator, batches = TransformersGenerator(tiny.model(), tiny.tokenizer(), batch_size=3), []
    write = TransformersGenerator._write_batch

    def spy(self, model, rows, *rest):
        batches.append(len(rows))
        return write(self, model, rows, *rest)

    monkeypatch.setattr(TransformersGenerator, "_write_batch", spy)
    for number, (index, _) in enumerate(generator.stream(PROMPTS, SamplingParams(**SAMPLED)), start=1):
        assert batches == [3] * number
        assert number > 1 or index == 2, "the longest prompt first"


def test_model_is_restored_after_a_closed_stream():
    model = tiny.model().train()
    arrivals = TransformersGenerator(model, tiny.tokenizer(), batch_size=1).stream(
        PROMPTS, SamplingParams(max_new_tokens=2)
    )
    next(arrivals)
    assert not model.training
    arrivals.close()
    assert model.training


# A server


def test_answers_arrive_in_the_order_of_the_server(server: Server):
    good = Fault(body=json.dumps(server.answer("/v1/completions", {"prompt": "late", "temperature": 0})), delay=1.0)
    server.faults.append(good)
    generator = OpenAIGenerator(server.url, "tiny", concurrency=2)
    arrived = [index for index, _ in generator.stream(["a", "b", "c"])]
    assert arrived in ([1, 2, 0], [0, 2, 1]), "the first request that the server sees is the last one it answers"


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Restore the handler of SIGINT, which background jobs of a shell ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_waits_for_pending_requests(server: Server, interruptible: None):
    server.pause = 1.0
    generator, arrived = OpenAIGenerator(server.url, "tiny", concurrency=2), []
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        for index, _ in generator.stream(list("abcdef")):
            arrived.append(index)
    assert sorted(arrived) == [0, 1] and len(server.bodies) == 2


def test_closed_stream_costs_the_pending_requests(server: Server):
    generator = OpenAIGenerator(server.url, "tiny", concurrency=1)
    arrivals = generator.stream(list("abcdef"))
    next(arrivals)
    arrivals.close()
    assert len(server.bodies) <= 3


# A record


@pytest.mark.parametrize("error", [GenerationError("gone"), KeyboardInterrupt(), OSError("full")])
def test_received_completions_are_recorded(tmp_path: Path, error: BaseException):
    path = tmp_path / "calls.jsonl"
    with Ledger(path, {}) as ledger, pytest.raises(type(error)):
        RecordedGenerator(Halting(2, error), ledger).generate(["a", "b", "c", "d"], n=2, temperature=1.0, seed=0)
    assert [[c["text"] for c in record["completions"]] for record in lines(path)] == [["a0", "a1"], ["b0", "b1"]]
    with Ledger(path, {}) as ledger:
        rest = Halting()
        found = RecordedGenerator(rest, ledger).generate(["a", "b", "c", "d"], n=2, temperature=1.0, seed=0)
    assert rest.asked == ["c", "d"] and [completion.text for completion, _ in found] == ["a0", "b0", "c0", "d0"]


def _record_until_killed(path: Path) -> None:
    class Killer(Halting):
        def stream(self, prompts, sampling):
            yield from super().stream(prompts[:3], sampling)
            os.kill(os.getpid(), signal.SIGKILL)

    with Ledger(path, {}) as ledger:
        RecordedGenerator(Killer(), ledger).generate(list("abcdef"), seed=0)


def test_received_completions_survive_kill_9(tmp_path: Path):
    path = tmp_path / "calls.jsonl"
    process = multiprocessing.get_context("fork").Process(target=_record_until_killed, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and len(lines(path)) == 3
    with Ledger(path, {}) as ledger:
        rest = Halting()
        RecordedGenerator(rest, ledger).generate(list("abcdef"), seed=0)
    assert rest.asked == ["d", "e", "f"]


SCRIPT = """
import sys
from pathlib import Path
from trl_akd.generation import OpenAIGenerator
from trl_akd.generation.protocol import Usage
from trl_akd.generation.recorded import RecordedGenerator
from trl_akd.ledger import Ledger

with Ledger(Path(sys.argv[2]), {}) as ledger:
    asked = OpenAIGenerator(sys.argv[1], "tiny", concurrency=2)
    RecordedGenerator(asked, ledger).generate([f"prompt {number}" for number in range(12)], seed=0)
"""


@pytest.mark.end_to_end
def test_only_pending_requests_are_repeated_after_kill_9(server: Server, tmp_path: Path):
    server.pause = 0.1
    path = tmp_path / "calls.jsonl"
    command = [sys.executable, "-c", SCRIPT, server.url, str(path)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    while len(server.bodies) < 7:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    sent, kept = len(server.bodies), len(lines(path))
    assert sent - 4 <= kept < 12, "of two at a time, the last may have come and not been written yet"
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, timeout=120)
    assert len(lines(path)) == 12 and len(server.bodies) == sent + 12 - kept


def test_records_are_distinguished_by_generator(tmp_path: Path):
    teacher, student = Halting(), Halting()
    with Ledger(tmp_path / "calls.jsonl", {}) as ledger:
        for _ in range(2):
            RecordedGenerator(teacher, ledger, name="teacher").generate(["a"], seed=0)
            RecordedGenerator(student, ledger, name="student").generate(["a"], seed=0)
    assert teacher.asked == student.asked == ["a"]
    assert [record["name"] for record in lines(tmp_path / "calls.jsonl")] == ["teacher", "student"]


def test_refused_prompts_are_recorded_and_may_be_repeated(server: Server, tmp_path: Path):
    server.refuses = lambda body: Fault(400, "content_filter") if body["prompt"] == "b" else None
    for _ in range(2):
        with Ledger(tmp_path / "calls.jsonl", {}) as ledger:
            found = RecordedGenerator(OpenAIGenerator(server.url, "tiny"), ledger).generate(list("abc"), seed=0)
        assert [completion.finish_reason for [completion] in found] == ["stop", "refused", "stop"]
        assert found[1][0].refusal == "status 400: 'content_filter'"
    assert len(server.bodies) == 3
    server.refuses = lambda body: None
    for sent in (4, 4):
        with Ledger(tmp_path / "calls.jsonl", {}) as ledger:
            asked = OpenAIGenerator(server.url, "tiny")
            found = RecordedGenerator(asked, ledger, retry_refused=True).generate(list("abc"), seed=0)
        assert [completion.text for [completion] in found] == ["A", "B", "C"] and len(server.bodies) == sent


def test_generators_with_one_store_read_the_ledger_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    reads = []
    locate = Ledger.locate
    monkeypatch.setattr(Ledger, "locate", lambda ledger: reads.append(ledger.path) or locate(ledger))
    asked = Halting()
    for _ in range(2):
        with Ledger(tmp_path / "calls.jsonl", {}) as ledger:
            store = CompletionStore(ledger)
            for number in range(20):
                recorded = RecordedGenerator(asked, store, name=f"stage {number}", retry_refused=number % 2 == 0)
                found = recorded.generate(["a", "b"], seed=0)
                assert [completion.text for [completion] in found] == ["a0", "b0"]
    assert len(reads) == 2 and len(asked.asked) == len(lines(tmp_path / "calls.jsonl")) == 40
    assert not any(isinstance(value, Completion) for value in vars(store).values()), "the texts stay on disk"


def test_usage_is_kept(server: Server, tmp_path: Path):
    sampled = {"n": 2, "temperature": 1.0, "seed": 0}
    usages = []
    for _ in range(2):
        with Ledger(tmp_path / "calls.jsonl", {}) as ledger:
            [found] = RecordedGenerator(OpenAIGenerator(server.url, "tiny"), ledger).generate(["a"], **sampled)
        usages.append([completion.usage for completion in found])
    assert usages == [[Usage(1, 5, 6), None]] * 2


def test_usage_of_a_model():
    [[completion]] = TransformersGenerator(tiny.model(), tiny.tokenizer()).generate(["x = 1"], max_new_tokens=5)
    assert completion.usage == Usage(0, len(tiny.tokenizer()("x = 1").input_ids), completion.num_tokens)


def test_facts_and_cost_of_a_record(tmp_path: Path):
    with Ledger(tmp_path / "calls.jsonl", {}) as ledger:
        recorded = RecordedGenerator(Halting(), ledger)
        recorded.noting(origin="seed").noting(prompt="v2").generate(["a"], n=3, temperature=1.0, seed=0)
        recorded.generate(["a"], n=3, temperature=1.0, seed=0)
        recorded.generate(["b"], seed=0)
        with pytest.raises(ValueError, match="`key` is a field of all records"):
            recorded.noting(key="x")
    first, second = lines(tmp_path / "calls.jsonl")
    assert (first["origin"], first["prompt"], first["num_tokens"]) == ("seed", "v2", 6)
    assert "origin" not in second and second["num_tokens"] == 2


# Any generator


def test_generator_without_streaming_yields_all_at_once():
    class Parrot:
        def generate(self, prompts, **sampling):
            return [[Completion(prompt, None, "stop", 1)] for prompt in prompts]

    assert [(index, completion.text) for index, [completion] in stream(Parrot(), ("a", "b"))] == [(0, "a"), (1, "b")]


def test_error_of_a_refusal_names_the_problems():
    with pytest.raises(ValueError, match=r"no\. \(The prompts are those of the problems 'p', 'q'\.\)"):
        list(stream(Halting(1, ValueError("no.")), ["a", "b"], problems=["p", "q"]))
    with pytest.raises(ValueError, match=r"^no\.$"):
        list(stream(Halting(0, ValueError("no.")), ["a"]))
