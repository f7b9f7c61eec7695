"""Results and errors of the main process are broadcast to all processes."""

from types import SimpleNamespace
from typing import Any

import pytest

from trl_akd.distributed import is_main_process, run_on_main_and_broadcast
from trl_akd.generation import transformers_generator


def process(*, main: bool) -> Any:
    return SimpleNamespace(num_processes=2, is_main_process=main)


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Pass the messages of the main process to the other one, which calls later."""
    carried: list[Any] = []

    def broadcast(objects: list[Any]) -> list[Any]:
        if objects != [None]:
            carried[:] = objects
        return list(carried)

    monkeypatch.setattr("trl_akd.distributed.broadcast_object_list", broadcast)
    return carried


def test_result_of_the_main_process(wire: list[Any]):
    assert run_on_main_and_broadcast(process(main=True), lambda: {"known": 1}) == {"known": 1}
    assert run_on_main_and_broadcast(process(main=False), lambda: pytest.fail("the main process alone looks")) == {
        "known": 1
    }
    assert (
        run_on_main_and_broadcast(None, lambda: 3) == 3
        and is_main_process(None)
        and not is_main_process(process(main=False))
    )


@pytest.mark.parametrize("main", [True, False])
def test_error_of_the_main_process_is_raised_on_all(wire: list[Any], main: bool):
    def fail() -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        run_on_main_and_broadcast(process(main=True), fail)
    with pytest.raises(OSError, match="full"):
        run_on_main_and_broadcast(process(main=main), fail)


@pytest.mark.parametrize("other", [[["b"], ["c"], None], [["b"], None, None]])
def test_processes_continue_until_the_last_is_done(monkeypatch: pytest.MonkeyPatch, other: list[Any]):
    theirs = iter(other)
    monkeypatch.setattr(transformers_generator, "gather_object", lambda mine: [*mine, (next(theirs), None)])
    found = [written for batch in transformers_generator._in_step(iter([["a"]])) for written in batch]
    assert found == ["a", *(text for batch in other for text in batch or ())]


def test_error_of_one_process_is_raised_on_all(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        transformers_generator, "gather_object", lambda mine: [*mine, (None, ValueError("NaN over there"))]
    )
    with pytest.raises(ValueError, match="NaN over there"):
        next(transformers_generator._in_step(iter([["a"]])))
