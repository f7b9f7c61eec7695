"""Budgets of any generator, and of servers that do not report usage."""

import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.generation.server import Fault, serving
from tests.generation.test_streaming import Halting
from trl_akd.generation import Completion, GenerationError, OpenAIGenerator
from trl_akd.generation.budget import Budget, BudgetedGenerator, BudgetSpent
from trl_akd.generation.protocol import SamplingParams, Usage
from trl_akd.generation.recorded import RecordedGenerator
from trl_akd.ledger import Ledger


@pytest.mark.parametrize(
    ("limits", "asked", "limit"),
    [
        ({}, 5, None),
        ({"max_requests": 3}, 3, "max_requests"),
        ({"max_requests": 5}, 5, "max_requests"),
        ({"max_tokens": 7}, 4, "max_tokens"),
        ({"max_tokens": 1}, 1, "max_tokens"),
        ({"max_requests": 2, "max_tokens": 100}, 2, "max_requests"),
        ({"max_seconds": 1e-9}, 0, "max_seconds"),
        ({"max_seconds": 1000.0}, 5, None),
    ],
)
def test_limits(limits: dict, asked: int, limit: str | None):
    generator = Halting()
    budgeted = BudgetedGenerator(generator, **limits)
    arrived = []
    try:
        arrived.extend(index for index, _ in budgeted.stream(list("abcde"), SamplingParams(max_new_tokens=2)))
    except BudgetSpent as error:
        assert asked < 5 and f"`{limit}` is reached" in str(error)
    assert generator.asked == list("abcde")[:asked]
    assert (budgeted.requests, budgeted.tokens, budgeted.exhausted) == (asked, 2 * asked, limit)


def test_time_is_checked_between_batches(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr("trl_akd.generation.budget.time.monotonic", lambda: now[0])
    budget = Budget(max_seconds=30)
    budgeted = BudgetedGenerator(Halting(), budget=budget, batch_size=2)
    arrived = []
    with pytest.raises(BudgetSpent, match="`max_seconds` is reached"):
        for index, _ in budgeted.stream(list("abcdef")):
            arrived.append(index)
            now[0] += 10
    assert arrived == [0, 1, 2, 3] and budget.seconds == 40.0


@pytest.mark.parametrize(
    ("limits", "batches"),
    [
        ({"batch_size": 2}, ["aa", "bc", "d"]),
        ({"batch_size": 1}, ["aa", "b", "c", "d"]),
        ({"batch_size": 4}, ["aabc", "d"]),
        ({"max_requests": 1}, ["a"]),
        ({"max_requests": 3}, ["aab"]),
    ],
)
def test_equal_prompts_are_sent_together(limits: dict, batches: list[str]):
    class Batches(Halting):
        def stream(self, prompts, sampling):
            called.append("".join(prompts))
            yield from super().stream(prompts, sampling)

    called: list[str] = []
    arrived = []
    try:
        arrived.extend(index for index, _ in BudgetedGenerator(Batches(), **limits).stream(list("abacd")))
    except BudgetSpent:
        assert "max_requests" in limits
    assert called == batches and arrived == [0, 2, 1, 3, 4][: len("".join(batches))]


def test_replayed_completions_cost_nothing(tmp_path: Path):
    for limit, expected in ((2, "ab"), (2, "abcd"), (2, "abcde")):
        with Ledger(tmp_path / "calls.jsonl", {}) as ledger:
            budgeted = BudgetedGenerator(Halting(), max_requests=limit)
            try:
                RecordedGenerator(budgeted, ledger).generate(list("abcde"), seed=0)
            except BudgetSpent:
                assert expected != "abcde"
        assert len((tmp_path / "calls.jsonl").read_text().splitlines()) == len(expected)


def test_unreported_tokens_count_as_the_maximum():
    class Silent(Halting):
        def stream(self, prompts, sampling):
            for index, _ in super().stream(prompts, sampling):
                yield index, [Completion("", None, "stop", None)] * 2

    budgeted = BudgetedGenerator(Silent(), max_tokens=50)
    with pytest.raises(BudgetSpent):
        budgeted.generate(list("abcde"), n=2, temperature=1.0, max_new_tokens=10)
    assert budgeted.tokens == 60


@pytest.mark.parametrize(
    ("usage", "logprobs", "tokens"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}, True, 11),
        ({"prompt_tokens": 5, "completion_tokens": 6}, True, 11),
        ({}, True, 7),
        (None, True, 7),
        (None, False, 7),
        ({"total_tokens": 0}, False, 7),
    ],
)
def test_server_that_reports_no_usage(usage: dict | None, logprobs: bool, tokens: int):
    with serving() as server:
        server.logprobs = logprobs
        answer = server.answer("/v1/completions", {"prompt": "a", "temperature": 1, "n": 2, "logprobs": 1})
        server.faults.extend([Fault(body=json.dumps({**answer, "usage": usage}))] * 2)
        generator = OpenAIGenerator(server.url, "tiny", concurrency=1)
        budgeted = BudgetedGenerator(generator, max_tokens=tokens)
        with pytest.raises(BudgetSpent, match="`max_tokens`"):
            budgeted.generate(["a", "b"], n=2, temperature=1.0, max_new_tokens=40)
        assert (budgeted.requests, budgeted.tokens) == (1, tokens)


