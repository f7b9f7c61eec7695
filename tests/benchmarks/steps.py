"""Measurement of training steps in separate processes, in turns, with ratios to one of them."""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

Found = dict[str, float]


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


def compare(
    module: str,
    about: str | None,
    contenders: Mapping[str, str],
    rival: str,
    measure: Callable[[str, int], Found],
    pairs: Sequence[tuple[str, str]] = (),
) -> None:
    """Run a benchmark: measure one trainer in this process, or all in separate processes, and print a table.

    `pairs` are trainers whose ratios are printed as well.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--contender", choices=contenders, help="only print the result of one trainer")
    parser.add_argument("--contenders", nargs="+", choices=contenders, default=list(contenders))
    options = parser.parse_args()
    if options.contender:
        print(json.dumps(measure(options.contender, options.steps)))
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


def _resident() -> int:
    """Return the resident memory of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
