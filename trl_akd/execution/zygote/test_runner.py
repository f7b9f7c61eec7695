"""Running a test program as its author meant it: as the main program, and with the checks that it only defines."""

import sys
import types
from collections.abc import Callable
from types import CodeType, ModuleType
from typing import Any

from . import exceptions

CANDIDATE = "candidate"
_MAIN = "__main__"
_READ_BY_UNITTEST = ("load_tests", "setUpModule", "tearDownModule")


class TestRun:
    """Prepare to run a test program; made before the candidate runs, which could replace modules.

    Args:
        checks (`dict`): `functions`, `runners` and `exits` of the test program, as found by the caller.
        file (`str`): the file name under which the test program is compiled.
        candidate_file (`str`): that of the candidate.
    """

    def __init__(self, checks: dict[str, Any], file: str, candidate_file: str) -> None:
        self._functions: list[str] = checks["functions"]
        self._exits = {tuple(place) for place in checks["exits"]}
        self._file, self._candidate_file = file, candidate_file
        self._uses_pytest = "pytest" in checks["runners"]
        self._cases = _UnittestCases(self._passes_candidate) if "unittest" in checks["runners"] else None
        self._execute = exec

    def execute(self, test: CodeType, module: ModuleType) -> None:
        """Run the test program as `__main__` in a module's namespace, then the checks that it has defined only.

        Raises:
            BaseException: What the test program raises, or the first failure of its checks.
        """
        namespace = module.__dict__
        namespace["__name__"] = _MAIN
        sys.modules[_MAIN] = module
        if self._uses_pytest:
            _let_pytest_pass()
        if self._cases is not None:
            self._cases.watch()
            for name in _READ_BY_UNITTEST:
                namespace.pop(name, None)  # the candidate's
        try:
            self._execute(test, namespace)
        except SystemExit as error:
            self._raise_failure()
            if not self._ends_itself(error):
                raise
        self._raise_failure()
        if self._cases is not None:
            self._cases.run_rest(namespace)
            self._raise_failure()
        for name in self._functions:
            if (found := namespace.get(name)) is not None and not self._is_test_case(found):
                _call(found)

    def _is_test_case(self, found: object) -> bool:
        return self._cases is not None and self._cases.is_test_case(found)

    def _raise_failure(self) -> None:
        if self._cases is not None and self._cases.failure is not None:
            raise self._cases.failure

    def _ends_itself(self, error: SystemExit) -> bool:
        """Tell whether a line of the test program's own, and nothing of the candidate's, ends it with status 0."""
        if exceptions.exit_code(error) != 0 or self._passes_candidate(error):
            return False
        place = None
        trace = error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == self._file:
                place = list(trace.tb_frame.f_code.co_positions())[trace.tb_lasti // 2]
            trace = trace.tb_next
        return place in self._exits

    def _passes_candidate(self, error: BaseException) -> bool:
        """Tell whether an exception came out of a line of the candidate's, in this process or in its own."""
        trace = error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == self._candidate_file:
                return True
            trace = trace.tb_next
        return hasattr(error, "candidate_facts")


class _UnittestCases:
    """The TestCases of the test program: watched, so that a failure counts however they are run.

    Args:
        passes_candidate (`Callable`): tells whether an exception came out of the candidate.
    """

    failure: BaseException | None = None

    def __init__(self, passes_candidate: Callable[[BaseException], bool]) -> None:
        import unittest  # takes milliseconds, and few tests use it

        self._unittest = unittest
        self._passes_candidate = passes_candidate
        self._started: set[type] = set()

    def watch(self) -> None:
        """Take note of every failure from now on, and leave out TestCases of the candidate's own."""
        sys.modules["unittest"] = self._unittest
        result: Any = self._unittest.TestResult
        notes: dict[str, Callable[..., object]] = {
            "startTest": lambda run, test: self._started.add(type(test)),
            "addError": lambda run, test, error: self._fail(run, test, error[1]),
            "addFailure": lambda run, test, error: self._fail(run, test, error[1]),
            "addSubTest": lambda run, test, _, error: self._fail(run, test, error and error[1]),
            "addUnexpectedSuccess": lambda run, test: self._fail(run, test, AssertionError("expected to fail")),
            "addSkip": lambda run, test, _: self._fail_if_candidate_skipped(run, test),
        }
        for name, note in notes.items():
            setattr(result, name, _after(note, getattr(result, name)))
        loader: Any = self._unittest.TestLoader
        load = loader.loadTestsFromTestCase

        def load_tests_own(self: Any, case: type) -> Any:
            return self.suiteClass() if case.__module__ == CANDIDATE else load(self, case)

        loader.loadTestsFromTestCase = load_tests_own

    def is_test_case(self, value: object) -> bool:
        """Tell whether a value is a class of unittest's test cases."""
        return isinstance(value, type) and issubclass(value, self._unittest.TestCase)

    def run_rest(self, namespace: dict[str, Any]) -> None:
        """Run the TestCases in a namespace that have not been run."""
        loader = self._unittest.defaultTestLoader
        suite = self._unittest.TestSuite(
            loader.loadTestsFromTestCase(case)
            for case in dict.fromkeys(filter(self.is_test_case, namespace.values()))
            if case.__module__ == _MAIN and case not in self._started
        )
        suite.run(self._unittest.TestResult())

    def _fail(self, run: Any, test: object, error: BaseException | None) -> None:
        kind = type(test)
        is_its_own = kind.__module__ != CANDIDATE and "<locals>" not in kind.__qualname__
        if error is not None and self.failure is None and is_its_own:
            self.failure = error
            run.stop()

    def _fail_if_candidate_skipped(self, run: Any, test: object) -> None:
        error = sys.exc_info()[1]
        if error is not None and self._passes_candidate(error):
            self._fail(run, test, error)


def _after(note: Callable[..., object], original: Callable[..., Any]) -> Callable[..., Any]:
    def noted(run: Any, *arguments: Any) -> Any:
        note(run, *arguments)
        return original(run, *arguments)

    return noted


def _let_pytest_pass() -> None:
    """Have `pytest.main` do nothing: it would look for files, and the test's functions are called afterwards."""
    try:
        import pytest
    except ImportError:
        return  # the test's own import says so
    pytest.main = lambda *arguments, **options: 0


def _call(check: Any) -> None:
    """Call a test function, or the test methods of a class, each on an object of its own."""
    if isinstance(check, type):
        for name in [name for name in dir(check) if name.startswith("test")]:
            _call(getattr(check(), name))
        return
    returned = check()
    if isinstance(returned, types.CoroutineType):
        import asyncio

        asyncio.run(returned)
