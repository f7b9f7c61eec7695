"""Whole training steps: AKD beside KD (β fixed at 0) in this trainer, and beside TRL's GKDTrainer, on the same pair.

    python -m tests.benchmarks.bench_training [--repeats 5] [--steps 12] [--json PATH]

Every measurement is a process of its own, and the contenders take turns. The time is that of the fastest step, in CPU
seconds of one thread, because other programs may share the cores; the memory is the peak beyond what the process held
before its first step. Nothing here passes or fails by its speed.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CONTENDERS = {"akd": "AKD", "kd": "KD (β = 0), same trainer", "gkd": "TRL GKDTrainer, forward KL"}
ROWS, LENGTH, BATCH, VOCABULARY = 64, 128, 8, 16384


def measure(contender: str, steps: int) -> dict[str, float]:
    """Train for a few steps in this process; return seconds of the fastest step and bytes of peak memory."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback

    from tests import tiny
    from trl_akd import AKDConfig, AKDTrainer
    from trl_akd.akd.gkd import GKDConfig, GKDTrainer
    from trl_akd.data.collators import DataCollatorForDistillation

    torch.set_num_threads(1)
    student = tiny.model(vocabulary=VOCABULARY, hidden=128)
    teacher = tiny.model("qwen2", vocabulary=VOCABULARY, hidden=256)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=generator).tolist()
    rows = Dataset.from_dict({"input_ids": tokens, "labels": [[-100] * 16 + row[16:] for row in tokens]})

    class Clock(TrainerCallback):
        """Times each optimiser step, and remembers the memory held before the first."""

        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.before = 0

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.before = self.before or resident("VmRSS")
            self.began = time.process_time()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.seconds.append(time.process_time() - self.began)

    clock = Clock()
    folder = tempfile.mkdtemp()
    settings: dict[str, Any] = {
        "output_dir": folder, "use_cpu": True, "bf16": False, "report_to": "none", "max_steps": steps, "seed": 0,
        "per_device_train_batch_size": BATCH, "gradient_checkpointing": False, "save_strategy": "no", "lmbda": 0.0,
        "max_length": LENGTH, "optim": "sgd",
    }  # fmt: skip
    common: dict[str, Any] = {
        "model": student, "teacher_model": teacher, "train_dataset": rows, "processing_class": tiny.tokenizer(),
        "callbacks": [clock],
    }  # fmt: skip
    if contender == "gkd":
        collator = DataCollatorForDistillation(256)
        trainer = GKDTrainer(args=GKDConfig(beta=0.0, **settings), data_collator=collator, **common)
    elif contender == "kd":
        trainer = AKDTrainer(args=AKDConfig(beta_strategy="fixed", beta=0.0, **settings), **common)
    else:
        trainer = AKDTrainer(args=AKDConfig(**settings), **common)
    trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": min(clock.seconds[1:]), "bytes": peak - clock.before}


def resident(field: str) -> int:
    """Return a field of this process's memory status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main() -> None:
    """Measure, and print a table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--contender", choices=CONTENDERS)
    options = parser.parse_args()
    if options.contender:
        print(json.dumps(measure(options.contender, options.steps)))
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for _ in range(options.repeats):
        for name, runs in found.items():
            command = [sys.executable, "-m", __spec__.name, "--contender", name, "--steps", str(options.steps)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            runs.append(json.loads(output.strip().splitlines()[-1]))
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Show each contender's step as a ratio to KD's of the same round: median, and lowest to highest."""
    lines = ["| step of | time / KD | peak memory / KD | seconds | MiB |", "|---|---|---|---|---|"]
    for name, runs in found.items():
        cells = [CONTENDERS[name]]
        for key in ("seconds", "bytes"):
            ratios = [run[key] / rival[key] for run, rival in zip(runs, found["kd"], strict=True)]
            cells.append(f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
        cells.append(f"{statistics.median(run['seconds'] for run in runs):.3f}")
        cells.append(f"{statistics.median(run['bytes'] for run in runs) / 2**20:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
