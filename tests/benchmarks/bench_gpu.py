"""Benchmark of the fused loss and of whole training steps on a GPU, with random weights: `make bench-gpu`.

    python -m tests.benchmarks.bench_gpu [--output docs/benchmarks_gpu.md] [--repeats 10] [--minutes 8] [--dry_run]

The losses of a size take turns in one process, forward and backward, in bfloat16. The floor is the time of the four
matrix products that every loss with exact gradients needs. What is not installed or fails is left out, and the page
says why. Training steps are measured on one GPU, and with FSDP2 where there are several. Each part runs in its own
process, and the page is written after each, so that the failure of one costs no other. `--dry_run` runs the same code
on a CPU with tiny sizes, where its figures mean nothing.
"""

import argparse
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .bench_losses import BASELINE, MIB, Case, Inputs, fused, trl_chunked, trl_gkd

SIZES = [(8192, 128_256, 2048, 4096), (8192, 151_936, 896, 3584)]
TINY = [(32, 500, 8, 16)]
FLOOR, PLAIN, KERNELS = "four matrix products", "trl_akd without kernels", "trl_akd"
STEPS = {"sft": "SFT (TRL)", "akd": "AKD"}
FSDP = "recipes/accelerate_configs/fsdp2.yaml"


def products(inputs: Inputs) -> None:
    """The projections of both models, and the gradients of the student's hidden states and head."""
    with torch.no_grad():
        logits = inputs.student_hidden @ inputs.student_weight.T
        inputs.teacher_hidden @ inputs.teacher_weight.T
        logits @ inputs.student_weight
        logits.T @ inputs.student_hidden


@contextmanager
def without_kernels() -> Any:
    os.environ["TRL_AKD_TRITON"] = "0"
    try:
        yield
    finally:
        del os.environ["TRL_AKD_TRITON"]


def plain(inputs: Inputs) -> Tensor:
    with without_kernels():
        return fused(inputs, "akd", beta=0.3)


def liger_distill(inputs: Inputs) -> Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    labels = torch.zeros(len(inputs.student_hidden), dtype=torch.int64, device=inputs.student_hidden.device)
    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0)
    return loss(inputs.student_hidden, inputs.student_weight, inputs.teacher_hidden, inputs.teacher_weight, labels)


def liger_fused_linear_jsd(inputs: Inputs) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearJSD

    return LigerFusedLinearJSD()(
        inputs.student_hidden, inputs.student_weight, inputs.teacher_hidden, inputs.teacher_weight, None
    )


