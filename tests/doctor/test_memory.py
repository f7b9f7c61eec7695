"""Sizes of optimizer states, gradients and shards."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from tests import tiny
from trl_akd.doctor.hardware import GPUS, find_gpu
from trl_akd.doctor.memory import Phase, estimate_memory, kv_cache, optimizer_states
from trl_akd.doctor.remedies import find_remedies
from trl_akd.doctor.settings import ModelSettings, Parallelism, Quantization, RunSettings

OPTIMIZERS = ["adamw_torch", "adamw_torch_fused", "sgd", "adafactor", "adagrad", "rmsprop"]


def small(family: str = "llama", **values: Any) -> Any:
    return tiny.model(family, vocabulary=2000, num_hidden_layers=1, **values)


def settings(**values: Any) -> RunSettings:
    student = ModelSettings("student", small().config, torch.float32)
    teacher = ModelSettings("teacher", small("qwen2", hidden=48).config, torch.bfloat16)
    return RunSettings(student, teacher, **{"rows": 4, "length": 64, "target_length": 64, **values})


def peak(run: RunSettings) -> int:
    return max(phase.total for phase in estimate_memory(run))


def part(phases: list[Phase], phase: str, name: str) -> int:
    return next(entry.parts.get(name, 0) for entry in phases if entry.name == phase)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_are_those_of_the_optimizer(name: str, dtype: torch.dtype, tmp_path: Path):
    model = torch.nn.Sequential(torch.nn.Embedding(50, 16), torch.nn.Linear(16, 24, dtype=dtype)).to(dtype)
    args = TrainingArguments(str(tmp_path), optim=name, use_cpu=True, report_to="none")
    kind, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
    kwargs.pop("fused", None)  # fused kernels keep the same states
    optimizer = kind(model.parameters(), **kwargs)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    real = sum(state.numel() * state.itemsize for state in states if state.numel() > 1)
    shapes = [(tuple(parameter.shape), parameter.dtype) for parameter in model.parameters()]
    assert optimizer_states(name, shapes) == real


def test_states_of_8_bits_have_scales():
    assert optimizer_states("adamw_bnb_8bit", [((1024, 256), torch.float32)]) == 2 * (2**18 + 4 * 2**10)
    assert optimizer_states("adamw_bnb_8bit", [((64,), torch.float32)]) == 2 * 4 * 64
    assert optimizer_states("paged_adamw_8bit", [((1024, 256), torch.float32)]) == 0


def test_one_process_has_the_whole_of_everything():
    run = settings()
    phases, student = estimate_memory(run), small()
    count = sum(parameter.numel() for parameter in student.parameters())
    assert [phase.name for phase in phases] == [
        *("loading", "teacher's forward", "student's forward", "loss", "backward", "optimizer step"),
    ]
    assert part(phases, "loading", "optimizer states") == 0
    assert part(phases, "optimizer step", "gradients") == 4 * count
    assert part(phases, "optimizer step", "optimizer states") == 8 * count
    assert 4 * count <= part(phases, "loading", "student") < 4.1 * count
    assert part(phases, "optimizer step", "activations") == 0


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_zero_divides_what_its_stage_shards(stage: int, autocast: torch.dtype | None):
    count = sum(parameter.numel() for parameter in small().parameters())
    half = 2 if autocast else 4
    gpus = 4
    phases = estimate_memory(settings(parallelism=Parallelism(gpus, "zero", stage), autocast=autocast))
    backward = next(phase for phase in phases if phase.name == "backward").parts
    assert backward["optimizer states"] == (4 + 8) * count // gpus
    gradients = half * count // (gpus if stage > 1 else 1)
    if stage == 1:  # some of them do not exist yet at the peak of the backward pass
        assert part(phases, "optimizer step", "gradients") == gradients
    else:
        assert backward["gradients"] == gradients
    weights = half * count // (gpus if stage == 3 else 1)
    assert weights <= part(phases, "loading", "student") < 1.1 * weights


def test_ddp_has_buckets_and_offloading_no_optimizer():
    count = sum(parameter.numel() for parameter in small().parameters())
    ddp = estimate_memory(settings(parallelism=Parallelism(2, "ddp")))
    assert part(ddp, "backward", "communication buffers") == 4 * count
    offloaded = Parallelism(2, "zero", 3, offload_optimizer=True, offload_parameters=True)
    phases = estimate_memory(settings(parallelism=offloaded))
    assert part(phases, "loading", "student") == part(phases, "loading", "teacher") == 0
    assert part(phases, "optimizer step", "optimizer states") == 0


def test_generation_needs_a_cache():
    run = settings(on_policy=1.0, new_tokens=16)
    phases = estimate_memory(run)
    assert [phase.name for phase in phases][1] == "generation"
    # 1 layer, keys and values, 4 rows of 64 tokens, 1 head of 16 numbers, float32
    assert part(phases, "generation", "KV cache") == 2 * 4 * 64 * 1 * 16 * 4
    codegen = ModelSettings("student", tiny.model("codegen").config, torch.float16)
    assert kv_cache(codegen, 1, 8, torch.float16) == 2 * 2 * 8 * 32 * 2
    shared = ModelSettings("student", tiny.model("gpt_bigcode").config, torch.float16)
    assert kv_cache(shared, 1, 8, torch.float16) == 2 * 2 * 8 * 16 * 2


CHANGES: dict[str, dict[str, Any]] = {
    "checkpointing": {"checkpointing": True},
    "fewer rows": {"rows": 1},
    "shorter rows": {"length": 32, "target_length": 32},
    "no teacher on the GPU": {"teacher_on_cpu": True},
    "SGD": {"optimizer": "sgd"},
    "smaller chunks": {"chunk_size": 16},
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_changes_reduce_the_peak(change: str):
    run = settings(checkpointing=False, rows=8)
    assert peak(replace(run, **CHANGES[change])) < peak(run)


def test_quantized_teacher_needs_less():
    run = settings()
    assert run.teacher is not None
    teacher = replace(run.teacher, quantization=Quantization(4))
    assert peak(replace(run, teacher=teacher)) < peak(run)


@pytest.mark.slow
def test_remedies_are_cumulative_and_end_when_the_run_fits():
    run = settings(checkpointing=False, rows=8)
    usable = peak(replace(run, checkpointing=True, rows=1, accumulation=8)) + 1
    remedies = find_remedies(run, usable)
    assert [remedy.fits for remedy in remedies] == [False] * (len(remedies) - 1) + [True]
    assert [remedy.peak for remedy in remedies] == sorted((remedy.peak for remedy in remedies), reverse=True)
    assert "gradient_checkpointing: true" in remedies[0].change
    assert "gradient_accumulation_steps: 8" in remedies[1].change
    assert find_remedies(run, peak(run)) == []
    assert not any(remedy.fits for remedy in find_remedies(run, 1000))


QUANTIZED: list[tuple[Any, Quantization | None]] = [
    (None, None),
    ({"load_in_4bit": True}, Quantization(4)),
    ({"load_in_4bit": True, "bnb_4bit_use_double_quant": True}, Quantization(4, nested=True)),
    ({"load_in_8bit": True}, Quantization(8)),
    ({"quant_method": "awq", "bits": 4}, Quantization(4)),
    ({"quant_method": "fp8"}, Quantization(8)),
    ({"load_in_4bit": False}, None),
]


@pytest.mark.parametrize(("config", "expected"), QUANTIZED)
def test_quantization_is_read(config: Any, expected: Quantization | None):
    assert Quantization.read(config) == expected


PARALLEL: list[tuple[dict[str, Any], Any, int | None, Parallelism | str]] = [
    ({}, None, None, Parallelism()),
    ({"distributed_type": "NO"}, None, 1, Parallelism()),
    ({"distributed_type": "MULTI_GPU", "num_processes": 2}, None, None, Parallelism(2, "ddp")),
    ({"distributed_type": "MULTI_GPU", "num_processes": 2}, None, 4, Parallelism(4, "ddp")),
    ({"distributed_type": "MULTI_GPU"}, None, None, "give `--num_gpus`"),
    (
        {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 2, "offload_optimizer_device": "cpu"}},
        None,
        2,
        Parallelism(2, "zero", 2, offload_optimizer=True),
    ),
    ({}, {"zero_optimization": {"stage": 3}}, 8, Parallelism(8, "zero", 3)),
    ({}, '{"zero_optimization": {"stage": 1}}', 8, Parallelism(8, "zero", 1)),
    ({"distributed_type": "FSDP"}, None, 2, Parallelism(2, "fsdp")),
    ({}, "missing.json", 2, "`deepspeed` is 'missing.json', but there is no such file"),
    ({}, None, 2, "nothing distributes the run"),
    ({}, None, 0, "give at least 1"),
]


@pytest.mark.parametrize(("values", "deepspeed", "gpus", "expected"), PARALLEL)
def test_parallelism_is_read(values: dict[str, Any], deepspeed: Any, gpus: int | None, expected: Parallelism | str):
    if isinstance(expected, Parallelism):
        assert Parallelism.read(values, deepspeed, gpus) == expected
    else:
        with pytest.raises(ValueError, match=expected):
            Parallelism.read(values, deepspeed, gpus)


def test_gpus_are_found_and_described():
    assert find_gpu("H100") is GPUS["h100"] or find_gpu("H100") == GPUS["h100"]
    own = find_gpu("t4", memory_gib=8.0, tflops=10.0, bandwidth=100.0)
    assert (own.memory_gib, own.tflops, own.tflops_float32, own.bandwidth) == (8.0, 10.0, 10.0, 100.0)
    with pytest.raises(ValueError, match=r"'h1000', which is not known; did you mean 'h100'\?.*`gpu_memory_gb`"):
        find_gpu("h1000")
    for name in ("memory_gib", "tflops", "bandwidth"):
        for value in (0.0, -1.0, math.inf, math.nan):
            with pytest.raises(ValueError, match="give a positive number"):
                find_gpu("t4", **{name: value})
