"""Order and indices of results."""

import itertools
from collections.abc import Iterator

import pytest

from tests.execution.conftest import HONEST
from trl_akd.execution import CodeExecutor

NAP = ("import time\ntime.sleep(0.1)\n" + HONEST[0], HONEST[1])


class TestOrder:
    """Each result has the index of its program."""

    def test_run_keeps_order(self, executor: CodeExecutor) -> None:
        batch = [(f"import time\ntime.sleep({n % 3 / 30})\nraise ValueError({n})\n", "") for n in range(20)]
        assert [result.message for result in executor.run(batch)] == [str(n) for n in range(20)]
        assert executor.run([]) == []

    def test_stream_yields_indices(self, executor: CodeExecutor) -> None:
        slow_first = [NAP, *[(f"raise ValueError({n})\n", "") for n in range(1, 20)]]
        results = dict(executor.stream(iter(slow_first)))
        assert {n: result.message for n, result in results.items()} == {0: "", **{n: str(n) for n in range(1, 20)}}

    def test_stream_reads_only_what_it_needs(self, executor: CodeExecutor) -> None:
        taken = itertools.count()
        stream = executor.stream((f"raise ValueError({next(taken)})\n", "") for _ in itertools.count())
        for _ in range(10):
            next(stream)
        assert next(taken) < 100
        stream.close()  # type: ignore[attr-defined]
        assert [result.message for result in executor.run([(f"1 / {n}\n", "") for n in (1, 2)])] == ["", ""]

    def test_stream_closed_early(self, executor: CodeExecutor) -> None:
        for _ in range(5):
            next(executor.stream([NAP, ("1 / 0\n", ""), NAP, NAP, NAP, NAP]))
            assert [result.status for result in executor.run([HONEST] * 3)] == ["passed"] * 3

    def test_programs_that_raise(self, executor: CodeExecutor) -> None:
        def programs() -> Iterator[tuple[str, str]]:
            yield NAP
            yield HONEST
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            list(executor.stream(programs()))
        assert [result.status for result in executor.run([HONEST] * 3)] == ["passed"] * 3
