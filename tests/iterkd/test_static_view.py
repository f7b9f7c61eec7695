import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.iterkd.scripted import soda
from trl_akd.execution import CodeExecutor, ExecutionResult
from trl_akd.iterkd.cycle.feedback import MAX_CHARS, MAX_FINDINGS, StaticView, program_of, static_views


def fenced(code: str, tag: str = "python") -> str:
    return f"Here you are:\n\n```{tag}\n{code}\n```\n\nIt does that."


def view(answer: str, run=None) -> StaticView:
    [found] = static_views([answer], run)
    return found


@pytest.fixture(scope="module")
def run():
    with CodeExecutor(1, allow_code_execution=True) as executor:
        yield lambda programs: executor.run(programs, timeout=1.0)


# Completeness


@pytest.mark.parametrize(
    ("answer", "complete"),
    [
        ("", True),
        ("I cannot do that.", True),
        (fenced("x = 1"), True),
        ("```python\nx = 1", False),
        (fenced("x = 1") + "\n```bash\npython x.py", False),
        ("~~~\nx = 1\n~~~", True),
        ("<think>\n```python\nx = 1\n</think>\nx = 2", True),
        ("<think>Let me see: x", False),
    ],
)
def test_fences_and_thoughts_are_closed(answer: str, complete: bool):
    assert view(answer).complete is complete


# Language and program


@pytest.mark.parametrize(
    ("answer", "language"),
    [
        (fenced("x = 1", "Python"), "python"),
        (fenced("x = 1", "py"), "python"),
        (fenced("x = 1", ""), "python"),
        (fenced("let x = 1;", "javascript"), "javascript"),
        (fenced("let x = 1;", "js"), "javascript"),
        (fenced("let x: number = 1;", "ts"), "typescript"),
        (fenced("int x;", "c"), "c"),
        (fenced("int x;", "cpp"), "cpp"),
        (fenced("int x;", "C++"), "cpp"),
        (fenced("int x;", "c#"), "csharp"),
        (fenced("class A {}", "java"), "java"),
        (fenced("package main", "golang"), "go"),
        (fenced("SELECT 1", "sql"), "sql"),
        (fenced("x", "y" * 1000), "y" * 20),
        (fenced("pip install x", "bash") + fenced("x = 1"), "shell"),
        (fenced("x = 1") + fenced("python x.py", "bash"), "python"),
        (fenced("int main() { return 0; }", ""), None),
        ("def one():\n    return 1", "python"),
        ("Sure:\n\ndef one():\n    return 1\n\nThat is it.", "python"),
        ("def one(:\n    return 1", "python"),
        ("print(1)", "python"),
        ("import java.util.*;\n\nclass A {}", None),
        ("I cannot do that.", None),
        ("Sorry", None),
        ("42", None),
        ("", None),
    ],
)
def test_languages(answer: str, language: str | None):
    found = view(answer)
    assert found.language == language
    assert (found.parses is None) is (language != "python")


def test_closed_thoughts_are_not_searched_for_code():
    assert program_of("<think>\ndef one(): ...\n</think>\n```python\nx = 2\n```").strip() == "x = 2"


