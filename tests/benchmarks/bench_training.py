"""Benchmark of training steps: AKD, KD (β fixed at 0) in the same trainer, TRL's trainers, and SFT as the floor.

    python -m tests.benchmarks.bench_training [--repeats 5] [--steps 12] [--json PATH]
    python -m tests.benchmarks.bench_training --contenders on_policy distillation

All have the same models. SFT has no teacher. DistillationTrainer always generates text, so that it is compared with
AKD on text of the student; both generate 32 tokens for each of eight prompts. Every measurement runs in a separate
process, and the implementations take turns. The time is that of the fastest step, in CPU seconds of one thread,
because other programs may share the cores; the memory is the increase of the peak since before the first step. No
test depends on the speed.
"""

import tempfile
from typing import Any

from .steps import Clock, Found, compare

CONTENDERS = {
    "akd": "AKD",
    "kd": "KD (β = 0), same trainer",
    "gkd": "TRL GKDTrainer, forward KL",
    "sft": "TRL SFTTrainer, no teacher",
    "on_policy": "AKD, text of the student",
    "distillation": "TRL DistillationTrainer",
}
ROWS, LENGTH, BATCH, VOCABULARY, NEW_TOKENS = 64, 128, 8, 16384, 32


def measure(contender: str, steps: int) -> Found:
    """Train for a few steps in this process, and return the time of the fastest step (s) and peak memory (bytes)."""
    import torch
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer, SFTConfig, SFTTrainer

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
    if contender in ("on_policy", "distillation"):
        settings |= {"temperature": 1.0}
        common["train_dataset"] = Dataset.from_dict({"prompt": ["ab" * (LENGTH // 4)] * ROWS})
    trainer: Any
    if contender == "sft":
        del settings["lmbda"], common["teacher_model"]
        trainer = SFTTrainer(args=SFTConfig(**settings), **common)
    elif contender == "distillation":
        del settings["lmbda"], settings["max_length"]
        args = DistillationConfig(max_completion_length=NEW_TOKENS, beta=0.0, **settings)
        trainer = DistillationTrainer(args=args, **common)
    elif contender == "on_policy":
        args = AKDConfig(**{**settings, "lmbda": 1.0}, max_new_tokens=NEW_TOKENS)
        trainer = AKDTrainer(args=args, **common)
    elif contender == "gkd":
        collator = DataCollatorForDistillation(256)
        trainer = GKDTrainer(args=GKDConfig(beta=0.0, **settings), data_collator=collator, **common)
    elif contender == "kd":
        trainer = AKDTrainer(args=AKDConfig(beta_strategy="fixed", beta=0.0, **settings), **common)
    else:
        trainer = AKDTrainer(args=AKDConfig(**settings), **common)
    trainer.train()
    return clock.found()


if __name__ == "__main__":
    compare(__spec__.name, __doc__, CONTENDERS, "gkd", measure, pairs=[("akd", "kd"), ("on_policy", "distillation")])
