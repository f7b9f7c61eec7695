import os
import sys
from pathlib import Path

import pytest
import torch

from trl_akd.cli import machine
from trl_akd.cli.machine import check_processes, require_deepspeed


@pytest.fixture
def accelerators(monkeypatch: pytest.MonkeyPatch):
    def pretend(number: int) -> None:
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: number)

    return pretend


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on the PATH, beside an interpreter that is not there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(machine, "find_spec", lambda name: object())
    return folder


def install(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).touch()
        (folder / name).chmod(0o755)


def test_one_process_on_cpu(accelerators):
    accelerators(0)
    check_processes(use_cpu=True, deepspeed=False)
    check_processes(use_cpu=False, deepspeed=False)


@pytest.mark.parametrize("deepspeed", [False, True])
def test_several_processes_without_accelerator_need_use_cpu(
    deepspeed: bool, accelerators, monkeypatch: pytest.MonkeyPatch
):
    accelerators(0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="`use_cpu` is false, but this machine has no accelerator, and 2 processes"):
        check_processes(use_cpu=False, deepspeed=deepspeed)


def test_one_process_that_sees_two_gpus(accelerators, monkeypatch: pytest.MonkeyPatch):
    accelerators(2)
    with pytest.raises(ValueError, match="2 accelerators are visible to a single process"):
        check_processes(use_cpu=False, deepspeed=False)
    check_processes(use_cpu=True, deepspeed=False)
    monkeypatch.setenv("LOCAL_RANK", "0")
    check_processes(use_cpu=False, deepspeed=False)


@pytest.mark.parametrize(("present", "missing"), [((), "c"), (("c++",), "ninja"), (("ninja",), "c")])
def test_missing_tool_is_named(present: tuple[str, ...], missing: str, scripts: Path):
    install(scripts, *present)
    with pytest.raises(ValueError, match=rf"DeepSpeed compiles an operator, but '{missing}.*' is not on the PATH"):
        require_deepspeed(builds_operators=True)


def test_tools_beside_the_interpreter_are_found(scripts: Path):
    install(scripts, "c++", "ninja")
    require_deepspeed(builds_operators=True)
    assert str(scripts) in os.environ["PATH"].split(os.pathsep)


def test_compiler_named_by_cxx(scripts: Path, monkeypatch: pytest.MonkeyPatch):
    install(scripts, "c++", "ninja")
    monkeypatch.setenv("CXX", "clang++-99")
    with pytest.raises(ValueError, match=r"'clang\+\+-99' is not on the PATH"):
        require_deepspeed(builds_operators=True)


def test_a_launched_deepspeed_run_is_checked(scripts: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match="DeepSpeed compiles an operator"):
        check_processes(use_cpu=True, deepspeed=False)


def test_gpus_need_no_compiler_unless_the_optimiser_is_offloaded(
    scripts: Path, accelerators, monkeypatch: pytest.MonkeyPatch
):
    accelerators(1)
    check_processes(use_cpu=False, deepspeed=True)
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "cpu")
    with pytest.raises(ValueError, match="DeepSpeed compiles an operator"):
        check_processes(use_cpu=False, deepspeed=True)


def test_missing_deepspeed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'trl_akd\[deepspeed\]'"):
        require_deepspeed(builds_operators=False)
