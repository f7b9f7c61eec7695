"""Benchmark of training steps of IterKD and of TRL's DPOTrainer, both with precomputed reference log-probabilities.

    python -m tests.benchmarks.bench_iterkd [--repeats 5] [--steps 12] [--json PATH]

Each step has equally many pairs with one faulty answer each, of equal length, and one SGD update. IterKD's loss is the
cross-entropy of the correct answers and a contrastive loss (`dpo`, sums over tokens); DPOTrainer has
`loss_type=["sigmoid", "sft"]`. Every measurement runs in a separate process, and the implementations take turns. The
time is that of the fastest step, in CPU seconds of one thread; the memory is the increase of the peak since before the
first step. No test depends on the speed.
"""

import random
import tempfile
from typing import Any

from .steps import compare

CONTENDERS = {
    "iterkd": "IterKD, `ce` and `dpo`",
    "supervised": "IterKD, `ce` alone",
    "trl": "TRL DPOTrainer, `sigmoid` and `sft`",
}
PAIRS, BATCH, VOCABULARY, PROMPT, ANSWER = 64, 8, 16384, 32, 64


def make_trainer(contender: str, steps: int, callback: Any) -> Any:
    """Return a trainer for a few steps of one thread."""
    import torch
    from trl import DPOConfig, DPOTrainer

    from tests import tiny
    from trl_akd import IterKDConfig
    from trl_akd.iterkd.pair_trainer import PairTrainer

    torch.set_num_threads(1)
    student = tiny.model(vocabulary=VOCABULARY, hidden=128)
    settings: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(), "use_cpu": True, "bf16": False, "report_to": "none", "max_steps": steps,
        "per_device_train_batch_size": BATCH, "gradient_checkpointing": False, "save_strategy": "no", "optim": "sgd",
    }  # fmt: skip
    common = {"processing_class": tiny.tokenizer(), "callbacks": [callback]}
    if contender == "trl":
        args = DPOConfig(loss_type=["sigmoid", "sft"], precompute_ref_log_probs=True, **settings)
        pairs = _pairs().rename_columns({"completion": "chosen"})
        return DPOTrainer(student, args=args, train_dataset=pairs, **common)
    settings |= {"contrastive_loss": "dpo"} if contender == "iterkd" else {"contrastive_weight": 0.0}
    pairs = _pairs().map(lambda row: {"rejected": [row["rejected"]]})
    return PairTrainer(student, args=IterKDConfig(objective="ce", **settings), train_dataset=pairs, **common)


def _pairs() -> Any:
    """Pairs with texts of equal length, so that no row is padded."""
    from datasets import Dataset

    source = random.Random(0)

    def text(length: int) -> str:
        return "".join(source.choices("abcdefgh(=+)", k=length))

    lengths = {"prompt": PROMPT, "completion": ANSWER, "rejected": ANSWER}
    return Dataset.from_list([{name: text(length) for name, length in lengths.items()} for _ in range(PAIRS)])


if __name__ == "__main__":
    compare(__spec__.name, __doc__, CONTENDERS, "trl", make_trainer)
