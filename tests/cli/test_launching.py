import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands import launch
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.utils import cpp_extension
from torch.utils.file_baton import FileBaton

from trl_akd.cli import launching
from trl_akd.cli.launching import Launcher, abandoned_locks, check_processes, is_launch_flag, require_deepspeed
from trl_akd.cli.parsing import RecipeParser
from trl_akd.cli.recipes import RECIPES, find_accelerate_config

CONFIGS = sorted((RECIPES / "accelerate_configs").glob("*.yaml"))
CPU_CONFIGS = [path for path in CONFIGS if path.stem.endswith("_cpu")]


@pytest.fixture(autouse=True)
def extensions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """PyTorch's folder of compiled operators."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    return tmp_path / "extensions"


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    def pretend(number: int) -> None:
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: number)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: number > 0)

    return pretend


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The arguments of accelerate's launcher, as parsed by it."""
    seen: list[Any] = []
    monkeypatch.setattr(launch, "launch_command", lambda args: seen.append(launch._validate_launch_command(args)[0]))
    return seen


def test_there_are_configs():
    assert {path.stem for path in CONFIGS} == {
        *("single", "ddp", "zero1", "zero2", "zero3", "fsdp2"),
        *("zero2_offload", "zero3_offload"),
        *("ddp_cpu", "zero1_cpu", "zero2_cpu", "zero3_cpu"),
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_launched_as_written(path: Path, gpus, launched: list[Any]):
    gpus(3)
    Launcher(path).launch("trl_akd.cli.akd", [], ["--seed", "1"])
    (args,) = launched
    values = yaml.safe_load(path.read_text())
    use_cpu = path in CPU_CONFIGS
    assert args.num_processes == {"single": 1}.get(path.stem, 2 if use_cpu else 3)
    assert (args.multi_gpu, args.use_deepspeed, args.use_fsdp) == (
        path.stem.startswith("ddp"),
        path.stem.startswith("zero"),
        path.stem.startswith("fsdp"),
    )
    if args.use_deepspeed:
        assert args.zero_stage == int(path.stem[4])
        offloads = path.stem.endswith("_offload")
        assert args.offload_optimizer_device == ("cpu" if offloads else "none")
        assert args.offload_param_device == ("cpu" if path.stem == "zero3_offload" else "none")
    assert args.module and args.training_script == "trl_akd.cli.akd"
    assert args.training_script_args == ["--seed", "1"]
    assert Launcher(path).use_cpu == use_cpu
    assert args.mixed_precision == "no" == values["mixed_precision"]


def test_flags_for_the_launcher(gpus, launched: list[Any]):
    gpus(8)
    Launcher(find_accelerate_config("ddp")).launch("m", ["--num_processes", "2", "--main_process_port=0"], [])
    assert (launched[0].num_processes, launched[0].main_process_port) == (2, 0)


def test_split(parser: RecipeParser, gpus):
    gpus(1)
    flags = [
        "--num_processes",
        "2",
        "--lora_target_modules",
        "a",
        "b",
        "--multi_gpu",
        "--beta",
        "-1",
        "--seed=3",
        "--x",
    ]
    own, rest = Launcher(find_accelerate_config("ddp")).split(flags, parser)
    assert own == ["--num_processes", "2", "--multi_gpu"]
    assert rest == ["--lora_target_modules", "a", "b", "--beta", "-1", "--seed=3", "--x"]


def test_shared_flags_apply_to_training(parser: RecipeParser, gpus):
    gpus(1)
    flags = ["--gradient_accumulation_steps", "4"]
    assert is_launch_flag(flags[0])
    assert Launcher(find_accelerate_config("zero2")).split(flags, parser) == ([], flags)


@pytest.mark.parametrize("path", [path for path in CONFIGS if path not in CPU_CONFIGS], ids=lambda path: path.stem)
def test_gpu_configs_are_refused_without_gpus(path: Path, gpus):
    gpus(0)
    if path.stem == "single":
        Launcher(path)
    else:
        with pytest.raises(ValueError, match=r"this machine has none; use ddp_cpu|runs on GPUs only; use zero3_cpu"):
            Launcher(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"distributed_type": "MULTI_CPU", "use_cpu": True}, "runs as a single process; write MULTI_GPU"),
        ({"distributed_type": "FSDP", "use_cpu": True}, "runs on GPUs only"),
        ({"learning_rate": 1}, "is not a configuration of accelerate"),
        ([1], "is not a configuration of accelerate"),
        ({"distributed_type": "DEEPSPEED", "deepspeed_config": 5}, "`deepspeed_config` in .*config.yaml is 5; give"),
        ({"distributed_type": "FSDP", "fsdp_config": ["a"]}, r"`fsdp_config` in .*config.yaml is \['a'\]; give"),
    ],
)
def test_configs_that_would_not_run_as_written(content: Any, message: str, tmp_path: Path, gpus):
    gpus(1)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=message):
        Launcher(path)


@pytest.mark.parametrize("content", ["distributed_type: [", "use_cpu: true\nuse_cpu: false"])
def test_configs_that_are_not_yaml(content: str, tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"config.yaml(: line 2 sets `use_cpu` again| is not valid YAML)"):
        Launcher(path)


