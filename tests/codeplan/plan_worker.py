"""Generate plans on each process and write the results of each to a file.

Run by `test_plan_local.py`: `python -m tests.codeplan.plan_worker FOLDER`.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM

from tests import tiny
from trl_akd.codeplan.plan_generation import PlanGenerator
from trl_akd.generation import TransformersGenerator

ROWS = [{"id": str(number), "problem": "P" * number, "solutions": [f"print({number})"]} for number in range(1, 6)]


def ask(folder: Path, accelerator: Accelerator | None = None, **settings: Any) -> PlanGenerator:
    """Request two plans per row; a tiny model generates no valid plans, so the answers on disk are compared."""
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    teacher = TransformersGenerator(model, tiny.tokenizer(), batch_size=2, accelerator=accelerator)
    made = PlanGenerator(
        teacher,
        folder / "answers.jsonl",
        n=2,
        temperature=1.0,
        max_new_tokens=6,
        batch_size=2,
        accelerator=accelerator,
        progress=False,
        **settings,
    )
    made.run(ROWS)
    return made


def main() -> None:
    folder, accelerator = Path(sys.argv[1]), Accelerator(cpu=True)
    reports = [asdict(ask(folder, accelerator, **settings).report) for settings in ({"max_requests": 3}, {})]
    (folder / f"rank{accelerator.process_index}.json").write_text(json.dumps([accelerator.num_processes, *reports]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
