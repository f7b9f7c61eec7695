"""Benchmark of training from a teacher cache: the loss at real sizes, and steps against SFT and a teacher in memory.

    python -m tests.benchmarks.bench_cache loss [--rounds 3] [--vocab 151936] [--tokens 256] [--json PATH]
    python -m tests.benchmarks.bench_cache steps [--rounds 4] [--share 8] [--json PATH]

`loss` compares the losses from a `hidden` cache with the four matrix products that they consist of, at the hidden
sizes of Qwen2.5-Coder 7B and 0.5B. `steps` trains a student of these widths, with `1 / share` of the layers and of the
vocabulary of both models, so that all parts of a step keep their proportions. All contenders take turns in one process
with one thread; ratios are those of the same round, of CPU time and of wall-clock time. No test depends on the speed.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback, logging
from trl import SFTConfig, SFTTrainer

from tests import tiny
from trl_akd import AKDConfig, AKDTrainer
from trl_akd.akd.cache_creation import create_cache
from trl_akd.losses import DenseSignal, LMHead, SampledSignal, SparseSignal, TeacherSignal, fused_divergence

STUDENT_HIDDEN, TEACHER_HIDDEN, VOCABULARY = 896, 3584, 151_936
TOP_K, SAMPLES = 128, 64
Seconds = tuple[float, float]  # CPU time and wall-clock time
CLOCKS = ("CPU time", "wall-clock time")


def clock() -> Seconds:
    return time.process_time(), time.perf_counter()


def elapsed(start: Seconds) -> Seconds:
    cpu, wall = clock()
    return cpu - start[0], wall - start[1]


def measure_losses(rounds: int, tokens: int, vocabulary: int) -> tuple[dict[str, list[Seconds]], str]:
    """Return the seconds of each loss, forward and backward, by name, and the name of the baseline."""
    torch.manual_seed(0)
    student_head = torch.empty(vocabulary, STUDENT_HIDDEN).uniform_(-0.06, 0.06).requires_grad_()
    teacher_head = torch.empty(vocabulary, TEACHER_HIDDEN).uniform_(-0.03, 0.03)
    student = (2 * torch.randn(tokens, STUDENT_HIDDEN)).requires_grad_()
    teacher = 2 * torch.randn(tokens, TEACHER_HIDDEN)
    dense = DenseSignal(teacher, LMHead(teacher_head))
    logits = dense.head.logits(teacher)
    top = SparseSignal.from_logits(logits, TOP_K)
    sampled = SampledSignal(top, teacher, dense.head, logits.logsumexp(-1), torch.rand(tokens), SAMPLES)
    del logits

    @torch.no_grad()
    def products() -> None:
        gradient, _ = student @ student_head.t(), teacher @ teacher_head.t()
        _ = gradient @ student_head, gradient.t() @ student

    def loss(signal: TeacherSignal) -> Callable[[], Any]:
        weights = torch.full((tokens,), 1 / tokens)
        return lambda: fused_divergence(
            student, LMHead(student_head), signal, token_weights=weights, knobs={"beta": 0.3}
        ).loss.backward()

    baseline = "four matrix products"
    contenders = {
        baseline: products,
        "hidden cache": loss(dense),
        f"hidden cache, teacher_tail_samples {SAMPLES}": loss(sampled),
        f"sparse cache, {TOP_K} tokens": loss(top),
    }
    found: dict[str, list[Seconds]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            student.grad = student_head.grad = None
            start = clock()
            run()
            if number:  # the first round is a warm-up
                found[name].append(elapsed(start))
    return found, baseline


class Clock(TrainerCallback):
    """Measure the optimizer steps of a training after the first."""

    def __init__(self) -> None:
        self.steps: list[Seconds] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.start = clock()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.steps.append(elapsed(self.start))

    def fastest(self) -> Seconds:
        later, self.steps = self.steps[1:], []
        return min(cpu for cpu, _ in later), min(wall for _, wall in later)


def measure_steps(rounds: int, share: int) -> tuple[dict[str, list[Seconds]], str]:
    """Return the seconds of a step of each trainer by name, of the creation of a cache per step, and the baseline."""
    logging.set_verbosity_error()
    vocabulary, length, batch = VOCABULARY // share, 128, 4

    def model(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> Any:
        return tiny.model(
            "qwen2",
            vocabulary=vocabulary,
            hidden=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            layer_types=["full_attention"] * layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            tie_word_embeddings=hidden == STUDENT_HIDDEN,
        )

    teacher = model(TEACHER_HIDDEN, 18_944, max(1, 28 // share), 28, 4)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocabulary, (2 * batch, length), generator=generator).tolist()
    rows = Dataset.from_dict({"input_ids": tokens, "labels": [[-100] * 16 + row[16:] for row in tokens]})
    folder = Path(tempfile.mkdtemp())
    clocks: dict[str, Clock] = {}

    def trainer(name: str, kind: type = AKDTrainer, config: type = AKDConfig, **settings: Any) -> Any:
        clocks[name] = Clock()
        given = {"teacher_model": settings.pop("teacher_model")} if "teacher_model" in settings else {}
        args = config(
            output_dir=str(folder / "run"), use_cpu=True, bf16=False, report_to="none", max_steps=3, seed=0,
            per_device_train_batch_size=batch, per_device_eval_batch_size=batch, gradient_checkpointing=False,
            save_strategy="no", max_length=length, optim="sgd", disable_tqdm=True, **settings,
        )  # fmt: skip
        student = model(STUDENT_HIDDEN, 4864, max(1, 24 // share), 14, 2)
        return kind(
            model=student, args=args, train_dataset=rows, processing_class=tiny.tokenizer(),
            callbacks=[clocks[name]], **given,
        )  # fmt: skip

    baseline, memory = "SFT (TRL)", "teacher in memory"
    trainers = {
        baseline: trainer(baseline, SFTTrainer, SFTConfig),
        memory: trainer(memory, teacher_model=teacher),
    }
    start = clock()
    create_cache(trainers[memory], folder / "cache", top_k=TOP_K)
    creation = tuple(seconds / 2 for seconds in elapsed(start))  # the rows are those of two steps
    for name, samples in {"hidden cache": None, f"hidden cache, teacher_tail_samples {SAMPLES}": SAMPLES}.items():
        trainers[name] = trainer(name, teacher_cache=str(folder / "cache"), teacher_tail_samples=samples)
    found: dict[str, list[Seconds]] = {name: [] for name in trainers}
    for _ in range(rounds):
        for name, each in trainers.items():
            each.train()
            found[name].append(clocks[name].fastest())
    # Of its seven passes of the teacher, five are for the first rows and the measured error.
    found["creation of a cache of two steps, per step"] = [(creation[0], creation[1])] * rounds
    return found, baseline


def table(found: Mapping[str, list[Seconds]], baseline: str) -> str:
    """Return ratios to the baseline in the same round, as median and range, and median seconds."""
    lines = [f"| | {' | '.join(f'{name} / {baseline}' for name in CLOCKS)} | CPU time (s) |", "|---|---|---|---|"]
    for name, runs in found.items():
        cells = [name]
        for which in range(len(CLOCKS)):
            ratios = [run[which] / other[which] for run, other in zip(runs, found[baseline], strict=True)]
            cells.append(f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
        cells.append(f"{statistics.median(cpu for cpu, _ in runs):.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("loss", "steps"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=VOCABULARY)
    parser.add_argument("--share", type=int, default=8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.part == "loss":
        found, baseline = measure_losses(options.rounds, options.tokens, options.vocab)
    else:
        found, baseline = measure_steps(options.rounds, options.share)
    print(table(found, baseline))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
