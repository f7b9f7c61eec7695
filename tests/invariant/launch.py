"""Start the worker on one or several processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from accelerate.commands.launch import launch_command, launch_command_parser
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]

_COMMON = {
    "compute_environment": "LOCAL_MACHINE",
    "num_machines": 1,
    "num_processes": 2,
    "machine_rank": 0,
    "main_training_function": "main",
    "rdzv_backend": "static",
    "same_network": True,
    "use_cpu": True,
}


ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}

_GRACE = 10.0
"""Seconds that a process has to end after another one has failed."""


@dataclass
class Outcome:
    """Recorded results of a run."""

    record: dict[str, Any]
    parameters: dict[str, Tensor]
    checkpoints: Path

    def series(self, key: str) -> list[float]:
        return [log[key] for log in self.record["logs"] if key in log]


def run(folder: Path, backend: str, timeout: float = 300, gather: bool = True, **settings: Any) -> Outcome:
    """Run the worker in `folder`; `backend` is `single`, `ddp`, `zero1`, `zero2` or `zero3`.

    ZeRO-3 shards even the smallest tensors, and saves the model as shards unless `gather` is set.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"output_dir": str(folder / "checkpoints"), "results": str(folder), **settings}
    (folder / "settings.json").write_text(json.dumps(settings))
    launch(folder, backend, "tests.invariant.worker", str(folder / "settings.json"), timeout=timeout, gather=gather)
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


class RankServer:
    """A process that runs the modules of one rank, see `tests.invariant.rank_server`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.invariant.rank_server"],
            cwd=ROOT,
            env={**os.environ, **ENVIRONMENT},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._ready = False
        self._child: int | None = None

    def wait(self) -> None:
        """Wait until the server has imported its modules."""
        self._ready = self._ready or self._answer() == os.EX_OK

    def run(self, **request: Any) -> int:
        """Run a module and return its exit status."""
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        self._child = self._answer()
        status = self._answer()
        self._child = None
        return status

    def kill(self) -> None:
        """Kill the module and the processes that it has started."""
        if self._child is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._child, signal.SIGKILL)

    def _answer(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


@cache
def rank_server(rank: int) -> RankServer:
    """Return the server of a rank, which ends with this process."""
    return RankServer()


def launch(
    folder: Path, backend: str, module: str, *arguments: str, timeout: float = 300, gather: bool = True
) -> None:
    """Run a module on one process or, with any backend other than `single`, on two; a failure is an error.

    The processes have the environment that `accelerate launch` gives them. They are forks of processes that have
    imported most modules, since imports would take most of the time. The names of their last native threads are
    written to `threads-RANK.json` in `folder`.
    """
    environments = _environments(folder, backend, module, gather)
    servers = [rank_server(rank) for rank in range(len(environments))]
    for server in servers:
        server.wait()
    with ThreadPoolExecutor(len(servers)) as pool:
        runs = [
            pool.submit(
                server.run,
                module=module,
                arguments=arguments,
                environment=environment,
                output=str(folder / f"output-{rank}.txt"),
                threads=str(folder / f"threads-{rank}.json"),
            )
            for rank, (server, environment) in enumerate(zip(servers, environments, strict=True))
        ]
        deadline = time.monotonic() + timeout
        pending = set(runs)
        while pending and time.monotonic() < deadline and not any(run.done() and run.result() for run in runs):
            _, pending = wait(pending, timeout=deadline - time.monotonic(), return_when=FIRST_COMPLETED)
        wait(pending, timeout=_GRACE if time.monotonic() < deadline else 0)
        unfinished = [rank for rank, run in enumerate(runs) if not run.done()]
        for rank in unfinished:
            servers[rank].kill()
    statuses = [run.result() for run in runs]
    if any(statuses):
        outputs = [(folder / f"output-{rank}.txt").read_text()[-6000:] for rank in range(len(runs))]
        raise RuntimeError(f"{backend}: {statuses=}, {unfinished=}\n" + "\n".join(outputs))


def _environments(folder: Path, backend: str, module: str, gather: bool) -> list[dict[str, str]]:
    """Return the environment of each process."""
    common = {**os.environ, **ENVIRONMENT}
    if backend == "single":
        return [common]
    (folder / "accelerate.yaml").write_text(yaml.safe_dump(accelerate_config(folder, backend, gather)))
    seen: dict[str, str] = {}
    with (
        mock.patch("torch.distributed.run.run", lambda _: seen.update(os.environ)),
        mock.patch.dict(os.environ, common),
    ):
        launch_command(
            launch_command_parser().parse_args(["--config_file", str(folder / "accelerate.yaml"), "-m", module])
        )
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    seen |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return [seen | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]


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