def test_unterminated_answer_is_not_searched():
    answer = "x = 1\n" * (MAX_CHARS // 6 + 1)
    assert program_of(answer) is None and view(answer) == StaticView(True, None)
    assert view(fenced(answer)) == StaticView(True, "python")


# What tools say


def test_without_a_runner_only_parsing_counts():
    assert view(fenced("print(")) == StaticView(True, "python", False, False, "fail", "SyntaxError")
    assert view(fenced("return 1")).executed == "unknown" and view(fenced("return 1")).parses


@pytest.mark.parametrize(
    ("program", "compiles", "executed", "error_type"),
    [
        ("print(1)", True, "pass", None),
        ("import sys\nsys.exit()", True, "pass", None),
        ("import os\nos._exit(0)", True, "pass", None),
        ("import sys\nsys.exit(2)", True, "fail", "SystemExit"),
        ("1 / 0", True, "fail", "ZeroDivisionError"),
        ("while True: pass", True, "fail", "timeout"),
        ("import os\nos.kill(os.getpid(), 9)", True, "fail", "signal"),
        ("return 1", False, "fail", "SyntaxError"),
        ("  x = (", False, "fail", "IndentationError"),
        ("x = input()", True, "unknown", "EOFError"),
        ("import torch_of_tomorrow.nn", True, "unknown", "ModuleNotFoundError"),
        ("import json.nothing", True, "fail", "ModuleNotFoundError"),
    ],
)
def test_programs_are_run_as_main_programs(
    run, program: str, compiles: bool | None, executed: str, error_type: str | None
):
    found = view(fenced(program), run)
    assert (found.compiles, found.executed, found.error_type) == (compiles, executed, error_type)


def test_errors_of_the_sandbox_are_unknown():
    def broken(programs):
        return [ExecutionResult("infra_error") for _ in programs]

    assert view(fenced("x = 1"), broken).executed == "unknown"
    assert view(fenced("x = ("), broken).executed == "fail", "that it does not parse is known all the same"


def test_only_python_is_run_and_results_find_their_answers():
    asked = []

    def runner(programs):
        asked.extend(programs)
        return [ExecutionResult("failed", "Error", stage="load") for _ in programs]

    answers = [fenced("f()", "js"), fenced("x = 1"), "No.", fenced("x = 2"), fenced("SELECT 3", "sql")]
    found = static_views(answers, runner)
    assert [tests for _, tests in asked] == ["", ""]
    assert repr("x = 1\n") in asked[0][0] and repr("x = 2\n") in asked[1][0]
    assert [one.error_type is not None for one in found] == [False, True, False, True, False]
    assert static_views(["No.", ""], lambda programs: pytest.fail("nothing to run"))[0].executed == "unknown"
    assert static_views([], runner) == []


def test_findings_are_in_order_and_bounded():
    found = view(fenced("import os\n\ndef f():\n    return undefined\n"))
    assert found.findings == ("line 1: 'os' imported but unused", "line 4: undefined name 'undefined'")
    many = view(fenced("\n".join(f"a{number}" + "b" * 300 for number in range(50))))
    assert many.num_findings == 50 and len(many.findings) == MAX_FINDINGS
    assert max(map(len, many.findings)) == 200


@given(
    st.lists(
        st.sampled_from(
            ["```", "~~~", "python", "js", "\n", "def f(", "):", "x = ", "1", "import ", "<think>", "\0", "é"]
        )
    ).map("".join)
)
def test_any_text_has_a_view(text: str):
    found = view(text)
    assert json.loads(json.dumps(found.findings)) == list(found.findings)
    assert found.executed == ("fail" if found.parses is False else "unknown")
    assert found.complete or "```" in text or "~~~" in text or "<think>" in text


@pytest.mark.parametrize("nested", ["(" * 40_000, "-" * 40_000 + "1", "[" * 90 + "]" * 90, "x" + ".y" * 20_000])
def test_deeply_nested_programs(nested: str):
    assert view(fenced(nested)).language == "python"


# Real answers


def test_the_released_answers(run):
    """Correct answers of SODA's pairs: all fences are closed, and the counts of languages are those counted
    independently."""
    found = static_views([row["response"][0] for row in soda("pairwise_data.json")], run)
    assert all(one.complete for one in found)
    languages = [one.language for one in found]
    assert languages.count("python") == 50 and languages.count("sql") == languages.count("html") == 8
    assert languages.count("cpp") == languages.count("java") == 4 and languages.count("csharp") == 2
    assert languages.count("javascript") >= 7
    python = [one for one in found if one.language == "python"]
    assert sum(one.parses is False for one in python) == 1
    assert sum(one.executed == "fail" for one in python) <= 5
