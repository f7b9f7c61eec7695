import random
from collections import Counter

import pytest
from transformers import PreTrainedTokenizerFast

from trl_akd.execution import CodeExecutor
from trl_akd.iterkd.cycle.records import FAULT_KINDS, FaultKind
from trl_akd.iterkd.judge.reader import parse_judgement
from trl_akd.iterkd.judge.rubric import Judgement
from trl_akd.micro.models import train_tokenizer
from trl_akd.micro.tasks import Task, sample_tasks
from trl_akd.micro.teacher_data import ITERKD_DATA, JUDGE_PROMPT, TEACHING_PROMPTS, draw_fault, score

ERRORS: dict[FaultKind, set[str]] = {
    "syntax": {"SyntaxError"},
    "logical": {"AssertionError"},
    "type": {"TypeError"},
    "name": {"NameError"},
}


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return sample_tasks(600, split="train", lengths=(1, 2, 3))


@pytest.fixture(scope="module")
def executor():
    with CodeExecutor(allow_code_execution=True, timeout=2.0) as executor:
        yield executor


@pytest.mark.parametrize("kind", sorted(ERRORS))
def test_a_fault_is_of_its_kind(kind: FaultKind, tasks: list[Task], executor: CodeExecutor):
    rng = random.Random(0)
    results = executor.run([(draw_fault(task, kind, rng), task.tests) for task in tasks[:100]])
    found = Counter(result.error_type for result in results)
    allowed = ERRORS[kind] | ({"IndexError", "ValueError", None} if kind == "logical" else set())
    assert set(found) <= allowed, found
    assert sum(result.passed for result in results) < 20, "another step may change nothing on six inputs, but rarely"


def test_an_endless_loop_is_timed_out(tasks: list[Task], executor: CodeExecutor):
    rng = random.Random(0)
    results = executor.run([(draw_fault(task, "timeout", rng), task.tests) for task in tasks[:4]], timeout=0.5)
    assert {result.status for result in results} == {"timed_out"}


def test_judgements_round_trip_and_rank_correct_answers_first(tasks: list[Task]):
    right = score(tasks[0].solution, None)
    assert right.total >= 5.5 and min(right.scores) >= 0.5
    for kind in FAULT_KINDS:
        assert score("", kind).total <= 3.5 and score("", kind).scores[0] == 0
    judged = [row for row in ITERKD_DATA.rows(tasks) if row["prompt"].endswith("# Judgement\n")]
    assert len(judged) == len(tasks)
    assert all(isinstance(parse_judgement(row["completion"]), Judgement) for row in judged)


def test_new_questions_have_the_domain_and_type(tasks: list[Task]):
    by_instruction = {task.instruction: task for task in tasks}
    seen = Counter()
    for row in ITERKD_DATA.rows(tasks):
        for name in ("new_easy", "new_same"):
            tail = TEACHING_PROMPTS[name].split("{instruction}")[1]
            if row["prompt"].endswith(tail):
                asked = by_instruction[row["prompt"].removeprefix("# ").removesuffix(tail)]
                written = by_instruction[row["completion"]]
                assert written.steps[0].operation.takes == asked.steps[0].operation.takes
                assert (written.operations[-1] == asked.operations[-1]) or name == "new_easy"
                seen[name] += 1
    assert min(seen["new_easy"], seen["new_same"]) > 200


def test_rows_fit_and_prompts_differ_by_task(tasks: list[Task]):
    rows = list(ITERKD_DATA.rows(tasks))
    assert len(rows) == 4 * len(tasks)
    tokenizer: PreTrainedTokenizerFast = train_tokenizer(row["prompt"] + row["completion"] for row in rows)
    longest = max(len(tokenizer(row["prompt"] + row["completion"])["input_ids"]) for row in rows)
    assert longest < ITERKD_DATA.max_length
    assert JUDGE_PROMPT.format(instruction="a", answer="b") == "# a\nb\n# Judgement\n"


def test_teacher_data_is_the_same_on_every_run(tasks: list[Task]):
    assert list(ITERKD_DATA.rows(tasks[:50])) == list(ITERKD_DATA.rows(tasks[:50]))
