"""Start the worker on one or several processes."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed import TCPStore

ROOT = Path(__file__).resolve().parents[2]

_COMMON = {
    "compute_environment": "LOCAL_MACHINE",
    "num_machines": 1,
    "num_processes": 2,
    "machine_rank": 0,
    "main_process_port": 0,  # any free one
    "main_training_function": "main",
    "rdzv_backend": "static",
    "same_network": True,
    "use_cpu": True,
}


ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}

_GRACE = 10.0
"""Seconds that processes have to end after another one has failed."""


@dataclass
class Outcome:
    """Recorded results of a run."""

    record: dict[str, Any]
    parameters: dict[str, Tensor]
    checkpoints: Path

    def series(self, key: str) -> list[float]:
        return [log[key] for log in self.record["logs"] if key in log]


def run(
    folder: Path,
    backend: str,
    timeout: float = 300,
    gather: bool = True,
    start: Callable[..., None] | None = None,
    **settings: Any,
) -> Outcome:
    """Run the worker in `folder`, by `launch` unless `start` is `accelerate_launch`.

    `backend` is `single`, `ddp`, `zero1`, `zero2` or `zero3`. ZeRO-3 shards even the smallest tensors, and saves the
    model as shards unless `gather` is set.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"output_dir": str(folder / "checkpoints"), "results": str(folder), **settings}
    (folder / "settings.json").write_text(json.dumps(settings))
    start = start or launch
    start(folder, backend, "tests.invariant.worker", str(folder / "settings.json"), timeout=timeout, gather=gather)
    threads = {path.name: json.loads(path.read_text()) for path in folder.glob("threads-*.json")}
    assert len(threads) == (1 if backend == "single" else 2)
    assert not any("gloo" in name for names in threads.values() for name in names), threads
    record = json.loads((folder / "record.json").read_text())
    weights = {}
    for model in (folder / "model").glob("*model.safetensors"):
        weights |= load_file(model)
    for plan_head in (folder / "model").glob("plan_head.safetensors"):
        weights |= {f"plan_head.{name}": tensor for name, tensor in load_file(plan_head).items()}
    return Outcome(record, weights, folder / "checkpoints")


class _Server:
    """A process that runs the modules of one rank, see `tests.invariant.rank_server`."""

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile("w+")
        environment = {**os.environ, **ENVIRONMENT}
        environment.pop("PYTHONHASHSEED", None)  # ranks iterate over sets in different orders
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.invariant.rank_server"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,  # an interrupt ends it by the end of its input
        )
        self._is_ready = False
        self._child: int | None = None

    def has_ended(self) -> bool:
        """Return whether the server has ended, which it does only by an error."""
        return self._process.poll() is not None

    def wait(self) -> None:
        """Wait until the server has imported its modules."""
        if not self._is_ready:
            self._is_ready = self._answer() == os.EX_OK

    def run(self, **request: Any) -> int:
        """Run a module and return its exit status.

        Args:
            module, arguments: What to run.
            folder: Folder for the names of threads.
            output: Existing file for both output streams.
            config: Configuration of accelerate, or `None`.
            environment: Environment, to which the configuration may add.
        """
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        self._child = self._answer()
        try:
            return self._answer()
        finally:
            self.kill()  # if the server has ended; otherwise, what the module has left running
            self._child = None

    def kill(self) -> None:
        """Kill the module and the processes that it has started, if it has started."""
        if self._child is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._child, signal.SIGKILL)

    def _answer(self) -> int:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise RuntimeError(f"rank_server has ended with {self._process.wait()}:\n{self._errors.read()[-6000:]}")
        return int(line)


_SERVERS: dict[str, _Server] = {}


def _server(name: str) -> _Server:
    """Return the server of a rank, which ends with this process."""
    if name not in _SERVERS or _SERVERS[name].has_ended():
        _SERVERS[name] = _Server()
    return _SERVERS[name]


