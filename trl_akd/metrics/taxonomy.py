"""Labels of program errors, by the taxonomy of Adaptive Knowledge Distillation (AKD, jos.org.cn 7462).

Tables 2 and 13 of the paper assign the programs of HumanEval and MBPP to 14 exception types with 19 causes. The totals
of all seven columns of table 13 follow if a program is

- *complete* if it passes, or fails an assertion without being a stub: this is a wrong answer, which has no row;
- *incomplete* if any other exception ended it, or if a stub (an empty body, `pass`, `return 0`) failed.

Differences from the paper, whose labels three people assigned, while these are automatic:

- The available text of the paper gives the numbers 14 and 19, but not all names. It names NameError and ValueError
with
  three causes, SyntaxError with two, AssertionError (stubs), TypeError, IndexError and RecursionError;
  IndentationError, KeyError, ModuleNotFoundError, NotImplementedError, TimeoutError and UnboundLocalError follow from
  its rules; AttributeError is our choice for the fourteenth.
- Table 2 lists the empty sequence under SyntaxError; here it is a cause of ValueError, as in table 13.
- There are additional rows for other exceptions, crashes, early exits, memory limits, the executor's timeout (as
opposed
  to a TimeoutError raised by the program), and syntax errors caused neither by the length limit nor by a delimiter.
  These programs are incomplete too. The rows therefore add up to the incomplete programs, and complete and incomplete
  programs to all programs without infrastructure errors.
- If the tests lack a module, a part of a module, or a name other than that of the function that they call, the error
says
  nothing about the program (`is_tests_own_error`); it counts as another exception.
- Programs that the executor could not run (`infra_error`) are neither complete nor incomplete and are counted
separately.
"""

import ast
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from trl_akd.execution.result import ExecutionResult

__all__ = ["CAUSES", "OWN_CAUSES", "ErrorLabel", "ErrorTable", "classify", "error_table", "is_tests_own_error"]

CAUSES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "AssertionError": ("stub",),
        "AttributeError": ("missing_attribute",),
        "IndentationError": ("bad_indentation",),
        "IndexError": ("index_out_of_range",),
        "KeyError": ("missing_key",),
        "ModuleNotFoundError": ("missing_module",),
        "NameError": ("wrong_function_name", "missing_content", "missing_import"),
        "NotImplementedError": ("not_implemented",),
        "RecursionError": ("endless_recursion",),
        "SyntaxError": ("overflow", "unbalanced_delimiters"),
        "TimeoutError": ("raised_timeout",),
        "TypeError": ("wrong_type",),
        "UnboundLocalError": ("read_before_assignment",),
        "ValueError": ("intentional_raise", "empty_sequence", "bad_value"),
    }
)
"""The paper's exception types and their causes."""

OWN_CAUSES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "SyntaxError": ("other_syntax",),
        "other_exception": ("other_exception",),
        "crash": ("crash",),
        "early_exit": ("early_exit",),
        "memory": ("memory",),
        "timeout": ("timeout",),
    }
)
"""Labels without a row in the paper's table."""

_ROWS = tuple((kind, cause) for table in (CAUSES, OWN_CAUSES) for kind, causes in table.items() for cause in causes)
_ENDINGS = {"signal": "crash", "exit": "early_exit", "memory": "memory", "deadline": "timeout"}
_DELIMITERS = re.compile(
    r"never closed|unmatched|does not match|unterminated|unexpected EOF|EOF while|f-string: expect"
)
_EMPTY_SEQUENCE = re.compile(r"empty sequence|argument is empty")
_MODULE_LACKS = re.compile(r"(partially initialized )?module '[^']*' has no attribute ")
_LONGEST = 100_000  # characters; parsing megabytes of a hostile program would take seconds and gigabytes

# Names that programs often use without importing them, in addition to the modules of the standard library.
_IMPORTABLE = frozenset(
    """
    np numpy pd pandas plt matplotlib scipy sklearn sympy torch
    Any Callable Dict FrozenSet Generator Iterable Iterator List Mapping Optional Sequence Set Tuple Type TypeVar Union
    ChainMap Counter OrderedDict defaultdict deque namedtuple
    ceil comb factorial floor gcd isqrt lcm log2 log10 sqrt
    accumulate chain combinations combinations_with_replacement groupby islice permutations starmap zip_longest
    cache cmp_to_key lru_cache partial reduce
    bisect_left bisect_right insort heapify heappop heappush heapreplace nlargest nsmallest
    Decimal Fraction dataclass datetime timedelta deepcopy randint
    """.split()
)

