"""Benchmark of the parts of a training step: their shares of its processor time, with one thread.

    python -m tests.benchmarks.bench_profile [--steps 12]

The steps are those of `bench_training`, `bench_codeplan` and `bench_iterkd`, each measured in a separate process. The
first step is left out.
"""

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pkgutil import resolve_name
from typing import Any
from unittest.mock import patch

REST = "everything else: batches, targets, means, β, callbacks"
PARTS = {
    "trl_akd.akd.on_policy._generate": "text of the student",
    "transformers.models.qwen2.modeling_qwen2.Qwen2Model.forward": "teacher without its LM head",
    "transformers.models.llama.modeling_llama.LlamaModel.forward": "student without its LM head, forward",
    "trl_akd.losses.fused_linear._weighted_sum": "fused loss, with the LM heads and its gradients",
    "accelerate.Accelerator.backward": "backward pass of the student's backbone",
    "accelerate.Accelerator.clip_grad_norm_": "clipping and optimizer",
    "torch.optim.SGD.step": "clipping and optimizer",
}
CONTENDERS = {
    "AKD": ("bench_training", "akd"),
    "AKD, text of the student": ("bench_training", "on_policy"),
    "CodePLAN": ("bench_codeplan", "weighted"),
    "IterKD, `ce`": ("bench_iterkd", "supervised"),
    "IterKD, `ce` and `dpo`": ("bench_iterkd", "iterkd"),
}


class Shares:
    """Processor time of each part. A part inside another one counts as the outer one."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._is_inside = False

    def counted(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._is_inside:
                return function(*args, **kwargs)
            self._is_inside, start = True, time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self._is_inside = False
                self.seconds[part] += time.process_time() - start

        return call


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Count the time of the parts of all steps after the first, in seconds."""
    from .steps import Clock

    shares, result, end_of_step = Shares(), {}, Clock.on_step_end
    started: list[float] = []

    def on_step_end(clock: Clock, *args: Any, **kwargs: Any) -> None:
        end_of_step(clock, *args, **kwargs)
        if not started:
            started.append(time.process_time())
            shares.seconds.clear()
        result.update(shares.seconds, **{REST: time.process_time() - started[0] - sum(shares.seconds.values())})

    patches = [patch.object(Clock, "on_step_end", on_step_end)]
    for path, part in PARTS.items():
        owner, _, name = path.rpartition(".")
        target = resolve_name(owner)
        patches.append(patch.object(target, name, shares.counted(getattr(target, name), part)))
    for each in patches:
        each.start()
    try:
        yield result
    finally:
        for each in patches:
            each.stop()


def measure(contender: str, steps: int) -> dict[str, float]:
    """Train for a few steps in this process, and return the seconds of each part."""
    from .steps import measure as measure_steps

    module, name = CONTENDERS[contender]
    with measured() as seconds:
        measure_steps(import_module(f"{__package__}.{module}").make_trainer, name, steps)
    return seconds


def table(found: dict[str, dict[str, float]]) -> str:
    """Return a table of the shares of parts in each step."""
    lines = [f"| part | {' | '.join(found)} |", "|---" * (1 + len(found)) + "|"]
    for part in [*dict.fromkeys(PARTS.values()), REST]:
        shares = [seconds.get(part, 0.0) / sum(seconds.values()) for seconds in found.values()]
        lines.append(f"| {part} | {' | '.join(f'{share:.0%}' if share else '' for share in shares)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--contender", choices=CONTENDERS, help="only print the seconds of one trainer's parts")
    options = parser.parse_args()
    if options.contender:
        print(json.dumps(measure(options.contender, options.steps)))
        return
    found = {}
    for contender in CONTENDERS:
        command = [sys.executable, "-m", __spec__.name, "--contender", contender, "--steps", str(options.steps)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found[contender] = json.loads(output.strip().splitlines()[-1])
    print(table(found))


if __name__ == "__main__":
    main()
