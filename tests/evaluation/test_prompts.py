import contextlib

import pytest

from tests.evaluation.conftest import data
from trl_akd.evaluation.benchmarks import load_benchmark
from trl_akd.evaluation.problems import Problem
from trl_akd.evaluation.prompts import (
    Prompting,
    PromptStyle,
    program_of_answer,
    program_of_continuation,
    remark_on_style,
)
from trl_akd.generation.answers import extract_program
from trl_akd.hub.model_card import PromptFormat

CODE = "def one():\n    return 1"
HELPED = Problem(
    "0",
    "",
    "",
    code_prompt="import math\n\ndef helper():\n    return 1\n\ndef one():\n    '''Give one.'''\n",
    entry_point="one",
)


@pytest.mark.parametrize(
    "text",
    [
        CODE,
        f"```python\n{CODE}\n```",
        f"```py\n{CODE}\n```\n",
        f"```\n{CODE}\n```",
        f"~~~Python\n{CODE}\n~~~",
        f"Sure! Here it is:\n\n```python\n{CODE}\n```\n\nIt returns 1. Call it like:\n\n```bash\npython one.py\n```",
        f"```python\nprint('first an example')\n```\nNow the answer:\n```python\n{CODE}\n```",
        f"```python\n{CODE}",
        f"The answer is simple:\n{CODE}\nI hope this helps (really!",
        f"{CODE}\n```\nThis function gives one.",
        f"{CODE}\n```\nUse it so:\n```python\none()\n```",
        f"```python\n{CODE}\n>>> one()\n1\n```",
        f"```python\n{CODE}\nprint(\n```",
        f"1. Write it:\n\n   ```python\n   {CODE.replace(chr(10), chr(10) + '   ')}\n   ```\n",
        f"Draft:\n```python\ndef one():\n    return 2\n```\nFixed:\n```python\n{CODE}\n```",
        f"<think>\n```python\ndef one():\n    return 2\n```\nNo.</think>\n{CODE}",
        f"Solution\n{CODE}\nDone",
    ],
)
def test_program_extraction(text: str):
    assert extract_program(text, "one").strip() == CODE


def test_imports_and_helpers_in_separate_blocks_are_kept():
    text = f"```python\nimport math\n```\n```python\nprint('example')\n```\n```python\n{CODE}\n```"
    assert extract_program(text, "one").split("\n") == ["import math", *CODE.split("\n")]


def test_a_truncated_answer_stays_truncated():
    text = "```python\nimport math\ndef one():\n    return (1 +"
    assert extract_program(text, "one") == "import math\ndef one():\n    return (1 +"


def test_several_blocks_are_joined_if_they_parse():
    text = "```python\nimport math\n```\nthen\n```python\nprint(math.pi)\n```"
    assert extract_program(text) == "import math\nprint(math.pi)"


def test_blocks_with_the_entry_point_are_used():
    text = "def long():\n    a = 1\n    b = 2\n    c = 3\nso much for that.\ndef one():\n    return 1\nDone, I think."
    assert extract_program(text, "one") == CODE


@pytest.mark.parametrize("text", ["", "I cannot do that.", "x" * 10, "(" * 5000, "\x00\ud800", "``` ```"])
def test_text_without_a_program_is_returned(text: str):
    assert extract_program(text, "one") == text


def test_long_prose_takes_little_time():
    extract_program("def f(:\n" * 3000, "one")


def test_imports_and_helpers_come_first():
    program = program_of_answer(HELPED, f"```python\n{CODE}\n```")
    assert program.startswith("import math\ndef helper():")
    assert program.endswith(CODE)
    assert program.count("def one") == 1


def test_an_answer_that_only_continues():
    program = program_of_answer(HELPED, "    return helper()\n")
    assert program == HELPED.code_prompt + "    return helper()"


@pytest.mark.parametrize(
    "answer",
    [
        "    return helper()\n",
        "    x = helper()\n    return x\n\nThis calls the helper, doesn't it?",
        "return helper()",
        "x = helper()\n    return x",
        "x = helper()\nreturn x",
        "```python\n    x = helper()\n    return x\n```",
        "The body is:\n```python\nif helper():\n    return 1\nreturn 0\n```\nDone.",
        "<think>def one(): return 2</think>    return helper()",
        "    return helper()<|endoftext|>def two():",
        "    return helper()\n\n\ndef check():\n    assert one() == 2\n",
        "    return helper()\n\nassert one() == 2\n",
        "    return helper()\n\nprint(one(), input())\n",
        "  if helper():\n    return 1\n  return 0",
        "\tif helper():\n\t\treturn 1\n\treturn 0\n\nIt returns one.",
        "```python\n    return helper()\n```\nUsage:\n```python\nprint(one(2))\n```",
    ],
)
def test_bodies_continue_the_problem_s_code(answer: str):
    names: dict = {}
    exec(program_of_answer(HELPED, answer), names)
    assert names["one"]() == 1


