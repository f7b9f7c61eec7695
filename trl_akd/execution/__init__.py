"""Run programs nobody trusts; standard library alone."""

from .executor import CodeExecutor
from .isolation import IsolationError
from .judging import APPS_PREAMBLE, LIVECODEBENCH_PREAMBLE, Tests, check_tests
from .result import ExecutionResult

__all__ = [
    "APPS_PREAMBLE",
    "LIVECODEBENCH_PREAMBLE",
    "CodeExecutor",
    "ExecutionResult",
    "IsolationError",
    "Tests",
    "check_tests",
]