_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class ErrorLabel:
    """Label of the result of a program.

    Args:
        error_type (`str`, *optional*): Key of [`CAUSES`] or [`OWN_CAUSES`], `"wrong_answer"`, `"infra_error"`, or
        `None`
            for a correct program.
        cause (`str`, *optional*): Cause of that type, or the type itself if it has no causes.
        complete (`bool`, *optional*): Whether the program gave an answer, right or wrong; `None` if it could not be
        run.
    """

    error_type: str | None
    cause: str | None
    complete: bool | None

    @property
    def correct(self) -> bool:
        """Whether the program passed."""
        return self.error_type is None


_CORRECT = ErrorLabel(None, None, True)
_WRONG_ANSWER = ErrorLabel("wrong_answer", "wrong_answer", True)
_INFRA_ERROR = ErrorLabel("infra_error", "infra_error", None)


@dataclass(frozen=True, slots=True)
class ErrorTable:
    """Counts of programs, as in table 13 of the AKD paper.

    Args:
        rows (`Mapping[tuple[str, str], int]`): Number of incomplete programs by type and cause, for all rows of
            [`CAUSES`] and [`OWN_CAUSES`].
        correct (`int`): Number of programs that passed.
        wrong (`int`): Number of complete programs with a wrong answer.
        infra_errors (`int`): Number of programs with infrastructure errors, which are in no other count.
    """

    rows: Mapping[tuple[str, str], int]
    correct: int
    wrong: int
    infra_errors: int

    @property
    def complete(self) -> int:
        """Number of programs that gave an answer."""
        return self.correct + self.wrong

    @property
    def incomplete(self) -> int:
        """Number of programs that gave no answer."""
        return sum(self.rows.values())

    @property
    def judged(self) -> int:
        """Number of programs without infrastructure errors."""
        return self.complete + self.incomplete

    @property
    def correct_among_complete(self) -> float:
        """Fraction of complete programs that are correct; 0 if none is complete."""
        return self.correct / self.complete if self.complete else 0.0

    def by_type(self) -> dict[str, int]:
        """Return the sum of the rows of each type, in the order of the rows."""
        totals: Counter[str] = Counter()
        for (kind, _), count in self.rows.items():
            totals[kind] += count
        return dict(totals)

    def as_dict(self) -> dict[str, int | float]:
        """Return the table as a flat dict, with rows as `type/cause`."""
        judged = max(self.judged, 1)
        return {
            "judged": self.judged,
            "correct": self.correct,
            "wrong_answer": self.wrong,
            "complete": self.complete,
            "incomplete": self.incomplete,
            "infra_errors": self.infra_errors,
            "correct_share": self.correct / judged,
            "complete_share": self.complete / judged,
            "incomplete_share": self.incomplete / judged,
            "correct_among_complete": self.correct_among_complete,
            **{f"{kind}/{cause}": count for (kind, cause), count in self.rows.items()},
        }


def classify(
    result: ExecutionResult, program: str, entry_point: str | None = None, truncated: bool = False
) -> ErrorLabel:
    """Label the result of a program.

    Args:
        result ([`ExecutionResult`]): Result of running the program. program (`str`): Text of the program. It is parsed
        but not run; programs of more than 100,000 characters are not
            parsed and do not count as stubs.
        entry_point (`str`, *optional*): Function that the tests call. Without it, a program is a stub if it has no
        effect.
        truncated (`bool`, *optional*, defaults to `False`): Whether generation stopped at its length limit.

    Returns:
        [`ErrorLabel`]: Label with the type of the exception's class or of its nearest base class that has a row.

    Example:
        ```python
        >>> failed = ExecutionResult("failed", error_type="AssertionError", ending="exception", origin="test")
        >>> classify(failed, "def add(a, b):\\n    return a - b", "add")
        ErrorLabel(error_type='wrong_answer', cause='wrong_answer', complete=True)
        >>> classify(failed, "def add(a, b):\\n    pass", "add")
        ErrorLabel(error_type='AssertionError', cause='stub', complete=False)

        ```
    """
    match result.status:
        case "passed":
            return _CORRECT
        case "infra_error":
            return _INFRA_ERROR
        case "timed_out":
            return _incomplete("timeout")
    if result.ending in _ENDINGS:
        return _incomplete(_ENDINGS[result.ending])
    lineage = (result.error_type or "", *result.error_bases)
    kind = next((name for name in lineage if name in CAUSES), "other_exception")
    if kind == "AssertionError" and not _is_stub(program, entry_point):
        return _WRONG_ANSWER
    if is_tests_own_error(result, entry_point):
        return _incomplete("other_exception")
    return _incomplete(kind, _cause(kind, result, program, entry_point, truncated))


