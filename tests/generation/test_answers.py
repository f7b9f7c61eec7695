"""The parser of answers, tested on realistic answers."""

import ast
import contextlib
import gzip
import io
import json
import random
import re
import sys
import time
from pathlib import Path

import pytest

from tests.evaluation.conftest import data
from trl_akd.evaluation.benchmarks import load_benchmark
from trl_akd.generation import parse_answer
from trl_akd.generation.answers import extract_program

CHARACTERS = {"CR": "\r", "BOM": "\ufeff", "NBSP": "\u00a0", "ZWSP": "\u200b", "ESC": "\x1b"}
NO_PROGRAM = "NO PROGRAM"


def corpus() -> list[tuple[str, str, str | None, str]]:
    """Return name, text, entry point and check of every answer in the corpus."""
    cases = []
    for record in re.split(r"^@@@ ", (Path(__file__).parent / "answer_corpus.txt").read_text(), flags=re.MULTILINE)[
        1:
    ]:
        head, _, text = record.partition("\n")
        name, entry_point, check = head.split(" :: ")
        text = re.sub(r"\{\{([A-Z]+)\}\}", lambda match: CHARACTERS[match[1]], text).removesuffix("\n")
        cases.append((name, text, None if entry_point == "-" else entry_point, check))
    return cases


def outcome(program: str, check: str) -> str | None:
    """Run a program and return its error; its standard input is empty unless the check defines it."""
    given, expected = map(eval, re.findall(r"'[^']*'", check)) if check.startswith("IO ") else ("", None)
    printed = io.StringIO()
    names = {"__name__": "__main__" if expected is not None else "answer"}
    recursion_limit = sys.getrecursionlimit()  # some programs change it
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr("sys.stdin", io.StringIO(given))
        try:
            exec(program, names)
            passed = printed.getvalue() == expected if expected is not None else eval(check, names)
        except (Exception, SystemExit) as error:
            return repr(error)
        finally:
            sys.setrecursionlimit(recursion_limit)
    return None if passed else "another result"


@pytest.mark.parametrize(("text", "entry_point", "check"), [pytest.param(*case[1:], id=case[0]) for case in corpus()])
def test_programs_of_the_corpus(text: str, entry_point: str | None, check: str):
    program = parse_answer(text, entry_point).program
    if check == NO_PROGRAM:
        assert program is None
    else:
        assert program is not None
        assert outcome(program, check) is None, program


# Parts


@pytest.mark.parametrize(
    ("text", "thoughts", "prose", "blocks", "language", "complete"),
    [
        ("", "", "", [], None, True),
        ("No.", "", "No.", [], None, True),
        ("<think>\nA.\n</think>\n\nB.", "A.", "B.", [], None, True),
        ("A.\n</think>\nB.", "A.", "B.", [], None, True),
        ("<think>A.", "A.", "", [], None, False),
        ("<think>A.</think>B.<think>C.</think>D.", "A.\nC.", "B.D.", [], None, True),
        ("B. </think>", "B.", "", [], None, True),
        ("The tag `</think>` ends them.", "", "The tag `</think>` ends them.", [], None, True),
        ("A\n```js\nf()\n```\nB", "", "A\n\n\nB", [("javascript", "f()\n", True)], "javascript", True),
        (
            "~~~C++ numbered\nint x;\n~~~\nor\n~~~\ng()",
            "",
            "or",
            [("cpp", "int x;\n", True), ("", "g()", False)],
            "cpp",
            False,
        ),
        ("  ```py\n  x = 1\n    y\n  ```", "", "", [("python", "x = 1\n  y\n", True)], "python", True),
        ("````md\n```py\nx = 1\n```\n````", "", "````md\n\n\n````", [("python", "x = 1\n", True)], "python", True),
        (
            "```python\nx = 1\n```python\ny = 1\n```",
            "",
            "",
            [("python", "x = 1\n", False), ("python", "y = 1\n", True)],
            "python",
            False,
        ),
        ("```brainfuck\n+\n```", "", "", [("brainfuck", "+\n", True)], "brainfuck", True),
        ("```\n42\n```", "", "", [("", "42\n", True)], None, True),
        ("[PYTHON]\nx = 1\n[/PYTHON]!", "", "!", [("python", "x = 1", True)], "python", True),
        ("x = f(1)", "", "x = f(1)", [], "python", True),
        ("\x1b[31mred\x1b[0m\r\n<|im_end|>\n<|im_start|>user", "", "red", [], None, True),
    ],
)
def test_parts(text: str, thoughts: str, prose: str, blocks: list, language: str | None, complete: bool):
    answer = parse_answer(text)
    assert (answer.thoughts, answer.prose, answer.language, answer.complete) == (thoughts, prose, language, complete)
    assert [(block.language, block.text, block.closed) for block in answer.blocks] == blocks


def test_positions_of_blocks():
    text = "a\n  ```c++ numbered\n  int x;\n  ```\nb\n~~~\nrest"
    answer = parse_answer(text)
    first, second = answer.blocks
    assert text[: first.start] == "a\n" and text[first.end : second.start] == "\nb\n" and second.end == len(text)