# A server within a budget


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 8, 12, 100])
def test_requests_are_counted_exactly(limit: int, concurrency: int):
    with serving() as server:
        server.faults.extend([Fault(500)] * 3)  # repetitions count
        generator = OpenAIGenerator(server.url, "tiny", concurrency=concurrency, backoff=0.0)
        budgeted = BudgetedGenerator(generator, max_requests=limit)
        arrived = []
        try:
            arrived.extend(index for index, _ in budgeted.stream([str(n) for n in range(20)]))
        except BudgetSpent:
            assert limit < 23
        assert len(server.bodies) == budgeted.requests == min(limit, 23)
        assert len(arrived) == max(0, min(limit, 23) - 3), "all completions are yielded"


@pytest.mark.parametrize(("limit", "most"), [(1, 8), (100, 104), (60, 64), (1000, 160)])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_tokens_are_reserved_and_settled(limit: int, most: int, concurrency: int):
    """Each of 20 requests costs 8 tokens, and at most 21."""
    with serving() as server:
        generator = OpenAIGenerator(server.url, "tiny", concurrency=concurrency)
        budgeted = BudgetedGenerator(generator, max_tokens=limit)
        try:
            budgeted.generate([str(n) for n in range(20)], max_new_tokens=20)
        except BudgetSpent:
            assert budgeted.exhausted == "max_tokens"
        assert budgeted.tokens == most == 8 * len(server.bodies), "the rest is used up, and one request exceeds it"


def test_budget_does_not_block_threads():
    """A slow request does not block the others, which use all other threads."""
    with serving() as server:
        slow = Fault(body=json.dumps(server.answer("", {"prompt": "a", "temperature": 0})))
        gate = threading.Event()
        server.refuses = lambda body: slow if body["prompt"] == "0" and gate.wait(60) else None
        generator = OpenAIGenerator(server.url, "tiny", concurrency=3)
        arrivals = BudgetedGenerator(generator, max_requests=30).stream([str(n) for n in range(30)])
        first = [index for index, _ in itertools.islice(arrivals, 29)]
        gate.set()
        assert 0 not in first and [index for index, _ in arrivals] == [0]


def test_completions_are_not_held_back_at_the_end_of_a_budget():
    """The completion of a fast request is yielded while the other one, the last of the budget, is still running."""

    class SlowToSend(Budget):
        """Budget that sends no request before a reservation was tried for the second and the third prompt."""

        tried, all_tried = 0, threading.Event()

        def reserve(self, tokens, call):
            found = super().reserve(tokens, call)
            self.tried += 1
            if self.tried == 2:
                self.all_tried.set()
            return found

        def send(self, reservation):
            assert self.all_tried.wait(20)
            super().send(reservation)

    with serving() as server:
        slow = Fault(body=json.dumps(server.answer("", {"prompt": "0", "temperature": 0})))
        gate, opened = threading.Event(), []

        def refuses(body: dict) -> Fault | None:
            if body["prompt"] != "0":
                return None
            opened.append(gate.wait(20))
            return slow

        server.refuses = refuses
        generator = OpenAIGenerator(server.url, "tiny", concurrency=3)
        arrivals = BudgetedGenerator(generator, budget=SlowToSend(max_requests=2)).stream(["0", "1", "2"])
        arrived = []
        with pytest.raises(BudgetSpent, match="`max_requests` is reached"):
            for index, _ in arrivals:
                arrived.append(index)
                gate.set()
        assert arrived == [1, 0] and opened == [True]


def test_a_retry_takes_a_request_that_is_reserved():
    budget = Budget(max_requests=2)
    first, second = budget.reserve(1), budget.reserve(1)
    assert first is not None and second is not None and budget.reserve(1) is None
    budget.send(first)
    budget.send(first)
    with pytest.raises(BudgetSpent, match="`max_requests` is reached"):
        budget.send(second)
    assert budget.spent.requests == 2


def test_a_wait_ends_with_the_time_budget():
    budget = Budget(max_tokens=10, max_seconds=0.2)
    budget.reserve(10)
    with pytest.raises(BudgetSpent, match="`max_seconds` is reached"):
        budget.reserve_or_wait(1)


