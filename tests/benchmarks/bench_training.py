"""Benchmark of training steps: AKD, KD (β fixed at 0) in the same trainer, TRL's trainers, and SFT as the floor.

    python -m tests.benchmarks.bench_training [--repeats 5] [--steps 12] [--json PATH]
    python -m tests.benchmarks.bench_training --contenders on_policy distillation
    python -m tests.benchmarks.bench_training --in_turns akd kd --steps 300

All have the same models. SFT has no teacher. DistillationTrainer always generates text, so that it is compared with
AKD on text of the student; both generate 32 tokens for each of eight prompts. Every measurement runs in a separate
process, and the implementations take turns. The time is that of the fastest step, in CPU seconds of one thread,
because other programs may share the cores; the memory is the increase of the peak since before the first step. With
`--in_turns`, two trainers run in one process, a step of each in turns, which shows differences below the noise between
processes: the ratio of each step's time to that of the other trainer's next one. No test depends on the speed.
"""

import tempfile
from typing import Any

from .steps import compare

CONTENDERS = {
    "akd": "AKD",
    "kd": "KD (β = 0), same trainer",
    "gkd": "TRL GKDTrainer, forward KL",
    "sft": "TRL SFTTrainer, no teacher",
    "on_policy": "AKD, text of the student",
    "distillation": "TRL DistillationTrainer",
}
ROWS, LENGTH, BATCH, VOCABULARY, NEW_TOKENS = 64, 128, 8, 16384, 32


def make_trainer(contender: str, steps: int, callback: Any) -> Any:
    """Return a trainer for a few steps of one thread."""
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

    folder = tempfile.mkdtemp()
    settings: dict[str, Any] = {
        "output_dir": folder, "use_cpu": True, "bf16": False, "report_to": "none", "max_steps": steps, "seed": 0,
        "per_device_train_batch_size": BATCH, "gradient_checkpointing": False, "save_strategy": "no", "lmbda": 0.0,
        "max_length": LENGTH, "optim": "sgd",
    }  # fmt: skip
    common: dict[str, Any] = {
        "model": student, "teacher_model": teacher, "train_dataset": rows, "processing_class": tiny.tokenizer(),
        "callbacks": [callback],
    }  # fmt: skip
    if contender in ("on_policy", "distillation"):
        settings |= {"temperature": 1.0}
        common["train_dataset"] = Dataset.from_dict({"prompt": ["ab" * (LENGTH // 4)] * ROWS})
    if contender == "sft":
        del settings["lmbda"], common["teacher_model"]
        return SFTTrainer(args=SFTConfig(**settings), **common)
    if contender == "distillation":
        del settings["lmbda"], settings["max_length"]
        args = DistillationConfig(max_completion_length=NEW_TOKENS, beta=0.0, **settings)
        return DistillationTrainer(args=args, **common)
    if contender == "on_policy":
        args = AKDConfig(**{**settings, "lmbda": 1.0}, max_new_tokens=NEW_TOKENS)
        return AKDTrainer(args=args, **common)
    if contender == "gkd":
        collator = DataCollatorForDistillation(256)
        return GKDTrainer(args=GKDConfig(beta=0.0, **settings), data_collator=collator, **common)
    if contender == "kd":
        return AKDTrainer(args=AKDConfig(beta_strategy="fixed", beta=0.0, **settings), **common)
    return AKDTrainer(args=AKDConfig(**settings), **common)


if __name__ == "__main__":
    pairs = [("akd", "kd"), ("on_policy", "distillation")]
    compare(__spec__.name, __doc__, CONTENDERS, "gkd", make_trainer, pairs)
