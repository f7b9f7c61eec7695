r"""Benchmark of time and peak memory of the fused divergence and of rivals, forward and backward, with LM heads.

    python -m tests.benchmarks.bench_losses --tokens 1024 --vocab 49152 [--repeats 5] [--json PATH]
    python -m tests.benchmarks.bench_losses --tokens 2048 --vocab 152064 --student_hidden 896 --teacher_hidden 3584
    python -m tests.benchmarks.bench_losses --once --tokens 8192 --vocab 152064 --student_hidden 896 \
        --teacher_hidden 3584

For the time, the losses take turns in one process. For the memory, each runs in a separate process: its peak without
its inputs, including gradients. With `--once`, each loss runs once, in the process that measures its memory; on two
cores, the last command above takes about half an hour. All tokens have a weight, so TRL's GKD loss does not project
prompts in vain. The four products are those of any fused loss: both projections, and the two of the gradient. Liger's
loss is measured if `liger_kernel` is installed. No test depends on the speed; it is checked that the losses are equal.
If other programs use the cores, `--clock cpu --threads 1` is more accurate than wall-clock time.
"""

import argparse
import gc
import importlib.util
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
import torch.nn.functional as F
from torch import Tensor

from trl_akd.losses import DenseSignal, LMHead, SparseSignal, TeacherSignal, fused_divergence

BASELINE = "TRL GKD, all logits"
COPIES_OF_ALL_LOGITS = 9  # What the baseline holds at its peak, measured where it fits; elsewhere it is left out.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """Sizes, dtype, device and threads of a measurement."""

    tokens: int
    vocab: int
    student_hidden: int
    teacher_hidden: int
    dtype: str
    device: str
    threads: int

    def inputs(self) -> "Inputs":
        """Draw hidden states and heads whose logits have a standard deviation of about 2."""
        generator = torch.Generator().manual_seed(0)

        def draw(rows: int, width: int, deviation: float = 1.0) -> Tensor:
            drawn = torch.randn(rows, width, generator=generator).mul_(deviation)
            return drawn.to(self.device, getattr(torch, self.dtype))

        return Inputs(
            draw(self.tokens, self.student_hidden).requires_grad_(),
            draw(self.vocab, self.student_hidden, 2 / self.student_hidden**0.5).requires_grad_(),
            draw(self.tokens, self.teacher_hidden),
            draw(self.vocab, self.teacher_hidden, 2 / self.teacher_hidden**0.5),
        )


@dataclass(frozen=True)
class Inputs:
    """Hidden states [N, H] and LM heads [V, H] of both models."""

    student_hidden: Tensor
    student_weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor

    def mask(self) -> Tensor:
        return torch.ones(1, len(self.student_hidden), dtype=torch.long, device=self.student_hidden.device)

    def forget_gradients(self) -> None:
        self.student_hidden.grad = self.student_weight.grad = None


def fused(
    inputs: Inputs, divergence: str, signal: TeacherSignal | None = None, half_logits: bool = False, **knobs: float
) -> Tensor:
    tokens = len(inputs.student_hidden)
    return fused_divergence(
        inputs.student_hidden,
        LMHead(inputs.student_weight),
        signal or DenseSignal(inputs.teacher_hidden, LMHead(inputs.teacher_weight)),
        token_weights=torch.full((tokens,), 1 / tokens, device=inputs.student_hidden.device),
        divergence=divergence,
        knobs=knobs,
        half_logits=half_logits,
    ).loss


def sparse(inputs: Inputs) -> Tensor:
    """The mix computed from 64 log-probabilities per token, as from a cache."""
    tokens, vocabulary = len(inputs.student_hidden), len(inputs.student_weight)
    k, device = min(64, vocabulary - 1), inputs.student_hidden.device
    ids = torch.arange(k, device=device).expand(tokens, k)
    log_prob = torch.full((tokens, k), -math.log(k + 1), device=device)
    return fused(inputs, "akd", SparseSignal(ids, log_prob, log_prob[:, 0]), beta=0.3)


