"""Benchmark of training steps of CodePLAN, and of the same two tasks in transformers' Trainer with full logits.

    python -m tests.benchmarks.bench_codeplan [--repeats 5] [--steps 12] [--json PATH]

Each step has equally many examples of programs and of plans, of equal length, and one SGD update. The Trainer has them
in two micro-batches, one per task, with one LM head and its own loss; so has `alternate`, while `weighted` has both
tasks in one batch. Every measurement runs in a separate process, and the implementations take turns. The time is that
of the fastest step, in CPU seconds of one thread, because other programs may share the cores; the memory is the
increase of the peak since before the first step. No test depends on the speed.
"""

import random
import tempfile
from typing import Any

from .steps import compare

CONTENDERS = {
    "weighted": "CodePLAN, `weighted`",
    "alternate": "CodePLAN, `alternate`",
    "shared": "CodePLAN, `weighted`, one head",
    "trainer": "transformers Trainer, two micro-batches",
}
PROBLEMS, BATCH, VOCABULARY, PROBLEM, ANSWER = 64, 8, 16384, 24, 64


def make_trainer(contender: str, steps: int, callback: Any) -> Any:
    """Return a trainer for a few steps of one thread."""
    import torch
    from transformers import Trainer, TrainingArguments, default_data_collator

    from tests import tiny
    from trl_akd import CodePLANConfig, CodePLANTrainer

    torch.set_num_threads(1)
    student = tiny.model(vocabulary=VOCABULARY, hidden=128)
    settings: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(), "use_cpu": True, "bf16": False, "report_to": "none", "max_steps": steps,
        "per_device_train_batch_size": BATCH, "gradient_checkpointing": False, "save_strategy": "no", "optim": "sgd",
    }  # fmt: skip
    if contender == "trainer":
        args = TrainingArguments(gradient_accumulation_steps=2, train_sampling_strategy="sequential", **settings)
        return Trainer(student, args, default_data_collator, _examples(), callbacks=[callback])
    settings |= {"schedule": "alternate", "gradient_accumulation_steps": 2} if contender == "alternate" else {}
    settings |= {"plan_head": "shared"} if contender == "shared" else {}
    return CodePLANTrainer(
        student,
        args=CodePLANConfig(**settings),
        train_dataset=_problems(),
        processing_class=tiny.tokenizer(),
        callbacks=[callback],
    )


def _problems() -> Any:
    """Problems with texts of equal length, so that no row is padded."""
    from datasets import Dataset

    source = random.Random(0)

    def text(length: int) -> str:
        return "".join(source.choices("abcdefgh(=+)", k=length))

    lengths = {"problem": PROBLEM, "solution": ANSWER, "plan": ANSWER}
    return Dataset.from_list([{name: text(length) for name, length in lengths.items()} for _ in range(PROBLEMS)])


def _examples() -> Any:
    """Tokens of these problems as alternating batches of programs and plans."""
    from datasets import Dataset

    from tests import tiny
    from trl_akd.codeplan.encoding import ProblemEncoder

    encode = ProblemEncoder(tiny.tokenizer())
    rows = [encode(problem, index) for index, problem in enumerate(_problems())]
    examples = []
    for start in range(0, PROBLEMS, BATCH):
        for prompt, answers in (("code_prompt", "solutions"), ("plan_prompt", "plans")):
            for row in rows[start : start + BATCH]:
                [answer] = row[answers]
                examples.append(
                    {"input_ids": [*row[prompt], *answer], "labels": [*[-100] * len(row[prompt]), *answer]}
                )
    return Dataset.from_list(examples)


if __name__ == "__main__":
    compare(__spec__.name, __doc__, CONTENDERS, "trainer", make_trainer)
