"""Operations of the loss, bytes of its element-wise part, and parts of a step."""

from typing import Any

import pytest
import torch

from tests import tiny
from trl_akd.doctor.cache import cache_sizes
from trl_akd.doctor.duration import estimate_duration, loss_flops, loss_traffic
from trl_akd.doctor.hardware import find_gpu
from trl_akd.doctor.memory import student_trace, teacher_trace
from trl_akd.doctor.settings import ModelSettings, Output, Parallelism, RunSettings
from trl_akd.doctor.tracing import Meter
from trl_akd.losses.fused_linear import fused_divergence, fused_linear_cross_entropy
from trl_akd.losses.lm_head import LMHead
from trl_akd.losses.signals import DenseSignal
from trl_akd.teachers.sparse_codec import SparseCodec

ROWS, LENGTH, VOCABULARY = 2, 32, 500


def settings(**values: Any) -> RunSettings:
    student = tiny.model("llama", vocabulary=VOCABULARY, num_hidden_layers=1).config
    teacher = tiny.model("qwen2", vocabulary=VOCABULARY, hidden=48, num_hidden_layers=1).config
    given = {"rows": ROWS, "length": LENGTH, "target_length": LENGTH, "checkpointing": False, "on_cpu": True}
    models = (
        ModelSettings(name, config, torch.float32) for name, config in (("student", student), ("teacher", teacher))
    )
    return RunSettings(*models, **{**given, **values})


@pytest.mark.parametrize("signal", ["dense", None])
def test_products_of_the_loss_are_counted(signal: Any):
    run = settings(outputs=(Output(signal),))
    weight, hidden = torch.randn(VOCABULARY, 32, requires_grad=True), torch.randn(ROWS, LENGTH, 32, requires_grad=True)
    teacher = DenseSignal(torch.randn(ROWS, LENGTH, 48), LMHead(torch.randn(VOCABULARY, 48)))
    weights, labels = torch.ones(ROWS, LENGTH), torch.zeros(ROWS, LENGTH, dtype=torch.int64)
    with Meter([]) as meter:
        meter.phase = "loss"
        if signal is None:
            fused_linear_cross_entropy(hidden, LMHead(weight), token_weights=weights, labels=labels)
        else:
            fused_divergence(hidden, LMHead(weight), teacher, token_weights=weights, knobs={"beta": 0.5})
    assert loss_flops(run, student_trace(run), teacher_trace(run)) == meter.flops["loss"]


def test_rules_differ_in_their_element_wise_traffic():
    tensor = ROWS * LENGTH * VOCABULARY * 4
    assert loss_traffic(settings(outputs=(Output(None),)), VOCABULARY) > 5 * tensor
    akd = loss_traffic(settings(), VOCABULARY)
    assert 15 * tensor < akd < 60 * tensor
    assert loss_traffic(settings(divergence="skew_kl", knobs=(("alpha", 0.1),)), VOCABULARY) > akd


def test_kernels_need_less_traffic():
    def on_gpu(**values: Any) -> float:
        return loss_traffic(settings(**{"on_cpu": False, **values}), VOCABULARY) / (ROWS * LENGTH * VOCABULARY * 4)

    assert on_gpu() == 2 + 3  # statistics, gradient
    assert on_gpu(divergence="adaptive_alpha", knobs=()) == 2 + 2 + 2 + 3
    assert on_gpu(outputs=(Output(None),)) == 1 + 2
    assert on_gpu(outputs=(Output("sparse"),)) == on_gpu(outputs=(Output("sparse"),), on_cpu=True) > 15


def test_parts_scale_with_the_run():
    gpu = find_gpu("a100-80")
    one, two = (estimate_duration(settings(accumulation=count), gpu) for count in (1, 2))
    assert two.parts["teacher's forward"] == pytest.approx(2 * one.parts["teacher's forward"])
    assert two.parts["optimizer"] == one.parts["optimizer"]
    assert two.tokens == 2 * one.tokens == 2 * ROWS * LENGTH
    half = estimate_duration(settings(autocast=torch.bfloat16), gpu)
    assert half.parts["student's forward"] < one.parts["student's forward"]
    assert estimate_duration(settings(), gpu, tf32=True).step < one.step
    assert estimate_duration(settings(), gpu, utilization=0.2).step > one.step
    assert "teacher's forward" not in estimate_duration(settings(teacher_on_cpu=True), gpu).parts
    sharded = estimate_duration(settings(parallelism=Parallelism(4, "zero", 3)), gpu)
    assert sharded.parts["communication"] > 0 and "communication" not in one.parts
    generated = estimate_duration(settings(on_policy=0.5, new_tokens=16), gpu)
    assert generated.parts["generation"] > 0 and "generation" not in one.parts


def test_time_is_operations_by_throughput():
    gpu = find_gpu("t4", tflops=1.0, bandwidth=1e9)
    duration = estimate_duration(settings(), gpu, utilization=0.5)
    for part in ("student's forward", "student's backward", "teacher's forward"):
        assert duration.parts[part] == pytest.approx(duration.flops[part] / 0.5e12)
    assert duration.tokens_per_second == pytest.approx(duration.tokens / duration.step)


def test_cache_pays_from_the_second_epoch():
    run, gpu = settings(), find_gpu("t4")
    teacher, duration = teacher_trace(run), estimate_duration(run, gpu)
    assert teacher is not None
    once, twice = (
        cache_sizes(teacher, duration, target_tokens=1000, steps=10 * epochs, epochs=epochs) for epochs in (1, 2)
    )
    assert once[0].size == 1000 * 2 * 48 + 2 * VOCABULARY * 48
    assert once[0].saved == 0.0
    assert twice[0].saved == pytest.approx(10 * duration.parts["teacher's forward"])
    assert [size.bytes_per_token for size in once] == [
        96,
        52,
        *(SparseCodec(VOCABULARY, k).bytes_per_token for k in (128, 50)),
    ]