def launch(
    folder: Path, backend: str, module: str, *arguments: str, timeout: float = 300, gather: bool = True
) -> None:
    """Run a module on one process or, with any backend other than `single`, on two; a failure is an error.

    The processes have the environment that `accelerate launch` gives them, except what PyTorch's launcher tells about
    itself. They are forks of processes that have
    imported most modules, since imports would take most of the time; variables that are read during imports have the
    values of the first launch. The names of their last native threads are written to `threads-RANK.json` in `folder`.
    """
    common, config = {**os.environ, **ENVIRONMENT}, None
    if backend == "single":
        store, names, environments = None, ["single"], [common]
    else:
        config = str(_write_config(folder, backend, gather))
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as in PyTorch's launcher
        common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        common |= {"TORCHELASTIC_RESTART_COUNT": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        names = ["rank 0", "rank 1"]
        environments = [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    outputs = [folder / f"output-{rank}.txt" for rank in range(len(names))]
    for output in outputs:
        output.write_text("")
    servers = [_server(name) for name in names]
    for server in servers:
        server.wait()
    request = {"module": module, "arguments": arguments, "folder": str(folder), "config": config}
    with ThreadPoolExecutor(len(servers)) as pool:
        runs = [
            pool.submit(server.run, **request, output=str(output), environment=environment)
            for server, output, environment in zip(servers, outputs, environments, strict=True)
        ]
        started = time.monotonic()
        try:
            _wait(runs, timeout)
        finally:
            seconds = time.monotonic() - started
            killed = [rank for rank, run in enumerate(runs) if not run.done()]
            while not all(run.done() for run in runs):
                for rank in killed:
                    servers[rank].kill()
                wait(runs, timeout=0.1)
    statuses = [run.result() for run in runs]
    if any(statuses):
        texts = [output.read_text(errors="replace")[-6000:] for output in outputs]
        raise RuntimeError(
            "\n".join([f"{backend}: exit statuses {statuses}, killed after {seconds:.0f} s: {killed}", *texts])
        )


def _wait(runs: Sequence[Future[int]], timeout: float) -> None:
    """Wait until all processes have ended or one has failed, and then a little for the others."""
    pending, left = set(runs), timeout
    deadline = time.monotonic() + timeout
    while pending and left > 0 and not any(run.done() and run.result() for run in runs):
        _, pending = wait(pending, timeout=left, return_when=FIRST_COMPLETED)
        left = deadline - time.monotonic()
    wait(pending, timeout=min(_GRACE, max(left, 0)))


def accelerate_launch(
    folder: Path, backend: str, module: str, *arguments: str, timeout: float = 300, gather: bool = True
) -> None:
    """Do what `launch` does by `accelerate launch`, which is slower."""
    launcher = ["accelerate.commands.launch", "--config_file", str(_write_config(folder, backend, gather)), "-m"]
    command = [sys.executable, "-m", *launcher, "tests.invariant.rank_server", str(folder), module, *arguments]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.terminate()  # upon which it ends the processes that it has started
            output, _ = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"{backend}: exit status {process.returncode}\n{output[-6000:]}")


def _write_config(folder: Path, backend: str, gather: bool) -> Path:
    path = folder / "accelerate.yaml"
    path.write_text(yaml.safe_dump(accelerate_config(folder, backend, gather)))
    return path


def accelerate_config(folder: Path, backend: str, gather: bool = True) -> dict[str, Any]:
    if backend == "ddp":
        return {**_COMMON, "distributed_type": "MULTI_GPU", "mixed_precision": "no"}
    stage = int(backend.removeprefix("zero"))
    deepspeed = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": False,
            "stage3_param_persistence_threshold": 0,
            "stage3_max_live_parameters": 0,
            "stage3_max_reuse_distance": 0,
            "stage3_gather_16bit_weights_on_model_save": gather,
        },
    }
    (folder / "deepspeed.json").write_text(json.dumps(deepspeed))
    plugin = {"deepspeed_config_file": str(folder / "deepspeed.json"), "zero3_init_flag": stage == 3}
    return {**_COMMON, "distributed_type": "DEEPSPEED", "deepspeed_config": plugin}
