"""Sample plans on each process, and write the results of each to a file.

Run by `test_plan_sampling_processes.py`: `python -m tests.codeplan.sampling_worker FOLDER`.
"""

import json
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from tests import tiny
from trl_akd.codeplan.plan_sampling import PlanSampler
from trl_akd.execution import CodeExecutor
from trl_akd.generation import TransformersGenerator
from trl_akd.generation.recorded import RecordedGenerator
from trl_akd.ledger import Ledger

PROBLEMS = [
    {
        "id": str(number),
        "problem": "P" * number,
        "public_tests": "pass" if number == 2 else "raise ValueError",
        "hidden_tests": "pass",
    }
    for number in range(1, 5)
]


class Shortest:
    """Rank programs by their length, on the main process only."""

    def __init__(self, may_rank: bool) -> None:
        self.may_rank = may_rank

    def score(self, problem: str, programs: Any) -> list[float]:
        assert self.may_rank
        return [-float(len(program)) for program in programs]


def sample(folder: Path, accelerator: Accelerator | None = None) -> list[dict[str, Any]]:
    """Sample for all problems, and return the results without execution times."""
    main = accelerator is None or accelerator.is_main_process
    student = TransformersGenerator(
        tiny.model(max_position_embeddings=512), tiny.tokenizer(), batch_size=2, accelerator=accelerator
    )
    with ExitStack() as stack:
        ledger = stack.enter_context(Ledger(folder / "calls.jsonl", {})) if main else None
        executor = stack.enter_context(CodeExecutor(1, allow_code_execution=True)) if main else None
        results = PlanSampler(
            RecordedGenerator(student, ledger, accelerator=accelerator),
            executor,
            num_plans=3,
            num_programs=2,
            smaller_num_plans=[0, 1],
            ranker=Shortest(main),
            max_plan_tokens=5,
            max_new_tokens=5,
            batch_size=3,
            accelerator=accelerator,
            progress=False,
        ).run(PROBLEMS)
    return [
        {
            "scores": [asdict(score) for score in result.plan_scores],
            "choices": {
                str(number): [choice.index, list(choice.programs), [verdict.status for verdict in choice.verdicts]]
                for number, choice in result.choices.items()
            },
        }
        for result in results
    ]


def main() -> None:
    folder, accelerator = Path(sys.argv[1]), Accelerator(cpu=True)
    record = [accelerator.num_processes, sample(folder, accelerator)]
    (folder / f"rank{accelerator.process_index}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
