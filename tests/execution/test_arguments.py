"""Invalid arguments, unavailable isolation levels, and consent."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.execution.conftest import HONEST
from tests.execution.machine_state import ROOT, linux_only
from trl_akd.execution import CodeExecutor

SCRIPT = """
import json, sys
sys.path.insert(0, {root!r})
{before}
from trl_akd.execution import CodeExecutor, IsolationError
for isolation in ("auto", "namespace", "process"):
    try:
        with CodeExecutor(1, isolation=isolation, timeout=0.5, allow_code_execution=True) as executor:
            loop, user = "while True: pass", "import os\\nassert 0 not in os.getresuid()"
            programs = [{honest!r}, ("", "assert 0"), (loop, ""), (user, "")]
            print(json.dumps([executor.isolation, *(result.status for result in executor.run(programs))]))
    except IsolationError as error:
        print(json.dumps(["IsolationError", str(error)]))
"""
FORBID_BY_SETTING = """
import ctypes, os
user, group = os.getuid(), os.getgid()
assert ctypes.CDLL(None).unshare(0x10000000) == 0
for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
    with open(f"/proc/self/{name}", "w") as file:
        file.write(text)
with open("/proc/sys/user/max_user_namespaces", "w") as file:
    file.write("0")
"""
FORBID_BY_FILTER = """
import ctypes, platform, struct
call = {"x86_64": 272, "aarch64": 97}[platform.machine()]
rules = [(0x20, 0, 0, 0), (0x15, 0, 1, call), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(rules), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, program) == 0
assert libc.unshare(0x10000000) == -1
"""


def outcome(
    python: str = sys.executable, before: str = "", path: str = os.defpath, **identity: Any
) -> list[list[str]]:
    """Return the outcome of each level in a new process."""
    script = SCRIPT.format(root=str(ROOT), before=before, honest=HONEST)
    environment = {"PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [python, "-c", script], cwd="/", env=environment, capture_output=True, text=True, timeout=60, **identity
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@linux_only
@pytest.mark.parametrize("before", [FORBID_BY_SETTING, FORBID_BY_FILTER], ids=["setting", "filter"])
def test_without_user_namespaces(before: str) -> None:
    auto, namespace, process = outcome(before=before, path="")
    for name, message in (auto, namespace):
        assert name == "IsolationError"
        assert "process" in message and "user namespace" in message, message
    assert 'isolation="process"' in auto[1]
    assert process[:4] == ["process", "passed", "failed", "timed_out"]


def python_of_nobody() -> str:
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        command = [python, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); import trl_akd.execution"]
        try:
            subprocess.run(command, cwd="/", check=True, user=65534, group=65534, extra_groups=[], capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return python
    pytest.skip("no Python here that an ordinary user may run")


@linux_only
@pytest.mark.skipif(os.geteuid() != 0, reason="all other tests ran as an ordinary user already")
def test_ordinary_user() -> None:
    auto, namespace, process = outcome(python_of_nobody(), user=65534, group=65534, extra_groups=[])
    assert auto[0] in ("namespace", "bwrap")
    assert auto[1:] == namespace[1:] == process[1:] == ["passed", "failed", "timed_out", "passed"]


@linux_only
def test_auto_selects_the_strongest_level() -> None:
    auto, namespace, process = outcome()
    assert auto == namespace and auto[0] == "namespace"
    assert process[0] == "process"


@pytest.mark.parametrize("value", [None, "", "0", "no"])
def test_consent(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    if value is not None:
        monkeypatch.setenv("HF_ALLOW_CODE_EVAL", value)
    with pytest.raises(
        PermissionError, match=r"HF_ALLOW_CODE_EVAL.*allow_code_execution|allow_code_execution.*HF_ALLOW"
    ):
        CodeExecutor(1)
    CodeExecutor(1, isolation="process", allow_code_execution=True).close()


def test_consent_by_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    CodeExecutor(1, isolation="process").close()


@pytest.mark.parametrize(
    ("field", "value"),
    [("workers", value) for value in (0, -1, 1.5, True, "2", float("nan"))]
    + [("timeout", value) for value in (0, -1, float("nan"), float("inf"), True, "3", None, 1j)]
    + [("memory_mb", value) for value in (0, -1, float("nan"), float("inf"), True, "512", None)]
    + [("isolation", value) for value in ("docker", "", None, "Namespace", 1)]
    + [("packages", value) for value in ("numpy", 5, (1,), ("no_such_package",), ("a b",), ("../x",), (".x",), ("",))],
)
def test_invalid_argument(field: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError, ImportError), match=field) as caught:
        CodeExecutor(**{"isolation": "process", "allow_code_execution": True, field: value}).close()
    named = value[0] if isinstance(value, tuple) else value
    assert repr(named) in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("timeout", value) for value in (0, -1, float("nan"), float("inf"), True, "3")]
    + [("memory_mb", value) for value in (0, -1, float("nan"), True, "512")],
)
def test_invalid_limit_of_a_run(executor: CodeExecutor, field: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=field):
        executor.run([HONEST], **{field: value})
    with pytest.raises((ValueError, TypeError), match=field):
        list(executor.stream([HONEST], **{field: value}))


@pytest.mark.parametrize(
    "faulty",
    [
        "ab",
        ("a",),
        ("a", "b", "c"),
        (1, "b"),
        ("a", None),
        ("a", 1),
        (b"a", "b"),
        ("a", b"b"),
        None,
        5,
        {"a": "b"},
        ("a", ["b"]),
        ("a", {}),
        ("a", {"inputs": ["1"]}),
        ("a", {"inputs": ["1"], "outputs": []}),
        ("a", {"inputs": "1", "outputs": "1"}),
        ("a", {"inputs": [1], "outputs": [1]}),
        ("a", {"inputs": [], "outputs": []}),
        ("a", {"inputs": [[1]], "outputs": [1], "fn_name": 5}),
    ],
)
def test_invalid_program(executor: CodeExecutor, tmp_path: Path, faulty: Any) -> None:
    ran = tmp_path / "ran"
    tmp_path.chmod(0o777)
    first = (f"open({str(ran)!r}, 'w').close()\n", "")
    with pytest.raises((TypeError, ValueError), match=r"\b1\b"):
        executor.run([first, faulty, HONEST])
    assert not ran.exists()
    assert executor.run([HONEST])[0].passed


def test_more_workers_than_cores(level: str) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with pytest.warns(UserWarning, match=f"workers={cores + 2}.*; {cores + 1} are used"):
        executor = CodeExecutor(cores + 2, isolation=level, allow_code_execution=True)
    with executor:
        assert executor.run([HONEST])[0].passed


def test_packages(level: str) -> None:
    pytest.importorskip("numpy")
    use = ("import numpy\ndef solve(x):\n    return int(numpy.array([x, x]).sum())\n", HONEST[1])
    with CodeExecutor(1, isolation=level, packages=("numpy",), timeout=20, allow_code_execution=True) as executor:
        assert executor.run([use])[0].passed
        hidden = executor.run([("import pytest\n", ""), ("import torch\n", ""), ("import trl_akd\n", "")])
        assert [result.error_type for result in hidden] == ["ModuleNotFoundError"] * 3
    with CodeExecutor(1, isolation=level, allow_code_execution=True) as executor:
        [result] = executor.run([use])
        assert (result.error_type, result.missing) == ("ModuleNotFoundError", "numpy")


def test_a_python_that_only_root_reads_is_refused_without_landlock(monkeypatch: pytest.MonkeyPatch) -> None:
    from trl_akd.execution.zygote import confinement, linux, processes

    monkeypatch.setattr(processes, "_nobody_can_enter", lambda folder: False)
    monkeypatch.setattr(linux, "can_switch_to_nobody", lambda: True)
    monkeypatch.setattr(confinement, "landlock_available", lambda: False)
    with pytest.raises(OSError, match="keep root's right to read every file"):
        processes.ProcessLevel({"sources": [], "folder": None}, None)