@pytest.mark.parametrize(("offload", "builds"), [("none", False), ("cpu", True)])
def test_zero_needs_a_compiler(offload: str, builds: bool, tmp_path: Path, gpus, monkeypatch: pytest.MonkeyPatch):
    gpus(1)
    asked: list[bool] = []
    monkeypatch.setattr(launching, "require_deepspeed", lambda *, builds_operators: asked.append(builds_operators))
    path = tmp_path / "config.yaml"
    path.write_text(
        yaml.safe_dump({"distributed_type": "DEEPSPEED", "deepspeed_config": {"offload_optimizer_device": offload}})
    )
    Launcher(path)
    for name in ("zero2_cpu", "zero2", "zero2_offload", "zero3_offload"):
        Launcher(find_accelerate_config(name))
    assert asked == [builds, True, False, True, True]


def test_status_of_a_failed_process_is_passed_on(gpus, monkeypatch: pytest.MonkeyPatch):
    gpus(1)
    failure = ProcessFailure(local_rank=1, pid=1, exitcode=2, error_file="")

    def fail(args: Any) -> None:
        raise ChildFailedError("trl_akd.cli.akd", {1: failure})

    monkeypatch.setattr(launch, "launch_command", fail)
    with pytest.raises(SystemExit) as caught:
        Launcher(find_accelerate_config("ddp")).launch("trl_akd.cli.akd", [], [])
    assert caught.value.code == 2


def test_interrupt_has_no_traceback(gpus, monkeypatch: pytest.MonkeyPatch):
    gpus(1)

    def interrupt(args: Any) -> None:
        raise SignalException("interrupted", signal.SIGINT)

    monkeypatch.setattr(launch, "launch_command", interrupt)
    with pytest.raises(SystemExit) as caught:
        Launcher(find_accelerate_config("ddp")).launch("trl_akd.cli.akd", [], [])
    assert caught.value.code == 130


@pytest.fixture
def accelerators(monkeypatch: pytest.MonkeyPatch):
    def pretend(number: int) -> None:
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: number)

    return pretend


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on the PATH, and an interpreter that does not exist."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(launching, "find_spec", lambda name: object())
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
    with pytest.raises(ValueError, match="`use_cpu` is false, but this machine has no accelerator, and each of the 2"):
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


def test_gpus_need_no_compiler_unless_the_optimizer_is_offloaded(
    scripts: Path, accelerators, monkeypatch: pytest.MonkeyPatch
):
    accelerators(1)
    check_processes(use_cpu=False, deepspeed=True)
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "cpu")
    with pytest.raises(ValueError, match="DeepSpeed compiles an operator"):
        check_processes(use_cpu=False, deepspeed=True)


def test_missing_deepspeed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launching, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'trl_akd\[deepspeed\]'"):
        require_deepspeed(builds_operators=False)


@pytest.fixture
def lock(scripts: Path, extensions: Path) -> FileBaton:
    """A lock of an operator of DeepSpeed, not acquired."""
    install(scripts, "c++", "ninja")
    path = extensions / "deepspeed_shm_comm" / "lock"
    path.parent.mkdir(parents=True)
    return FileBaton(str(path))


def abandon(lock: FileBaton) -> str:
    """Acquire a lock, and end without releasing it; return its path."""
    assert lock.try_acquire()
    os.close(lock.fd)
    return str(lock.lock_file_path)


def test_a_lock_of_a_killed_run_is_reported(lock: FileBaton, caplog: pytest.LogCaptureFixture):
    path = abandon(lock)
    require_deepspeed(builds_operators=False)
    require_deepspeed(builds_operators=True)
    message = (
        f"{path} seems to be left by a run that was killed, and DeepSpeed waits until it does not exist; end the "
        "runs that wait and delete it, unless another machine, container or user is compiling there."
    )
    assert [record.message for record in caplog.records] == [message]
    os.utime(path, (time.time() - 3600,) * 2)
    with pytest.raises(ValueError) as raised:
        require_deepspeed(builds_operators=True)
    assert str(raised.value) == message


def test_locks_in_the_default_folder(lock: FileBaton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    monkeypatch.setattr(cpp_extension, "get_default_build_root", lambda: str(tmp_path / "root"))
    folders = [
        Path(cpp_extension._get_build_directory(name, verbose=False)) for name in ("cpu_adam", "of_another_package")
    ]
    for path in (*folders, tmp_path / "root" / "py311_other" / "cpu_adam"):
        path.mkdir(parents=True, exist_ok=True)
        (path / "lock").touch()
    assert abandoned_locks() == [folders[0] / "lock"]


def test_the_other_processes_of_a_machine_do_not_warn(
    lock: FileBaton, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    abandon(lock)
    monkeypatch.setenv("LOCAL_RANK", "1")
    require_deepspeed(builds_operators=True)
    assert not caplog.records


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_a_lock_that_is_held_is_not_reported(lock: FileBaton, caplog: pytest.LogCaptureFixture):
    assert lock.try_acquire()
    os.utime(lock.lock_file_path, (0, 0))
    require_deepspeed(builds_operators=True)
    assert abandoned_locks() == [] and not caplog.records
    lock.release()
    assert abandoned_locks() == []


def test_a_lock_that_is_released_meanwhile_is_not_reported(lock: FileBaton, monkeypatch: pytest.MonkeyPatch):
    path = abandon(lock)
    monkeypatch.setattr(time, "sleep", lambda seconds: os.remove(path))
    assert abandoned_locks() == []
    abandon(lock)
    monkeypatch.setattr(time, "sleep", lambda seconds: os.utime(path, (1, 1)))
    assert abandoned_locks() == []