def trl_gkd(inputs: Inputs) -> Tensor:
    from trl.experimental.gkd import GKDTrainer

    with torch.no_grad():
        teacher_logits = F.linear(inputs.teacher_hidden, inputs.teacher_weight)
    student_logits = F.linear(inputs.student_hidden, inputs.student_weight)
    return GKDTrainer.generalized_jsd_loss(student_logits[None], teacher_logits[None], labels=inputs.mask(), beta=0.0)


def trl_chunked(inputs: Inputs) -> Tensor:
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    loss, _, _ = _chunked_divergence_loss(
        inputs.student_hidden[None],
        inputs.teacher_hidden[None],
        inputs.student_weight,
        inputs.teacher_weight,
        inputs.mask(),
        beta=0.0,
    )
    return loss


def liger(inputs: Inputs) -> Tensor:
    """Not compiled: on a CPU, compilation would take longer than the benchmark."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss: Tensor = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=False)(
        inputs.student_hidden,
        inputs.student_weight,
        inputs.teacher_hidden,
        inputs.teacher_weight,
        torch.zeros(len(inputs.student_hidden), dtype=torch.long, device=inputs.student_hidden.device),
    )
    return loss


def products(inputs: Inputs) -> Tensor:
    """The matrix products of a fused loss, in chunks of 256 tokens, without a loss."""
    student, teacher = LMHead(inputs.student_weight.detach()), LMHead(inputs.teacher_weight)
    gradient = torch.zeros_like(student.weight)
    logits = gradient.new_empty(min(256, len(inputs.student_hidden)), len(gradient))
    with torch.no_grad():
        for hidden, teacher_hidden in zip(
            inputs.student_hidden.split(256), inputs.teacher_hidden.split(256), strict=True
        ):
            products = logits[: len(hidden)]
            student.project(hidden, out=products)
            teacher.project(teacher_hidden, out=products)
            products @ student.weight
            gradient.addmm_(products.t(), hidden)
    return torch.zeros((), requires_grad=True)


CONTENDERS: dict[str, Callable[[Inputs], Tensor]] = {
    "fused, beta 0": lambda inputs: fused(inputs, "akd", beta=0.0),
    "fused, beta 0.3": lambda inputs: fused(inputs, "akd", beta=0.3),
    "fused, jsd": lambda inputs: fused(inputs, "jsd"),
    "fused, 64 tokens and tail": sparse,
    BASELINE: trl_gkd,
    "TRL chunked divergence": trl_chunked,
    "four products alone": products,
}
if importlib.util.find_spec("liger_kernel"):
    CONTENDERS["Liger chunked JSD"] = liger
SAME_LOSS = ("fused, beta 0", BASELINE, "TRL chunked divergence", "Liger chunked JSD")


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure_times(case: Case, names: list[str], repeats: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Measure the seconds of each loss in several rounds, after a warm-up."""
    inputs = case.inputs()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    losses = {}
    for turn in range(repeats + 1):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            inputs.forget_gradients()
            synchronize(case.device)
            start = clock()
            loss = CONTENDERS[name](inputs)
            loss.backward()
            synchronize(case.device)
            losses[name] = loss.item()
            if turn:
                seconds[name].append(clock() - start)
            print(f"turn {turn}: {name}", file=sys.stderr)
    check_losses({name: loss for name, loss in losses.items() if name in SAME_LOSS}, case.dtype)
    return seconds


def check_losses(losses: dict[str, float], dtype: str) -> None:
    tolerance = 1e-4 if dtype == "float32" else 5e-2
    if max(losses.values()) - min(losses.values()) > tolerance * max(losses.values()):
        raise ArithmeticError(f"the losses differ, so their times cannot be compared: {losses}")


@dataclass(frozen=True)
class Once:
    """Result of one forward and backward pass in a new process: the memory is its peak without the inputs."""

    bytes: int
    wall: float
    cpu: float
    loss: float


