"""Costs of a run, which are not higher than estimated."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.iterkd.cycle_world import JUDGE_LAYOUT, LAYOUTS, questions
from trl_akd.generation.protocol import Usage, estimate_num_tokens
from trl_akd.iterkd.cycle.config import CycleConfig
from trl_akd.iterkd.cycle.costs import Price, estimate_usage, prices
from trl_akd.iterkd.cycle.records import read_questions


@pytest.mark.parametrize(
    ("changed", "is_judged"),
    [
        ({"faults_per_question": 2, "own_faults": True, "questions_per_cycle": 5}, True),
        ({"cycles": 3, "old_share": 0.2}, False),
    ],
)
def test_the_estimate_is_an_upper_bound(act, tmp_path: Path, changed: dict[str, Any], is_judged: bool):
    seeds = [*questions(4), {**questions(5)[4], "answer": "def add(x):\n    return x + 5\n"}]
    asked = act(seeds=seeds, judged=is_judged, **changed).asked
    settings = {"cycles": 2, "questions_per_cycle": 8, "new_easy": 2, "new_medium": 3, "new_hard": 3, **changed}
    (tmp_path / "layouts.yaml").write_text(yaml.safe_dump(LAYOUTS))
    (tmp_path / "judge.txt").write_text(JUDGE_LAYOUT)
    config = CycleConfig(
        prompts_file=str(tmp_path / "layouts.yaml"), judge_prompt_file=str(tmp_path / "judge.txt"), **settings
    )
    most = estimate_usage(read_questions(seeds), config, judged=is_judged)
    judged = [prompt for prompt in asked if prompt.startswith("judge: ")]
    for author, prompts in (("judge", judged), ("teacher", [prompt for prompt in asked if prompt not in judged])):
        used = most.get(author, Usage())
        assert len(prompts) <= used.requests <= 4 * len(prompts) + 4
        assert sum(map(estimate_num_tokens, prompts)) <= 1.2 * used.prompt_tokens
        assert used.completion_tokens == used.requests * config.teacher_max_new_tokens


def test_requests_of_the_first_cycle_are_exact():
    seeds = read_questions(questions(7))
    config = CycleConfig(cycles=1, faults_per_question=2)
    prompts = [config.teaching_prompts.for_answer(question.instruction) for question in seeds]
    usage = estimate_usage(seeds, config, judged=False)
    assert set(usage) == {"teacher"} and usage["teacher"].requests == 21
    assert usage["teacher"].prompt_tokens > 3 * sum(map(estimate_num_tokens, prompts)) / 2


@pytest.mark.parametrize(("price", "expected"), [((2.0, 8.0), 10.0), ((2.0, None), 2.0), ((None, None), None)])
def test_prices(price: tuple[float | None, float | None], expected: float | None):
    assert Price(*price).of(Usage(9, 1_000_000, 1_000_000)) == expected


def test_prices_of_teacher_and_judge():
    config = CycleConfig(price_per_million_prompt_tokens=1.0, judge_price_per_million_completion_tokens=2.0)
    assert prices(config, teacher_judges=True) == {"teacher": Price(1.0, None), "judge": Price(1.0, None)}
    assert prices(config, teacher_judges=False)["judge"] == Price(None, 2.0)
