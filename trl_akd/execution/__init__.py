"""Run programs nobody trusts; standard library alone."""

from .executor import CodeExecutor
from .isolation import IsolationError
from .test_cases import Tests, check_tests
from .result import ExecutionResult

__all__ = [
    "CodeExecutor",
    "ExecutionResult",
    "IsolationError",
    "Tests",
    "check_tests",
]
