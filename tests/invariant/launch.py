"""Start the worker on one or several processes."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
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


def launch(
    folder: Path, backend: str, module: str, *arguments: str, timeout: float = 300, gather: bool = True
) -> None:
    """Run a module on one process or, with any backend other than `single`, on two; a failure is an error."""
    command = [sys.executable, "-m"]
    if backend != "single":
        (folder / "accelerate.yaml").write_text(yaml.safe_dump(accelerate_config(folder, backend, gather)))
        command += ["accelerate.commands.launch", "--config_file", str(folder / "accelerate.yaml"), "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    with subprocess.Popen(
        [*command, module, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as launcher:
        try:
            output, errors = launcher.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(launcher.pid, signal.SIGKILL)  # the processes that it started would go on
            raise
    if launcher.returncode != 0:
        raise RuntimeError(f"{backend} failed:\n{output[-2000:]}\n{errors[-6000:]}")


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
