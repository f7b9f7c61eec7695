"""Checks and extraction of plans."""

import json

import pytest

from tests.codeplan.scripted import data
from trl_akd.codeplan.plan_checks import check_plan, extract_plan

GOOD = "1. Read n.\n2. Print it twice."


def check(plan: str, *, truncated: bool = False, max_chars: int = 3000) -> str | None:
    return check_plan(plan, truncated=truncated, max_chars=max_chars)


@pytest.mark.parametrize(
    "plan",
    [
        GOOD,
        "1) Read n.\n2) Print it twice.",
        "(1) Read n.\n(2) Print it twice.",
        "Step 1: Read n.\nStep 2: Print it twice.",
        "**1.** Read n.\n**2.** Print it twice.",
        "1. Read n.\n   a. As an integer.\n   - Which may be negative.\n2. Print it.",
        "1. Read the numbers.\n2. Take the slice a[:k + 1] and sum it with sum().\n3. Return x = 0 in that case.",
        "1. Input: n\n2. Done",
        "1. result\n2. not found",
        "\n".join(f"{number}. Go on." for number in range(1, 13)),
    ],
)
def test_plans(plan: str):
    assert check(plan) is None


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("Read n and print it twice.", "not_numbered"),
        ("- Read n.\n- Print it.", "not_numbered"),
        ("1. Read n.\n3. Print it.", "not_numbered"),
        ("2. Read n.\n3. Print it.", "not_numbered"),
        ("1. Read n.\n1. Print it.", "not_numbered"),
        ("1. Read n and print it twice.", "too_few_steps"),
        ("1. Read n.\n2. Print it twice.\n```python\nprint(2 * n)\n```", "code"),
        ("1. n = int(input())\n2. Print it.", "code"),
        ("1. `n = int(input())`\n2. Print it.", "code"),
        ("1. Read n.\n2. print(2 * n)", "code"),
        ("1. Read n.\n2. For each i:\n    - total += i", "code"),
        ("1. Read n.\n2. for i in range(n):", "code"),
        ("1. import sys\n2. Read n.", "code"),
        ("1. Read n.\n2. Define it so:\ndef double(n):\n    return 2 * n", "code"),
    ],
)
def test_rejects(plan: str, reason: str):
    assert check(plan) == reason


def test_length_and_truncation():
    assert check(GOOD, truncated=True) == "truncated"
    assert check(GOOD, max_chars=len(GOOD)) is None
    assert check(GOOD, max_chars=len(GOOD) - 1) == "too_long"


@pytest.mark.parametrize(
    "answer",
    [
        GOOD,
        f"Sure! Here is the plan:\n\n{GOOD}\n",
        f"{GOOD}\n\nI hope this helps!",
        "1. Read n.  \n2. Print it twice.\t",
        f"<think>\n1. Read.\n2. No, twice.\n```python\nprint(n)\n```\n</think>\n\n{GOOD}",
        f"1. Think.\n2. Think on.\n</think>\n\nThe plan:\n{GOOD}",
        f"<|channel|>analysis<|message|>1. Hm.<|end|><|start|>assistant<|channel|>final<|message|>{GOOD}<|return|>",
        f"<thinking>Hm.</thinking>{GOOD}<|im_end|>",
        f"Plan:\n```\n{GOOD}\n```\nGood luck!",
        f"```text\n{GOOD}\n```",
        f"```markdown\n{GOOD}\n```",
        f"Here is the plan:\n\n~~~md\n{GOOD}\n~~~\nGood luck!",
        f"```plan\n{GOOD}\n```\n\n```python\nprint(n)\n```",
        f"\x1b[1mPlan\x1b[0m\r\n{GOOD}\r\n",
        f"<plan>\n{GOOD}\n</plan>",
        f"<answer>\n{GOOD}\n\n</answer>",
        f"### Plan\n{GOOD}\n### Notes\nNone.",
        f"Here it is.\n\n### Plan\n{GOOD}\n\n### Program\nprint(n)",
    ],
)
def test_prose_around_a_plan_is_cut(answer: str):
    assert extract_plan(answer) == GOOD


@pytest.mark.parametrize(
    "thoughts", ["<think>\n1. Read n.\n2. Print it.", "<think>\n1. Read n.\n2. Print it.\n</think>\n"]
)
def test_thoughts_are_not_a_plan(thoughts: str):
    assert check(extract_plan(thoughts)) == "empty"


@pytest.mark.parametrize(
    "answer", [" 1. Read n.\n2. Print it.", "  1. Read n.\n  2. Print it.\n", "\n\n 1. Read n.\n 2. Print it."]
)
def test_blanks_before_the_first_step(answer: str):
    assert extract_plan(answer) == "1. Read n.\n2. Print it."
    assert check(extract_plan(answer)) is None


def test_blank_lines_between_steps_are_kept():
    spaced = "1. Read n.\n\n2. Print it twice."
    assert extract_plan(f"Plan:\n{spaced}\n\nDone.") == spaced
    assert check(spaced) is None


@pytest.mark.parametrize(
    "plan",
    [
        "1. Read n.\n2. For each item:\n\n   - Double it.\n   - Print it.",
        "1. Read n.\n2. For each item:\n\n   a. Double it.\n\n   b. Print it.",
        "### Step 1: Read n\nIt is an integer.\n\n### Step 2: Print\nPrint its double.",
        "1. Read n.\n\n   It is an integer.\n\n2. Print it.",
    ],
)
def test_last_step_with_a_list(plan: str):
    assert extract_plan(f"{plan}\n\nDone.") == plan
    assert check(plan) is None


def test_plans_of_the_authors_pass_and_programs_do_not():
    for home in sorted(data("apps/train").iterdir()):
        for plan in json.loads((home / "plans.json").read_text()):
            assert check(extract_plan(plan)) is None, plan
        for solution in json.loads((home / "solutions.json").read_text()):
            numbered = "\n".join(f"{number}. {line}" for number, line in enumerate(solution.splitlines(), start=1))
            assert check(numbered, max_chars=100_000) == "code"
    for plan in sorted(data("mbpp/example_plans").glob("*.txt")):
        assert check(extract_plan(plan.read_text())) is None