def is_tests_own_error(result: ExecutionResult, entry_point: str | None = None) -> bool:
    """Return whether the tests lack a module, a part of one, or a name other than that of the function they call.

    Args:
        result ([`ExecutionResult`]): Result of running a program.
        entry_point (`str`, *optional*): Function that the tests call. Without it, only names of modules and names that
            are usually imported count as missing in the tests.

    Example:
        ```python
        >>> failed = ExecutionResult("failed", error_type="NameError", origin="test", missing="helper")
        >>> is_tests_own_error(failed, "add"), is_tests_own_error(failed, "helper"), is_tests_own_error(failed)
        (True, False, False)

        ```
    """
    if result.origin != "test":
        return False
    if result.error_type in ("ModuleNotFoundError", "ImportError", "UnboundLocalError"):
        return True
    if result.error_type == "AttributeError":
        return _MODULE_LACKS.match(result.message) is not None
    if result.error_type != "NameError" or result.missing == entry_point:
        return False
    return entry_point is not None or _is_importable(result.missing)


def error_table(labels: Iterable[ErrorLabel]) -> ErrorTable:
    """Count labels by row.

    The rows add up to the incomplete programs, and complete and incomplete programs to all programs that were run.

    Args:
        labels (`Iterable[ErrorLabel]`): Labels from [`classify`], one per program.

    Returns:
        [`ErrorTable`]: Counts of all rows, including zeros.

    Raises:
        ValueError: If [`classify`] does not return such a label.

    Example:
        ```python
        >>> table = error_table([_CORRECT] * 186 + [_WRONG_ANSWER] * 374 + [_incomplete("TypeError")] * 104)
        >>> table.complete, table.incomplete, table.judged  # AKD's student, table 13
        (560, 104, 664)
        >>> f"{table.correct_among_complete:.1%}"
        '33.2%'

        ```
    """
    counts = Counter(labels)
    known = {_CORRECT, _WRONG_ANSWER, _INFRA_ERROR, *(ErrorLabel(kind, cause, False) for kind, cause in _ROWS)}
    for label in counts.keys() - known:
        raise ValueError(f"labels holds {label}, which has no row; take labels from classify.")
    return ErrorTable(
        rows={(kind, cause): counts[ErrorLabel(kind, cause, False)] for kind, cause in _ROWS},
        correct=counts[_CORRECT],
        wrong=counts[_WRONG_ANSWER],
        infra_errors=counts[_INFRA_ERROR],
    )


def _incomplete(kind: str, cause: str | None = None) -> ErrorLabel:
    return ErrorLabel(kind, cause or {**OWN_CAUSES, **CAUSES}[kind][0], False)


def _cause(kind: str, result: ExecutionResult, program: str, entry_point: str | None, truncated: bool) -> str | None:
    """Return the cause of an error whose type has several."""
    match kind:
        case "NameError":
            return _cause_of_name_error(result, program, entry_point)
        case "SyntaxError":
            if truncated and result.origin == "candidate":
                return "overflow"
            return "unbalanced_delimiters" if _DELIMITERS.search(result.message) else "other_syntax"
        case "ValueError":
            if result.raised and result.origin == "candidate":
                return "intentional_raise"
            return "empty_sequence" if _EMPTY_SEQUENCE.search(result.message) else "bad_value"
    return None


def _cause_of_name_error(result: ExecutionResult, program: str, entry_point: str | None) -> str:
    name = result.missing
    if name != entry_point and _is_importable(name):
        return "missing_import"
    asked_for_by_test = name == entry_point or result.origin == "test"
    return "wrong_function_name" if asked_for_by_test and _functions(_parse(program)) else "missing_content"


def _is_importable(name: str | None) -> bool:
    return name in sys.stdlib_module_names or name in _IMPORTABLE


def _is_stub(program: str, entry_point: str | None) -> bool:
    tree = _parse(program)
    if entry_point is None:
        return tree is not None and all(_does_nothing(statement) for statement in tree.body)
    named = [function for function in _functions(tree) if function.name == entry_point]
    return bool(named) and _does_nothing(named[-1])


def _does_nothing(statement: ast.stmt) -> bool:
    """Return whether a statement, when run or called, only returns a constant."""
    match statement:
        case ast.FunctionDef(body=body) | ast.AsyncFunctionDef(body=body) | ast.ClassDef(body=body):
            return all(map(_does_nothing, body))
        case ast.Pass() | ast.Import() | ast.ImportFrom() | ast.Return(value=None) | ast.Expr(value=ast.Constant()):
            return True
        case ast.Return(value=ast.expr() as value):
            return _is_literal(value)
        case ast.Raise(exc=ast.Name("NotImplementedError") | ast.Call(func=ast.Name("NotImplementedError"))):
            return True
    return False


def _is_literal(value: ast.expr) -> bool:
    try:
        ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    return True


def _functions(tree: ast.Module | None) -> list[_Function]:
    return [node for node in ast.walk(tree) if isinstance(node, _Function)] if tree else []


def _parse(program: str) -> ast.Module | None:
    """Parse an untrusted program; `None` if that fails."""
    if len(program) > _LONGEST:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(program)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
