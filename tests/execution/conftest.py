"""One executor per level, shared by the tests of this folder, and a check after each test for leftovers."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.execution.machine_state import LEVELS, LINUX, Footprint, eventually, user_namespaces_work
from trl_akd.execution import CodeExecutor, ExecutionResult, IsolationError

GUARD = "".join(  # Prefix of attacks that would harm this machine if a level were broken.
    f"import os\nif os.readlink('/proc/self/ns/{kind}') == {os.readlink(f'/proc/self/ns/{kind}')!r}:\n"
    "    raise RuntimeError('escaped: in a namespace of this machine')\n"
    for kind in (("pid", "mnt") if LINUX else ())
)
HONEST = ("def solve(x):\n    return 2 * x\n", "assert solve(2) == 4\n")

RunOne = Callable[..., ExecutionResult]


@pytest.fixture(scope="session", params=LEVELS)
def level(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "namespace" and not user_namespaces_work():
        pytest.skip("this machine forbids user namespaces")
    if name == "bwrap":
        try:
            CodeExecutor(1, isolation="bwrap", allow_code_execution=True).close()
        except IsolationError as error:
            pytest.skip(str(error))
    return name


@pytest.fixture(scope="session")
def executor(level: str) -> Iterator[CodeExecutor]:
    with CodeExecutor(2, timeout=3.0, memory_mb=256, isolation=level, allow_code_execution=True) as made:
        nap = ("import time\ntime.sleep(0.1)\n", "")
        assert [result.status for result in made.run([nap] * 4)] == ["passed"] * 4
        yield made


@pytest.fixture(scope="session")
def footprint(executor: CodeExecutor) -> Footprint:
    """Resources of the executor with all its helpers running."""
    return Footprint.now()


@pytest.fixture
def check_cleanup(executor: CodeExecutor, footprint: Footprint) -> Iterator[None]:
    """Check after the test that no process, thread or descriptor is left, and that the next verdicts are right."""
    before = Footprint.now().union(
        footprint
    )  # the test before may have ended a helper, which starts again when needed
    yield
    right, wrong = executor.run([HONEST, ("", HONEST[1])])
    assert (right.status, wrong.status, wrong.error_type) == ("passed", "failed", "NameError")
    assert eventually(lambda: Footprint.now().within(before)), (before, Footprint.now())


@pytest.fixture
def run_one(executor: CodeExecutor, check_cleanup: None) -> RunOne:
    """Run one program on the shared executor."""

    def run(candidate: str, test: Any = HONEST[1], **limits: Any) -> ExecutionResult:
        [result] = executor.run([(candidate, test)], **limits)
        assert result.isolation == executor.isolation
        return result

    return run
