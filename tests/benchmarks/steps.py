"""Measurement of training steps: of trainers in separate processes, or of two trainers in turns, step by step."""

import argparse
import itertools
import json
import math
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback

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

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.turn = threading.Semaphore(0)
        self.other: Turns

    def train(self, trainer: Trainer) -> None:
        """Train when it is this trainer's turn, and let the other one continue at the end."""
        self.turn.acquire()
        try:
            trainer.train()
        finally:
            self.other.turn.release()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        super().on_step_end()
        if len(self.seconds) + 1 < self.steps:  # the first step is not among them
            self.other.turn.release()
            self.turn.acquire()
            self.ended = time.process_time()


def measure(make_trainer: MakeTrainer, contender: str, steps: int) -> Found:
    """Train for a few steps in this process, and return the time of the fastest step (s) and peak memory (bytes)."""
    clock = Clock()
    make_trainer(contender, steps, clock).train()
    return clock.found()


def alternate(make_trainer: MakeTrainer, contenders: Sequence[str], steps: int) -> list[float]:
    """Train two trainers in turns, and return the ratio of each step's time to the mean of the two steps around it.

    If the speed of the machine changes, it changes for both alike.
    """
    clocks = [Turns(steps), Turns(steps)]
    clocks[0].other, clocks[1].other = clocks[1], clocks[0]
    trainers = [make_trainer(name, steps, clock) for name, clock in zip(contenders, clocks, strict=True)]
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(clock.train, trainer) for clock, trainer in zip(clocks, trainers, strict=True)]
        clocks[0].turn.release()
        for run in runs:
            run.result()
    first, second = (clock.seconds for clock in clocks)
    return [time / statistics.mean(around) for time, around in zip(first[1:], itertools.pairwise(second), strict=True)]


def compare(
    module: str,
    about: str | None,
    contenders: Mapping[str, str],
    rival: str,
    make_trainer: MakeTrainer,
    pairs: Sequence[tuple[str, str]] = (),
) -> None:
    """Run a benchmark: measure one trainer in this process, or all in separate processes, and print a table.

    `pairs` are trainers whose ratios are printed as well. With `--alternate`, two trainers run in this process.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--contender", choices=contenders, help="only print the result of one trainer")
    parser.add_argument("--contenders", nargs="+", choices=contenders, default=list(contenders))
    parser.add_argument("--alternate", nargs=2, choices=contenders, help="train two trainers in turns, step by step")
    options = parser.parse_args()
    if options.contender:
        print(json.dumps(measure(make_trainer, options.contender, options.steps)))
        return
    if options.alternate:
        print(_summary(alternate(make_trainer, options.alternate, options.steps)))
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
    low = max(0, math.floor(count / 2 - 0.98 * math.sqrt(count)))
    lower, median, upper = statistics.quantiles(ordered, n=4)
    return (
        f"median of {count} ratios {median:.4f}, 95 % confidence interval {ordered[low]:.4f} to "
        f"{ordered[count - 1 - low]:.4f}, half of them between {lower:.3f} and {upper:.3f}"
    )


def _resident() -> int:
    """Return the resident memory of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
