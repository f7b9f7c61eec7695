"""Sandboxed execution of untrusted programs, with the standard library alone."""

from .executor import CodeExecutor
from .isolation import IsolationError
from .result import ExecutionResult
from .test_cases import Tests, check_tests, decode_tests

__all__ = [
    "CodeExecutor",
    "ExecutionResult",
    "IsolationError",
    "Tests",
    "check_tests",
    "decode_tests",
]
