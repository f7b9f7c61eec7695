"""Estimates of `trl-akd doctor` against measured runs on this CPU, each in a fresh process.

Memory is the growth of the resident memory from before the models are built to its peak. Time is that of the fastest
step in CPU seconds of one thread, because other programs may share the cores. Its estimate is at the throughput of the
fastest forward pass of one layer, which like `--utilization` includes operations on single elements, and the bandwidth
of the fastest copy. Both run before each step, since programs on the other cores slow all of them down.

    python -m tests.benchmarks.bench_doctor --steps 3
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROWS, LENGTH, VOCABULARY = 4, 256, 32_000
_COPIED = 16 * 2**20  # numbers
STUDENT = {"hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 10, "num_attention_heads": 10}
TEACHER = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}
CASES: dict[str, dict[str, Any]] = {
    "AdamW": {},
    "AdamW, checkpointing": {"gradient_checkpointing": True},
    "SGD": {"optim": "sgd"},
    "LoRA": {"lora": True},
    "AdamW, 4 micro-batches": {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 1},
}


def measure(case: dict[str, Any], steps: int) -> dict[str, float]:
    """Run and estimate one case."""
    import torch
    from peft import LoraConfig
    from transformers import LlamaConfig

    from trl_akd import AKDConfig
    from trl_akd.doctor.duration import OF_BANDWIDTH, estimate_duration
    from trl_akd.doctor.hardware import Gpu
    from trl_akd.doctor.memory import estimate_memory
    from trl_akd.doctor.settings import ModelSettings, Parallelism, RunSettings
    from trl_akd.doctor.tracing import trace_student

    torch.set_num_threads(1)
    case = dict(case)
    adapter = LoraConfig(r=16, target_modules=["q_proj", "v_proj"]) if case.pop("lora", False) else None
    configs = [
        LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=512, **sizes) for sizes in (STUDENT, TEACHER)
    ]
    with tempfile.TemporaryDirectory() as folder:
        args = AKDConfig(
            folder,
            **{
                "max_steps": steps,
                "per_device_train_batch_size": ROWS,
                "gradient_checkpointing": False,
                "max_length": LENGTH,
                "use_cpu": True,
                "bf16": False,
                "report_to": "none",
                "save_strategy": "no",
                "disable_tqdm": True,
                **case,
            },
        )
        student, teacher = (
            ModelSettings(name, config, torch.float32, adapter=each)
            for name, config, each in zip(("student", "teacher"), configs, (adapter, None), strict=True)
        )
        settings = RunSettings.read(args, student, teacher, Parallelism(), autocast=None, on_cpu=True)
        phases = estimate_memory(settings)
        small = LlamaConfig(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, num_hidden_layers=1)
        train([small, small], args, adapter)  # loads everything but the models
        before = _resident()
        seconds, layer, copy = train(configs, args, adapter)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10
        tflops = trace_student(settings).forward_flops / STUDENT["num_hidden_layers"] / layer / 1e12
        bandwidth = 2 * 4 * _COPIED / copy / 1e9
        cpu = Gpu("CPU", 16.0, tflops, tflops, bandwidth / OF_BANDWIDTH)
        duration = estimate_duration(settings, cpu, utilization=1.0)
    return {
        "memory": peak - before,
        "estimated_memory": max(phase.total for phase in phases),
        "seconds": seconds,
        "estimated_seconds": duration.step,
        "gflops": 1000 * tflops,
        "bandwidth": bandwidth,
    }


def train(configs: list[Any], args: Any, adapter: Any) -> tuple[float, float, float]:
    """Train random models, and return the seconds of the fastest step, forward pass of a layer, and copy."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback

    from tests import tiny
    from trl_akd import AKDTrainer

    tokens = [{"input_ids": [7] * LENGTH, "labels": [7] * LENGTH} for _ in range(64)]
    models = [AutoModelForCausalLM.from_config(config) for config in configs]
    times: list[float] = []
    calibrations: list[tuple[float, float]] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            calibrations.append(calibrate())
            times.append(-time.process_time())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times[-1] += time.process_time()

    trainer = AKDTrainer(
        models[0],
        models[1],
        args,
        train_dataset=Dataset.from_list(tokens),
        processing_class=tiny.tokenizer(),
        teacher_tokenizer=tiny.tokenizer(),
        peft_config=adapter,
        callbacks=[Clock()],
    )
    trainer.train()
    layer, copy = (min(found) for found in zip(*calibrations, strict=True))
    return min(times), layer, copy


def calibrate() -> tuple[float, float]:
    """Return the seconds of the fastest of several forward passes of a layer of the student, and of several copies."""
    import torch
    from transformers import LlamaConfig, LlamaModel

    layer = LlamaModel(LlamaConfig(vocab_size=8, **{**STUDENT, "num_hidden_layers": 1}))
    tokens = torch.zeros(ROWS, LENGTH, dtype=torch.int64)
    vector, copy = torch.ones(2, _COPIED)  # as in the loss and the optimizer, whose buffers exist
    fastest = []
    with torch.no_grad():
        for function in (lambda: layer(tokens), lambda: copy.copy_(vector)):
            seconds = []
            for _ in range(20):
                start = time.process_time()
                function()
                seconds.append(time.process_time() - start)
            fastest.append(min(seconds))
    return fastest[0], fastest[1]


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Print measured and estimated memory and time of every case, and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--case")
    options = parser.parse_args()
    if options.case is not None:
        print(json.dumps(measure(CASES[options.case], options.steps)))
        return
    print("| run | measured MiB | estimate / measured | measured s | estimate / measured |\n|---|---|---|---|---|")
    for name in CASES:
        command = [
            sys.executable,
            "-m",
            "tests.benchmarks.bench_doctor",
            "--steps",
            str(options.steps),
            "--case",
            name,
        ]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found = json.loads(output.splitlines()[-1])
        print(
            f"| {name} | {found['memory'] / 2**20:,.0f} | {found['estimated_memory'] / found['memory']:.2f} "
            f"| {found['seconds']:.2f} | {found['estimated_seconds'] / found['seconds']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