def test_a_wait_ends_when_the_last_request_is_sent():
    budget = Budget(max_requests=1)
    reservation = budget.reserve(1)
    assert reservation is not None
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(budget.reserve_or_wait, 1)
        budget.send(reservation)
        with pytest.raises(BudgetSpent, match="`max_requests` is reached"):
            waiting.result(60)


def test_a_call_waits_for_another_one_that_shares_its_budget():
    """Each request costs 8 tokens, but 21 are reserved, so that a limit of 40 covers two only one after the other."""
    with serving() as server:
        gate, asked = threading.Event(), threading.Event()

        def refuses(body: dict) -> None:
            asked.set()
            assert body["prompt"] != "a" or gate.wait(60)

        server.refuses = refuses
        budget = Budget(max_tokens=40)
        first, second = (
            BudgetedGenerator(OpenAIGenerator(server.url, name, concurrency=1), budget=budget) for name in ("t", "j")
        )
        with ThreadPoolExecutor(2) as pool:
            run = pool.submit(first.generate, ["a"], max_new_tokens=20)
            assert asked.wait(60)
            other = pool.submit(second.generate, ["b"], max_new_tokens=20)
            try:
                with pytest.raises(TimeoutError):
                    other.result(0.3)
            finally:
                gate.set()
            assert len(run.result()) == len(other.result()) == 1
        assert budget.spent.tokens == 16


def test_two_generators_share_a_budget():
    with serving() as server:
        budget = Budget(max_requests=5, spent=Usage(2, 10, 10))
        teacher, judge = (
            BudgetedGenerator(OpenAIGenerator(server.url, name, concurrency=1), budget=budget) for name in ("t", "j")
        )
        teacher.generate(["a", "b"])
        with pytest.raises(BudgetSpent, match="`max_requests` is reached"):
            judge.generate(["a", "b"])
        assert [body["model"] for body in server.bodies] == ["t", "t", "j"] and budget.spent == Usage(5, 25, 19)


@pytest.mark.parametrize("fault", [Fault(429, "busy"), Fault(500), Fault(body="<html>")], ids=["429", "500", "html"])
def test_no_retry_after_the_time_budget(fault: Fault, monkeypatch: pytest.MonkeyPatch):
    """A run with a faulty server ends by its time budget, not by its number of retries."""
    with serving() as server:
        now = [0.0]
        monkeypatch.setattr(Budget, "seconds", property(lambda budget: now[0]))

        def refuses(body: dict) -> Fault:
            now[0] += 4.0
            return fault

        server.refuses = refuses
        generator = OpenAIGenerator(server.url, "tiny", concurrency=1, backoff=0.0, max_retries=100)
        with pytest.raises(BudgetSpent, match="`max_seconds` is reached"):
            BudgetedGenerator(generator, max_seconds=10).generate(["a", "b"])
        assert len(server.bodies) == 3, "at 0, 4 and 8 s"


@pytest.mark.parametrize("end", ["error", "break"])
def test_reservations_are_released_when_a_call_ends_early(end: str):
    with serving() as server:
        budget = Budget(max_requests=30, max_tokens=10_000)
        generator = BudgetedGenerator(OpenAIGenerator(server.url, "tiny", concurrency=2), budget=budget)
        server.faults.extend([Fault(401)] * (2 if end == "error" else 0))
        with suppress(GenerationError):
            for _ in generator.stream([str(n) for n in range(20)], SamplingParams(max_new_tokens=50)):
                break
        sent = len(server.bodies)
        assert budget.spent.requests == sent < 20
        server.faults.clear()  # the second request may not have been sent
        generator.generate([str(n) for n in range(30 - sent)], max_new_tokens=50)
        assert len(server.bodies) == 30 and generator.exhausted == "max_requests"


@pytest.mark.parametrize(
    ("place", "error"),
    [("threading.Thread.start", RuntimeError), ("concurrent.futures.ThreadPoolExecutor.submit", KeyboardInterrupt)],
)
def test_reservations_are_released_when_no_thread_settles_them(
    place: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
):
    def fail(*args: object) -> None:
        raise error

    budget = Budget(max_requests=1)
    generator = BudgetedGenerator(OpenAIGenerator("http://localhost:9/v1", "tiny"), budget=budget)
    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(place, fail)
        generator.generate(["a"])
    assert budget.spent == Usage() and budget.reserve(1) is not None


@pytest.mark.parametrize("name", ["batch_size", "max_requests", "max_tokens", "max_seconds"])
def test_budget_too_small_for_any_request(name: str):
    with pytest.raises(ValueError, match=f"`{name}` is 0; give"):
        BudgetedGenerator(Halting(), **{name: 0})
