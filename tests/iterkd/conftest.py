"""Runs of the cycles with deterministic models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate import Accelerator

from tests.iterkd.actors import Actors, Student
from tests.iterkd.cycle_world import JUDGE_LAYOUT, LAYOUTS, RuleTeacher, answer, held_out, questions
from trl_akd.generation.budget import BudgetedGenerator
from trl_akd.iterkd.cycle.config import CycleConfig
from trl_akd.iterkd.cycle.cycles import Cycles, Participants
from trl_akd.iterkd.cycle.ledger import CycleLedger
from trl_akd.iterkd.cycle.records import read_questions
from trl_akd.iterkd.judge.judges import GenerativeJudge


@pytest.fixture
def act(tmp_path: Path) -> Callable[..., Actors]:
    """Run the cycles in a folder with new models; errors have them as the attribute `actors`."""
    (tmp_path / "layouts.yaml").write_text(yaml.safe_dump(LAYOUTS))
    (tmp_path / "judge.txt").write_text(JUDGE_LAYOUT)
    accelerator = Accelerator(cpu=True)

    def run(
        *,
        student: Student | None = None,
        write: Callable[[str], str] = answer,
        judged: bool = True,
        budget: int | None = None,
        seeds: list[dict[str, str]] | None = None,
        benchmarks: dict[str, list[str]] | None = None,
        **changed: Any,
    ) -> Actors:
        actors = Actors(student or Student())
        settings: dict[str, Any] = {
            "cycles": 2,
            "questions_per_cycle": 8,
            "new_easy": 2,
            "new_medium": 3,
            "new_hard": 3,
        }
        settings |= {"min_question_chars": 5, "novelty_threshold": 1.0, **changed}
        config = CycleConfig(
            prompts_file=str(tmp_path / "layouts.yaml"), judge_prompt_file=str(tmp_path / "judge.txt"), **settings
        )
        teacher: Any = RuleTeacher(actors.asked.append, write=write)
        if budget is not None:
            teacher = BudgetedGenerator(teacher, batch_size=2, max_requests=budget)
        with CycleLedger(tmp_path / "ledger", config.cycle_settings, accelerator) as ledger:
            judge = GenerativeJudge(ledger.recorded(teacher, "judge"), prompt=config.judge_prompt)
            cycles = Cycles(
                actors.student,
                Participants(teacher, judge if judged else None, actors.run, held_out(), benchmarks or {}),
                config,
                ledger,
                folder=tmp_path,
                prompt_template="comment",
                accelerator=accelerator,
                announce=actors.said.append,
            )
            try:
                cycles.run(read_questions(questions() if seeds is None else seeds))
            except Exception as error:
                error.actors = actors  # type: ignore[attr-defined]
                raise
            finally:
                actors.reports = cycles.reports
        return actors

    return run
