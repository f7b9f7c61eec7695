"""The reader of answers, on answers as models write them."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from trl_akd.generation import parse_answer

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
    """Run a program and return what is wrong with it; its standard input is empty unless the check gives one."""
    given, expected = map(eval, re.findall(r"'[^']*'", check)) if check.startswith("IO ") else ("", None)
    printed = io.StringIO()
    names = {"__name__": "__main__" if expected is not None else "answer"}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr("sys.stdin", io.StringIO(given))
        try:
            exec(program, names)
            passed = printed.getvalue() == expected if expected is not None else eval(check, names)
        except (Exception, SystemExit) as error:
            return repr(error)
    return None if passed else "another result"


@pytest.mark.parametrize(("text", "entry_point", "check"), [pytest.param(*case[1:], id=case[0]) for case in corpus()])
def test_programs_are_read_as_a_careful_person_reads_them(text: str, entry_point: str | None, check: str):
    program = parse_answer(text, entry_point).program
    if check == NO_PROGRAM:
        assert program is None
    else:
        assert program is not None
        assert outcome(program, check) is None, program