def measure_once(case: Case, name: str) -> Once:
    """Measure a forward and backward pass in this process."""
    run = CONTENDERS[name]
    small = Case(**(asdict(case) | {"tokens": 8, "vocab": 128})).inputs()
    run(small).backward()  # Libraries load, thread pools start.
    inputs = case.inputs()
    gc.collect()
    if case.device == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak is reset.
        before = resident_bytes("VmRSS")
    starts = {name: clock() for name, clock in CLOCKS.items()}
    loss = run(inputs)
    loss.backward()
    synchronize(case.device)
    seconds = {name: clock() - starts[name] for name, clock in CLOCKS.items()}
    peak = torch.cuda.max_memory_allocated() if case.device == "cuda" else resident_bytes("VmHWM")
    return Once(peak - before, **seconds, loss=loss.item())


def resident_bytes(field: str) -> int:
    [kilobytes] = re.findall(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return 1024 * int(kilobytes)


def measure_once_elsewhere(case: Case, name: str) -> Once:
    command = [sys.executable, "-m", "tests.benchmarks.bench_losses", "--only", name]
    for field, value in asdict(case).items():
        command += [f"--{field}", str(value)]
    print(f"alone: {name}", file=sys.stderr)
    return Once(**json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))


def contenders_that_fit(case: Case) -> list[str]:
    """Return all losses, except that with full logits if they do not fit into memory."""
    needed = COPIES_OF_ALL_LOGITS * case.tokens * case.vocab * getattr(torch, case.dtype).itemsize
    if case.device == "cuda":
        free, _ = torch.cuda.mem_get_info()
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed < 0.9 * free:
        return list(CONTENDERS)
    print(f"{BASELINE} left out: about {needed // MIB} MiB needed, {free // MIB} MiB free.", file=sys.stderr)
    return [name for name in CONTENDERS if name != BASELINE]


def table(seconds: dict[str, list[float]], peaks: dict[str, int]) -> str:
    """Return a Markdown table of the results and their ratios to the baseline."""
    rows = [
        "| loss | median s | min-max s | median time ratio | min time ratio | peak MiB | memory ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    reference = BASELINE if BASELINE in seconds else next(iter(seconds))
    for name, turns in seconds.items():
        median_ratio = statistics.median(turns) / statistics.median(seconds[reference])
        rows.append(
            f"| {name} | {statistics.median(turns):.3f} | {min(turns):.3f}-{max(turns):.3f} | {median_ratio:.2f} "
            f"| {min(turns) / min(seconds[reference]):.2f} | {peaks[name] / MIB:.0f} "
            f"| {peaks[name] / peaks[reference]:.2f} |"
        )
    return "\n".join(rows)


def environment() -> dict[str, str]:
    return {
        "torch": torch.__version__,
        "trl": version("trl"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "load": " ".join(f"{load:.1f}" for load in os.getloadavg()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--student_hidden", type=int, default=576)
    parser.add_argument("--teacher_hidden", type=int, default=2048)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--once", action="store_true", help="run each loss once, in a process of its own")
    parser.add_argument("--only", choices=CONTENDERS, help="only print the result of running one loss once")
    arguments = vars(parser.parse_args())
    repeats, clock, path, once, only = (arguments.pop(name) for name in ("repeats", "clock", "json", "once", "only"))
    case = Case(**arguments)
    torch.set_num_threads(case.threads)
    if only:
        print(json.dumps(asdict(measure_once(case, only))))
        return
    names = contenders_that_fit(case)
    alone = {name: measure_once_elsewhere(case, name) for name in names}
    peaks = {name: found.bytes for name, found in alone.items()}
    if once:
        check_losses({name: found.loss for name, found in alone.items() if name in SAME_LOSS}, case.dtype)
        seconds = {name: [getattr(found, clock)] for name, found in alone.items()}
    else:
        seconds = measure_times(case, names, repeats, CLOCKS[clock])
    print(f"{case}\n{environment()}\n{clock} clock\n\n{table(seconds, peaks)}")
    if path:
        numbers = {
            "case": asdict(case),
            "clock": clock,
            "environment": environment(),
            "seconds": seconds,
            "peak_bytes": peaks,
        }
        path.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