# Input and output beside a program

DATA = [
    "hello",
    "nan",
    "inf",
    "[apple, pear]",
    "Hello, Alice",
    "Name: Alice\nAge: 3",
    "name = Alice",
    "Point(x=one, y=two)",
    "Woof\nMeow",
    "1\n2\nFizz\n4",
    '{"a": null, "b": true}',
    "10/0",
    "{apple: 3}",
    "Error",
]


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("tag", ["", "text", "json", "output", "plaintext"])
@pytest.mark.parametrize("entry_point", [None, "missing"])
def test_data_is_not_part_of_a_program(data: str, tag: str, entry_point: str | None):
    code = "```python\nprint('hello')\n```"
    block = f"```{tag}\n{data}\n```"
    untagged = code.replace("python", "")
    for answer in [
        f"{code}\nOutput:\n{block}",
        f"{code}\n\nand then\n\n{block}",
        f"Given\n{block}\nrun\n{code}",
        f"{untagged}\n\n### Sample output 1:\n\n{block}",
        f"{untagged}\nThis prints\n{block}",
    ]:
        assert extract_program(answer, entry_point).strip() == "print('hello')"


@pytest.mark.parametrize(
    "announcement",
    ["Output:", "**Output**", "Expected output (for 3):", "Running it prints:", "The result is:", "## Input", "输出:"],
)
@pytest.mark.parametrize("tag", ["", "text", "python"])
def test_announced_data_is_not_part_of_a_program(announcement: str, tag: str):
    answer = f"```python\ntotal = 3\nprint(total)\n```\n{announcement}\n```{tag}\ntotal = 4\n```"
    assert extract_program(answer) == "total = 3\nprint(total)\n"


@pytest.mark.parametrize(
    "block",
    [
        "import math",
        "def g():\n    return other",
        "for i in range(3):\n    f(i)",
        "print(f(missing))",
        "f(3)",
        "y = f(3)",
        "ys = [f(each) for each in range(3)]",
        "g = lambda value: f(value)",
        "assert f(1) == 1",
        "f.calls = 0",
    ],
)
@pytest.mark.parametrize("tag", ["", "text"])
def test_blocks_without_a_tag_continue_a_program(block: str, tag: str):
    for first in ("python", ""):
        answer = f"```{first}\ndef f(x):\n    return x\n```\nThen:\n```{tag}\n{block}\n```"
        assert extract_program(answer) == f"def f(x):\n    return x\n{block}"


@pytest.mark.parametrize("block", ["hello", "x = y", "print(1)", "3"])
def test_the_only_block_is_the_program(block: str):
    assert extract_program(f"Output:\n```\n{block}\n```") == f"{block}\n"


# Any text


TOKENS = [
    *"`~()[]{}<>\"'#:=\n \t\\0f",
    "```",
    "~~~",
    "python",
    "def f(",
    "):\n",
    "    return ",
    "import ",
    '"""',
    ">>> ",
]
TOKENS += [
    "<think>",
    "</think>",
    "[BEGIN]",
    "[DONE]",
    "<code>",
    "</code>",
    "<|im_end|>",
    "\0",
    "\ud800",
    "\x1b[",
    "In [1]: ",
]


@pytest.mark.parametrize("seed", range(150))
def test_any_text_can_be_parsed(seed: int):
    draw = random.Random(seed)
    text = "".join(draw.choices(TOKENS, k=200))
    answer = parse_answer(text, "f")
    edges = [0, *(edge for block in answer.blocks for edge in (block.start, block.end)), len(answer.text)]
    assert edges == sorted(edges)
    assert isinstance(extract_program(text), str)
    if answer.program is not None and not any(mark in text for mark in ("&", "{")):
        words = set(re.findall(r"\w+", text))
        assert set(re.findall(r"\w+", answer.program)) <= words, "no word that the model did not write"


UNITS = [
    " ",
    "\t",
    "\n",
    "(",
    "(\n",
    "{",
    "[",
    "not ",
    "x = 1\n",
    "def f(:\n",
    "def f():\n",
    "```\n",
    "```python\n",
    '"""\n',
]
UNITS += [
    '```python\n"""\n```\n',
    '```python\nx = """\n```\n',
    "<think>",
    "<think>\n",
    "</think>\n",
    '"</think>',
    "`",
    "` ",
]
UNITS += [
    "<code>\n",
    "[BEGIN]\n",
    "<fim_suffix>",
    "<|im_end|>",
    "\x1b[",
    "\x1b]0;",
    "\0",
    "\ud800",
    "- > ",
    "1. x\n",
    "\\\n",
]
UNITS += [
    "if x:\n",
    ">>> f(\n",
    "&lt;",
    "a.b",
    "lambda:",
    "+x\n-y\n",
    "analysisWe assistant",
    "<|channel|>analysis<|message|>",
]


