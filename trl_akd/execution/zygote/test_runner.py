"""Execution of a test program as the main program, followed by the tests that it only defines."""

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
    """One run of a test program, prepared before the candidate runs, which could replace modules.

    Args:
        discovered (`dict`): `functions`, `runners` and `exits` of the test program, as found by the caller.
        file (`str`): File name under which the test program is compiled.
        candidate_file (`str`): File name under which the candidate is compiled.
    """

    def __init__(self, discovered: dict[str, Any], file: str, candidate_file: str) -> None:
        self._functions: list[str] = discovered["functions"]
        self._exits = {tuple(position) for position in discovered["exits"]}
        self._file, self._candidate_file = file, candidate_file
        self._uses_pytest = "pytest" in discovered["runners"]
        self._guards_pytest = "pytest.main" in discovered["runners"]
        self._cases = _UnittestCases(self._passes_candidate) if "unittest" in discovered["runners"] else None
        self._execute = exec

    def execute(self, test: CodeType, module: ModuleType) -> None:
        """Run the test program as `__main__` in a module's namespace, then the tests that it only defines.

        Raises:
            BaseException: Exception of the test program, or of the first test that fails.
        """
        namespace = module.__dict__
        namespace["__name__"] = _MAIN
        sys.modules[_MAIN] = module
        if self._uses_pytest:
            _disable_pytest_main(replace_missing=self._guards_pytest)
        if self._cases is not None:
            self._cases.watch()
            for name in _READ_BY_UNITTEST:
                namespace.pop(name, None)  # those of the candidate
        try:
            self._execute(test, namespace)
        except SystemExit as error:
            self._raise_failure()
            if not self._exits_itself(error):
                raise
        self._raise_failure()
        if self._cases is not None:
            self._cases.run_remaining(namespace)
            self._raise_failure()
        for name in self._functions:
            if (found := namespace.get(name)) is not None and not self._is_test_case(found):
                _call(found)

    def _is_test_case(self, found: object) -> bool:
        return self._cases is not None and self._cases.is_test_case(found)

    def _raise_failure(self) -> None:
        if self._cases is not None and self._cases.failure is not None:
            raise self._cases.failure

    def _exits_itself(self, error: SystemExit) -> bool:
        """Whether a statement of the test program, not the candidate, exits with status 0."""
        if exceptions.exit_code(error) != 0 or self._passes_candidate(error):
            return False
        position = None
        trace = error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == self._file:
                position = list(trace.tb_frame.f_code.co_positions())[trace.tb_lasti // 2]
            trace = trace.tb_next
        return position in self._exits

    def _passes_candidate(self, error: BaseException) -> bool:
        """Whether an exception passed through code of the candidate, in this or its own process."""
        trace = error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == self._candidate_file:
                return True
            trace = trace.tb_next
        return hasattr(error, "candidate_facts")


class _UnittestCases:
    """The TestCases of a test program; all their failures are recorded, regardless of how they are run.

    Args:
        passes_candidate (`Callable`): Function that tells whether an exception passed through the candidate.
    """

    failure: BaseException | None = None

    def __init__(self, passes_candidate: Callable[[BaseException], bool]) -> None:
        import unittest  # slow to import, and few tests use it

        self._unittest = unittest
        self._loader = unittest.TestLoader()
        self._passes_candidate = passes_candidate
        self._started: set[type] = set()

    def watch(self) -> None:
        """Record all failures from now on, and skip TestCases that the candidate defines."""
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

        def load_without_candidate(self: Any, case: type) -> Any:
            return self.suiteClass() if case.__module__ == CANDIDATE else load(self, case)

        loader.loadTestsFromTestCase = load_without_candidate

    def is_test_case(self, value: object) -> bool:
        """Whether a value is a subclass of `unittest.TestCase`."""
        return isinstance(value, type) and issubclass(value, self._unittest.TestCase)

    def run_remaining(self, namespace: dict[str, Any]) -> None:
        """Run the TestCases in a namespace that have not run yet, unless the test program selects what to run.

        It does so by `load_tests`, or by running classes derived from others, which then are mere bases.
        """
        if self._started and "load_tests" in namespace:
            return
        suite = self._unittest.TestSuite(
            self._loader.loadTestsFromTestCase(case)
            for case in dict.fromkeys(filter(self.is_test_case, namespace.values()))
            if case.__module__ == _MAIN and not any(issubclass(done, case) for done in self._started)
        )
        suite.run(self._unittest.TestResult())

    def _fail(self, run: Any, test: object, error: BaseException | None) -> None:
        kind = type(test)
        counts = kind.__module__ != CANDIDATE and "<locals>" not in kind.__qualname__
        if error is not None and self.failure is None and counts:
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


def _disable_pytest_main(*, replace_missing: bool) -> None:
    """Make `pytest.main` do nothing, as it would search for files; the test functions are called afterwards.

    Args:
        replace_missing (`bool`): Whether a module with nothing but `main` stands in for pytest where it is missing.
    """
    try:
        import pytest
    except ImportError:
        if not replace_missing:
            return  # the import in the test raises this error
        pytest = sys.modules["pytest"] = types.ModuleType("pytest")
    pytest.main = lambda *arguments, **options: 0


def _call(test: Any) -> None:
    """Call a test function, or the test methods of a class, each on a new instance."""
    if isinstance(test, type):
        for name in [name for name in dir(test) if name.startswith("test")]:
            _call(getattr(test(), name))
        return
    returned = test()
    if isinstance(returned, types.CoroutineType):
        import asyncio

        asyncio.run(returned)
