"""Measurement of training steps: of trainers in separate processes, or of two trainers in turns, step by step."""

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback

_MIN_STEPS_IN_TURNS = 20

Found = dict[str, float]
MakeTrainer = Callable[[str, int, TrainerCallback], Trainer]
"""Function of the name of a trainer, the number of its steps, and a callback."""


class Clock(TrainerCallback):
    """Measure the time from each optimizer step to the next, and the memory before the first.

    Trainers generate text before or after they announce the beginning of a step, so only ends are compared.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.before = 0
        self.ended: float | None = None

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.before = self.before or _resident()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        now = time.process_time()
        if self.ended is not None:
            self.seconds.append(now - self.ended)
        self.ended = now

    def found(self) -> Found:
        """Seconds of the fastest step, and increase of the peak memory in bytes."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"seconds": min(self.seconds), "bytes": peak - self.before}


class Turns(Clock):
    """Clock of one of two trainers that train in turns, one step at a time, each in its own thread."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = threading.Semaphore(0)
        self.has_ended = False
        self.other: Turns

    def train(self, trainer: Trainer) -> None:
        """Train when it is this trainer's turn, and let the other one continue at the end or after an error."""
        self.turn.acquire()
        try:
            trainer.train()
        finally:
            self.has_ended = True
            self.other.turn.release()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_step_end()
        if state.global_step == state.max_steps:
            return
        if self.other.has_ended:
            control.should_training_stop = True  # the other one has failed
            return
        self.other.turn.release()
        self.turn.acquire()
        self.ended = time.process_time()


def measure(make_trainer: MakeTrainer, contender: str, steps: int) -> Found:
    """Train for a few steps in this process, and return the time of the fastest step (s) and peak memory (bytes)."""
    clock = Clock()
    make_trainer(contender, steps, clock).train()
    return clock.found()


def measure_in_turns(make_trainer: MakeTrainer, contenders: Sequence[str], steps: int) -> list[list[float]]:
    """Train two trainers in turns, and return the processor time of each of their steps but the first, in seconds."""
    clocks = [Turns(), Turns()]
    clocks[0].other, clocks[1].other = clocks[1], clocks[0]
    trainers = [make_trainer(name, steps, clock) for name, clock in zip(contenders, clocks, strict=True)]
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(clock.train, trainer) for clock, trainer in zip(clocks, trainers, strict=True)]
        clocks[0].turn.release()
        for run in as_completed(runs):
            run.result()
    return [clock.seconds for clock in clocks]


def compare(
    module: str,
    about: str | None,
    contenders: Mapping[str, str],
    rival: str,
    make_trainer: MakeTrainer,
    pairs: Sequence[tuple[str, str]] = (),
) -> None:
    """Run a benchmark: measure one trainer in this process, or all in separate processes, and print a table.

    `pairs` are trainers whose ratios are printed as well. With `--in_turns`, two trainers run in this process.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--json", type=Path)
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--contender", choices=contenders, help="only print the result of one trainer")
    chosen.add_argument("--contenders", nargs="+", choices=contenders, default=list(contenders))
    chosen.add_argument(
        "--in_turns", nargs=2, choices=contenders, help="train two trainers in this process, a step of each in turns"
    )
    options = parser.parse_args()
    if options.contender:
        print(json.dumps(measure(make_trainer, options.contender, options.steps)))
        return
    if options.in_turns:
        if options.steps < _MIN_STEPS_IN_TURNS:
            parser.error(f"--steps is {options.steps}; give at least {_MIN_STEPS_IN_TURNS} with --in_turns.")
        seconds = measure_in_turns(make_trainer, options.in_turns, options.steps)
        print(
            f"{' / '.join(options.in_turns)}: {_summary([one / other for one, other in zip(*seconds, strict=True)])}"
        )
        if options.json:
            options.json.write_text(json.dumps(dict(zip(options.in_turns, seconds, strict=True)), indent=2) + "\n")
        return
    found: dict[str, list[Found]] = {name: [] for name in contenders if name in options.contenders}
    for _ in range(options.repeats):
        for name, runs in found.items():
            command = [sys.executable, "-m", module, "--contender", name, "--steps", str(options.steps)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            runs.append(json.loads(output.strip().splitlines()[-1]))
    print(_table(found, contenders, rival if rival in found else next(iter(found))))
    for name, other in pairs:
        if name in found and other in found:
            print(f"{contenders[name]} / {contenders[other]}: time {_ratio(found, name, other, 'seconds')}, ", end="")
            print(f"memory {_ratio(found, name, other, 'bytes')}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def _table(found: Mapping[str, list[Found]], contenders: Mapping[str, str], rival: str) -> str:
    """Return a table of the ratios to the baseline in the same round: median and range."""
    lines = [f"| step of | time / {rival} | peak memory / {rival} | seconds | MiB |", "|---|---|---|---|---|"]
    for name, runs in found.items():
        cells = [contenders[name]]
        for key in ("seconds", "bytes"):
            cells.append(_ratio(found, name, rival, key))
        cells.append(f"{statistics.median(run['seconds'] for run in runs):.3f}")
        cells.append(f"{statistics.median(run['bytes'] for run in runs) / 2**20:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratio(found: Mapping[str, list[Found]], name: str, rival: str, key: str) -> str:
    ratios = [run[key] / other[key] for run, other in zip(found[name], found[rival], strict=True)]
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def _summary(ratios: Sequence[float]) -> str:
    """Return the median of ratios, its 95 % confidence interval by order statistics, and the quartiles."""
    ordered, count = sorted(ratios), len(ratios)
    low = math.floor(count / 2 - 0.98 * math.sqrt(count)) - 1
    lower, median, upper = statistics.quantiles(ordered, n=4)
    return (
        f"median of {count} ratios {median:.4f}, 95 % confidence interval {ordered[low]:.4f} to "
        f"{ordered[count - 1 - low]:.4f}, half of them between {lower:.3f} and {upper:.3f}"
    )


def _resident() -> int:
    """Return the resident memory of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