@pytest.mark.parametrize("unit", UNITS)
def test_repetitive_texts_take_linear_time(unit: str):
    """Quadratic time would be minutes."""
    text = unit * (20_000 // len(unit))
    parse_answer(text, "f")
    parse_answer(f"```python\ndef f():\n    return 1\n```\n{text}", "f")


@pytest.mark.parametrize(
    "deep",
    [
        "x" + ".a" * 2500 + " = 1",
        "x" + "[0]" * 2500 + " = 1",
        "x = " + "+".join("1" * 2500),
        "x = " + "lambda: " * 1200 + "1",
        "def stub():\n    raise x" + ".a" * 2500,
        "if x: pass\n" + "elif x: pass\n" * 900,
    ],
)
def test_deep_syntax_trees(deep: str):
    """Trees that Python parses, but that are too deep for its recursive functions."""
    program = f"{deep}\n\ndef one():\n    return 1\n\ndef stub():\n    raise x{'()' * 2500}\n"
    for entry_point in ("one", "stub"):
        found = extract_program(f"```python\n{program}\n```", entry_point)
        assert f"def {entry_point}()" in found


def test_many_definitions_take_linear_time():
    chain = "".join(f"def f{number}(x):\n    return f{number - 1}(x)\n" for number in range(1, 1000))
    program = parse_answer(f"```python\n{chain}print(f1(input()))\n```", "f999").program
    assert program is not None and ast.dump(ast.parse(program)) == ast.dump(ast.parse(chain))


def test_a_definition_that_is_repeated_takes_linear_time():
    repeated = "d = {}\n" + "def g(x):\n    d[x] = 1\n\ng(d)\n" * 6000
    begin = time.process_time()
    program = parse_answer(f"```python\n{repeated}def f(x):\n    return d[x]\n```", "f").program
    assert time.process_time() - begin < 6
    assert program is not None and program.startswith("d = {}") and "g(d)" in program


@pytest.mark.parametrize("step", [1, -1])
def test_many_outputs_that_need_each_other_take_quadratic_time_at_most(step: int):
    """Cubic time would be minutes."""
    outputs = "".join(f"Output:\n```\nx{number} = x{number + 1} + 1\n```\n" for number in range(800)[::step])
    program = parse_answer(f"```python\nprint(x0)\n```\n{outputs}").program
    assert program is not None and program.count("\n") == 800


# Real programs in any wrapping


WRAPPINGS = {
    "demo": "```python\n{code}\n\nn = int(input())\nprint({name}(n))\nassert {name}(1) == 'no'\n```\nIt's done (",
    "main": "```python\n{code}\n\nif __name__ == '__main__':\n    print({name}(input()))\n```",
    "prose": "Here is the solution:\n\n{code}\n\nThis is O(n). Tell me if it doesn't help (or does)!",
    "thoughts": "Maybe\n```python\ndef {name}(*args):\n    return 'draft'\n```\n</think>\n```python\n{code}\n```",
    "usage": "```python\n{code}\n```\nUse it:\n```python\nfrom solution import {name}\n{name} = {name}(3)\n```",
    "done": "[BEGIN]\n{code}\n[DONE]\nNext",
    "stray": "{code}\n```\nThat is all.",
    "prompt": "```python\n{code}\n\n>>> {name}(1)\n2\n```",
    "tests": "```python\nimport unittest\n{code}\n\nclass T(unittest.TestCase):\n    x = 1\n\nunittest.main()\n```",
    "mistake": "```python\n{code}\n```\nA common mistake is:\n```python\ndef {name}(*args):\n    return None\n```",
}


def definitions(program: str) -> set[str]:
    """Return the functions, classes, imports and values of a program as trees, without uses of the entry point."""
    kinds = (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
    return {ast.dump(node) for node in ast.parse(program).body if isinstance(node, kinds)}


def check_wrapping(code: str, name: str, wrapping: str) -> None:
    program = extract_program(WRAPPINGS[wrapping].replace("{code}", code).replace("{name}", name), name)
    unneeded = {ast.dump(node) for node in ast.parse(code).body if isinstance(node, ast.Import | ast.ImportFrom)}
    assert definitions(code) - unneeded <= definitions(program) <= definitions(code), (wrapping, program)


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_solutions_of_humaneval_are_extracted(wrapping: str):
    with gzip.open(data("humaneval/HumanEval.jsonl.gz")) as lines:
        for row in map(json.loads, lines):
            check_wrapping(row["prompt"] + row["canonical_solution"], row["entry_point"], wrapping)


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_solutions_of_mbpp_are_extracted(wrapping: str):
    path = data("mbpp/mbpp.jsonl")
    names = {problem.task_id: problem.entry_point for problem in load_benchmark("mbpp", path).problems}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows[::5]:
        if (name := names.get(str(row["task_id"]))) is not None:
            check_wrapping(row["code"].replace("\r\n", "\n"), name, wrapping)


def test_programs_of_apps_are_complete():
    for home in sorted(data("apps/train").iterdir()):
        for solution in json.loads((home / "solutions.json").read_text()):
            for text in (
                f"```python\n{solution}\n```\nSample input:\n```\n3\n```\nRun:\n```bash\npython main.py\n```",
                f"<think>print(1)</think>\nIdea:\n```python\nx = [1]\n```\nAll:\n```python\n{solution}\n```",
            ):
                assert extract_program(text).strip() == solution.strip()
