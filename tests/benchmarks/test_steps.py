"""Two trainers that are measured in turns."""

from types import SimpleNamespace
from typing import Any

import pytest

from .steps import measure_in_turns


class Trainer:
    """Trainer of steps that only note their name; one of them may fail."""

    def __init__(self, name: str, steps: int, callback: Any, noted: list[str], fails_at: int | None = None) -> None:
        self.name, self.steps, self.callback, self.noted, self.fails_at = name, steps, callback, noted, fails_at

    def train(self) -> None:
        control = SimpleNamespace(should_training_stop=False)
        for step in range(1, self.steps + 1):
            if control.should_training_stop:
                return
            if step == self.fails_at:
                raise ArithmeticError(self.name)
            self.noted.append(f"{self.name}{step}")
            self.callback.on_step_end(None, SimpleNamespace(global_step=step, max_steps=self.steps), control)


def test_steps_alternate():
    noted: list[str] = []
    seconds = measure_in_turns(lambda *given: Trainer(*given, noted), ["a", "b"], 4)
    assert noted == ["a1", "b1", "a2", "b2", "a3", "b3", "a4", "b4"]
    assert [len(times) for times in seconds] == [3, 3]


@pytest.mark.parametrize("failing", ["a", "b"])
@pytest.mark.parametrize("step", [1, 2, 4])
def test_an_error_ends_both(failing: str, step: int):
    noted: list[str] = []

    def make(name: str, steps: int, callback: Any) -> Any:
        return Trainer(name, steps, callback, noted, step if name == failing else None)

    with pytest.raises(ArithmeticError, match=failing):
        measure_in_turns(make, ["a", "b"], 8)
    assert len([note for note in noted if note[0] != failing]) <= step + 1