CONTENDERS: dict[str, Callable[[Inputs], Tensor | None]] = {
    FLOOR: products,
    KERNELS: lambda inputs: fused(inputs, "akd", beta=0.3),
    "trl_akd, half_logits": lambda inputs: fused(inputs, "akd", beta=0.3, half_logits=True),
    "trl_akd, adaptive_alpha": lambda inputs: fused(inputs, "adaptive_alpha"),
    PLAIN: plain,
    "TRL chunked divergence, forward KL": trl_chunked,
    f"{BASELINE}, forward KL": trl_gkd,
    "Liger distill_jsd": liger_distill,
    "Liger fused_linear_jsd": liger_fused_linear_jsd,
}


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Return milliseconds and peak bytes beside the inputs of each loss, and why others were left out."""
    inputs, on_gpu = case.inputs(), case.device == "cuda"
    left_out: dict[str, str] = {}

    def run(name: str) -> float:
        inputs.forget_gradients()
        if on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        loss = CONTENDERS[name](inputs)
        if loss is not None:
            loss.backward()
        if on_gpu:
            torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - start)

    peaks = {}
    for name in CONTENDERS:
        try:
            for _ in range(2):  # kernels compile, and matrix products choose their algorithms
                run(name)
            inputs.forget_gradients()
            if on_gpu:
                torch.cuda.empty_cache()
                before = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
                run(name)
                peaks[name] = torch.cuda.max_memory_allocated() - before
            else:
                peaks[name] = 0
        except torch.OutOfMemoryError:
            left_out[name] = "out of memory"
        except Exception as error:  # whatever other packages raise, and Triton's compiler
            left_out[name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:120]}"
        inputs.forget_gradients()
        if on_gpu:
            torch.cuda.empty_cache()
    times: dict[str, list[float]] = {name: [] for name in peaks}
    for turn in range(repeats):
        names = list(times)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            times[name].append(run(name))
    return {"times": times, "peaks": peaks, "left_out": left_out}


def table(case: Case, times: dict[str, list[float]], peaks: dict[str, int], left_out: dict[str, str]) -> str:
    gradients = 4 * case.vocab * case.student_hidden
    lines = [
        f"{case.tokens:,} tokens, vocabulary {case.vocab:,}, hidden sizes {case.student_hidden:,} and "
        f"{case.teacher_hidden:,}, {case.dtype}. The gradient of the head alone takes {gradients / MIB:,.0f} MiB in "
        "float32.",
        "",
        "| loss | median (ms) | range (ms) | time / four products | peak memory (MiB) |",
        "|---|---|---|---|---|",
    ]
    floor = statistics.median(times.get(FLOOR, [math.nan]))
    for name, turns in times.items():
        median = statistics.median(turns)
        lines.append(
            f"| {name} | {median:.1f} | {min(turns):.1f} to {max(turns):.1f} | {median / floor:.2f} "
            f"| {peaks[name] / MIB:,.0f} |"
        )
    lines += [f"\nLeft out: {name} ({reason})." for name, reason in left_out.items()]
    return "\n".join(lines)


def environment(device: str) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("torch", "triton", "transformers", "trl", "liger-kernel"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "-"
    if device == "cuda":
        found["GPU"] = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
        found["CUDA"] = str(torch.version.cuda or torch.version.hip)
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found["driver"] = _output(query).partition("\n")[0]
    found["commit"] = _output(["git", "describe", "--always", "--dirty"])
    return found


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "-"


def train(contender: str, dry_run: bool) -> None:
    """Train for a few steps with random weights, and print the median milliseconds of a step and the peak memory."""
    import tempfile

    from datasets import Dataset
    from transformers import AutoModelForCausalLM, Qwen2Config, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from tests import tiny
    from trl_akd import AKDConfig, AKDTrainer

    device = "cpu" if dry_run else "cuda"
    words, length, rows, steps = (512, 32, 4, 3) if dry_run else (151_936, 2048, 4, 8)
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    sizes = {"student": (896, 4864, 24, 14, 2), "teacher": (3584, 18_944, 28, 28, 4)}
    if dry_run:
        sizes = dict.fromkeys(sizes, (32, 64, 1, 2, 2))

    def model(name: str) -> Any:
        config = Qwen2Config(
            vocab_size=words, max_position_embeddings=4096, pad_token_id=256, eos_token_id=257, bos_token_id=None,
            **dict(zip(names, sizes[name], strict=True)),
        )  # fmt: skip
        with torch.device(device):
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32 if dry_run else torch.bfloat16)

    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.synchronize()
            self.start = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.synchronize()
            seconds.append(time.perf_counter() - self.start)

        def synchronize(self) -> None:
            if device == "cuda":
                torch.cuda.synchronize()

    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(words, (rows * steps, length), generator=generator).tolist()
    data = Dataset.from_dict({"input_ids": tokens, "labels": tokens})
    settings: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(), "report_to": "none", "max_steps": steps, "seed": 0, "max_length": length,
        "per_device_train_batch_size": rows, "gradient_checkpointing": True, "save_strategy": "no",
        "bf16": not dry_run, "use_cpu": dry_run, "loss_type": "nll",
    }  # fmt: skip
    common: dict[str, Any] = {
        "model": model("student"), "train_dataset": data, "processing_class": tiny.tokenizer(), "callbacks": [Clock()],
    }  # fmt: skip
    if contender == "sft":
        trainer = SFTTrainer(args=SFTConfig(**settings), **common)
    else:
        trainer = AKDTrainer(args=AKDConfig(lmbda=0.0, **settings), teacher_model=model("teacher"), **common)
    trainer.train()
    if int(os.environ.get("RANK", "0")) == 0:
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
        print(json.dumps({"ms": 1000 * statistics.median(seconds[2:]), "bytes": peak, "tokens": rows * length}))


class Parts:
    """Parts of the benchmark, which run in processes until the time is up."""

    def __init__(self, minutes: float, dry_run: bool) -> None:
        self.end = time.monotonic() + 60 * minutes
        self.arguments = ["--dry_run"] if dry_run else []

    def run(self, *arguments: str, launcher: Sequence[str] = ()) -> tuple[dict[str, Any], str]:
        """Return the figures of a part, or why there are none."""
        seconds = self.end - time.monotonic()
        if seconds <= 0:
            return {}, "no time was left"
        command = [sys.executable, *launcher, "-m", __spec__.name, *arguments, *self.arguments]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, **pipes, start_new_session=True) as process:
            try:
                output, errors = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                return {}, f"no result in {seconds:.0f} s"
        try:
            return json.loads(output.strip().splitlines()[-1]), ""
        except (IndexError, json.JSONDecodeError):
            return {}, (errors.strip().splitlines() or [f"exit status {process.returncode}"])[-1][:200]


def losses_table(parts: Parts, case: Case, size: int, repeats: int) -> str:
    found, reason = parts.run("--losses", str(size), "--repeats", str(repeats))
    return table(case, **found) if found else f"Losses of {case.tokens:,} tokens x {case.vocab:,} failed: {reason}."


def steps_table(parts: Parts, gpus: int) -> str:
    """Measure training steps on one GPU, and on all if there are several."""
    lines = ["| training step | median (ms) | tokens per second and GPU | peak memory (MiB) |", "|---|---|---|---|"]
    notes = []
    launchers: dict[str, list[str]] = {"": []}
    if gpus > 1:
        launch = ["-m", "accelerate.commands.launch", "--config_file", FSDP, "--num_processes", str(gpus)]
        launchers[f", FSDP2 on {gpus} GPUs"] = launch
    for suffix, launcher in launchers.items():
        for contender, title in STEPS.items():
            found, reason = parts.run("--train", contender, launcher=launcher)
            if reason:
                notes.append(f"\n{title}{suffix} failed: {reason}.")
                continue
            lines.append(
                f"| {title}{suffix} | {found['ms']:.0f} | {1000 * found['tokens'] / found['ms']:,.0f} "
                f"| {found['bytes'] / MIB:,.0f} |"
            )
    return "\n".join([*lines, *notes])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=8, help="time for the whole benchmark")
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    parser.add_argument("--dry_run", action="store_true", help="tiny sizes on a CPU")
    parser.add_argument("--losses", type=int, help="only measure the losses of one size, and print figures as JSON")
    parser.add_argument("--train", choices=STEPS, help="only run one trainer, and print its figures as JSON")
    options = parser.parse_args()
    device, dtype = ("cpu", "float32") if options.dry_run else ("cuda", "bfloat16")
    sizes = TINY if options.dry_run else SIZES
    cases = [Case(*size, dtype, device, torch.get_num_threads()) for size in sizes]
    if options.train:
        train(options.train, options.dry_run)
        return
    if options.losses is not None:
        print(json.dumps(measure(cases[options.losses], options.repeats)))
        return
    if not options.dry_run and not torch.cuda.is_available():
        raise SystemExit("This benchmark needs a GPU; --dry_run runs it on a CPU with tiny sizes.")
    page: list[str] = []

    def add(text: str) -> None:
        page.append(text)
        print(f"{text}\n", flush=True)
        if options.output:
            options.output.write_text("\n\n".join(page) + "\n")

    parts = Parts(options.minutes, options.dry_run)
    facts = "\n".join(f"- {name}: {value}" for name, value in environment(device).items())
    add("# Benchmarks on a GPU")
    add(f"`{' '.join(['python -m', __spec__.name, *sys.argv[1:]])}`\n\n{facts}")
    for size, case in enumerate(cases):
        add(losses_table(parts, case, size, options.repeats))
    add(steps_table(parts, 0 if options.dry_run else torch.cuda.device_count()))


if __name__ == "__main__":
    main()