def test_a_body_need_not_return():
    problem = Problem("0", "", "", code_prompt="def fill(xs):\n", entry_point="fill")
    names: dict = {}
    exec(program_of_answer(problem, "    xs.append(1)\n\nIt appends (in place)."), names)
    xs: list[int] = []
    names["fill"](xs)
    assert xs == [1]


@pytest.mark.parametrize("answer", ["I cannot do that.", "", "```python\nx = 1\n```", "<think>    return helper()"])
def test_other_answers_do_not_continue_it(answer: str):
    names: dict = {}
    with contextlib.suppress(SyntaxError):
        exec(program_of_answer(HELPED, answer), names)
    assert "one" not in names or names["one"]() is None


@pytest.mark.parametrize(
    "code",
    [
        f"from __future__ import annotations\n{CODE}",
        f"from __future__ import (\n    annotations,\n    division,\n)\n{CODE}",
        f"from __future__ import annotations; import os\n{CODE}",
        f'"""One."""\n# First\nfrom __future__ import \\\n    annotations\n\n{CODE}',
        'def one():\n    text = """\nfrom __future__ import division\n"""\n    return text.count(\'division\')',
    ],
)
def test_future_imports_come_before_the_problem_s_own(code: str):
    program = program_of_answer(HELPED, f"```python\n{code}\n```")
    names: dict = {}
    exec(compile(program, "program", "exec", dont_inherit=True), names)
    assert names["one"]() == 1


@pytest.mark.parametrize("after", ["", "\nThe last line:\n```python\n    return 1\n```", "\nThat is `return 1`."])
def test_wrong_names_are_not_corrected(after: str):
    assert "def one" not in program_of_answer(HELPED, f"```python\ndef two():\n    return 1\n```{after}")


def test_continuation_is_appended_unchanged():
    problem = Problem("0", "", "", code_prompt="def one():\n")
    assert program_of_continuation(problem, "    return 1 # ```") == "def one():\n    return 1 # ```"


def test_a_continuation_of_prose_is_searched():
    assert program_of_continuation(Problem("0", "Give one.", ""), f"```python\n{CODE}\n```").strip() == CODE


def test_reference_solutions_survive_any_wrapping():
    import gzip
    import json

    path = data("humaneval/HumanEval.jsonl.gz")
    solutions = {row["task_id"]: row["canonical_solution"] for row in map(json.loads, gzip.open(path))}
    for problem in load_benchmark("humaneval", path).problems:
        whole = problem.code_prompt + solutions[problem.task_id]
        program = program_of_answer(problem, f"Here you go:\n```python\n{whole}\n```\nGood luck!")
        assert whole.strip() in program


@pytest.mark.parametrize(
    ("trained", "given", "parts"),
    [
        (("template", "alpaca"), ("template", "alpaca"), None),
        (("template", "alpaca"), ("template", "starcoder"), ("`alpaca`", "`starcoder`", "_template` to 'alpaca'")),
        (("template", "alpaca"), ("completion", "alpaca"), ("`alpaca`", "without a", "`prompt_style` to 'template'")),
        (("template", "alpaca"), ("chat", "alpaca"), ("`alpaca`", "tokenizer's chat template", "'template'")),
        (("chat", None), ("chat", "alpaca"), None),
        (("chat", None), ("completion", "alpaca"), ("tokenizer's chat template", "`prompt_style` to 'chat' for")),
        (("completion", None), ("completion", "alpaca"), None),
        (("completion", None), ("template", "alpaca"), ("without a template", "`alpaca`", "to 'completion' for")),
        (None, ("chat", "alpaca"), None),
    ],
)
def test_another_format_than_in_training_is_remarked(
    trained: tuple[str, str | None] | None, given: tuple[PromptStyle, str], parts: tuple[str, ...] | None
):
    remark = remark_on_style(None if trained is None else PromptFormat(*trained), Prompting(*given))
    assert (remark is None) == (parts is None)
    assert all(part in str(remark) for part in parts or ())
