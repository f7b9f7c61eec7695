"""Triton kernels of the fused loss: run on the CPU by the interpreter of Triton, and compiled for GPUs.

The imported tests are those of the path without kernels, with the same tolerances.
"""

import os
import subprocess
import sys

import pytest
import torch

from tests.losses import test_fused_cross_entropy, test_fused_linear
from tests.losses.problem import OPTIONS, fused, gradients, problem, run
from tests.losses.test_divergences import RULES
from trl_akd.losses import (
    DenseSignal,
    LMHead,
    SparseSignal,
    divergences,
    fused_divergence,
    fused_linear,
    kernels,
    lm_head,
)
from trl_akd.losses.fused_linear import buffer_shapes
from trl_akd.losses.pointwise import Objective, divergence_and_gradient_

triton = pytest.importorskip("triton")
pytestmark = [
    pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="on a GPU, see test_fused_linear_gpu.py"),
    # NumPy warns about lanes outside of the vocabulary, whose results are masked.
    pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning"),
]
CASES = [case for case, (name, *_) in RULES.items() if divergences.get(name).on_kernels]
SOME_CASES = ["forward_kl", "reverse_kl", "akl-0.5", "jsd-0.2", "todi", "eopd-1.5", "adaptive_alpha-0.9-3.0"]

for module, names in (
    (
        test_fused_linear,
        "two_tokens_by_hand equals_loops zero_only_between_equals a_constant_on_all_logits_changes_nothing "
        "no_targets one_token near_the_teacher_bfloat16_stays_above_zero tiny_weights_in_half_precision "
        "without_gradients_the_numbers_are_the_same",
    ),
    (test_fused_cross_entropy, "equals_the_loops all_weights_zero large_logits_overflow_nothing lower_precision"),
):
    for name in names.split():
        globals()[f"test_{module.__name__.rpartition('test_')[2]}_{name}"] = getattr(module, f"test_{name}")


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """Run the kernels on CPU tensors, in several blocks of columns per row."""
    monkeypatch.setattr(kernels, "available", lambda device: True)
    monkeypatch.setattr(kernels, "_block_size", lambda words: 1 << (words // 3).bit_length())


def without_kernels(monkeypatch):
    monkeypatch.setattr(kernels, "available", lambda device: False)


def solved(arguments):
    """Return the numbers per token and the gradients."""
    result = run(arguments)
    numbers = {name: value for name, value in vars(result).items() if value is not None}
    return {**numbers, "loss": result.loss.detach()}, gradients(result.loss, arguments)


@pytest.mark.parametrize("case", ["scale", "larger-student", "ce-temperature", "ce-per-token", "everything"])
def test_equals_the_path_without_kernels(case, monkeypatch):
    arguments = problem(**OPTIONS[case])
    found = solved(arguments)
    without_kernels(monkeypatch)
    torch.testing.assert_close(found, solved(arguments), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", SOME_CASES)
def test_rules_equal_the_path_without_kernels(case, monkeypatch):
    name, knobs, _ = RULES[case]
    arguments = problem(**OPTIONS["everything"], dtype=torch.float32) | {"divergence": name, "knobs": knobs}
    found = solved(arguments)
    without_kernels(monkeypatch)
    torch.testing.assert_close(found, solved(arguments))


@pytest.mark.parametrize("beta", [1e-50, 1e-3, 0.5, 1 - 1e-3, 1 - 1e-9])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_jsd_in_float32_equals_that_in_float64(beta, scale, monkeypatch):
    """With models that almost agree, and with models that put all probability on different tokens."""
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(3, 50, generator=generator)
    products = teacher + scale * torch.randn(3, 50, generator=generator)
    head, labels = LMHead(torch.zeros(50, 1)), torch.full((3,), -100)
    objective = Objective(divergences.get("jsd"), {"beta": beta}, 1.0, 0.0)
    slope, scratch = products.double(), torch.empty(2, 3, 50, dtype=torch.float64)
    expected = divergence_and_gradient_(slope, teacher.double(), labels, objective, scratch)
    found = kernels.divergence_and_gradient_(head, products, head, teacher, labels, objective, torch.float32)
    torch.testing.assert_close(found.divergence.double(), expected.divergence, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(products.double(), slope, rtol=1e-3, atol=1e-8 + 1e-3 * slope.abs().max().item())


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("case", CASES)
def test_every_rule_with_every_option(case, options, monkeypatch):
    name, knobs, _ = RULES[case]
    arguments = problem(**options) | {"divergence": name, "knobs": knobs}
    found = solved(arguments)
    without_kernels(monkeypatch)
    torch.testing.assert_close(found, solved(arguments), rtol=1e-10, atol=1e-12)


def test_the_rules_with_a_hand_written_gradient_have_kernels():
    for name in divergences.names():
        rule = divergences.get(name)
        if hasattr(divergences, name):
            assert rule.on_kernels == (rule.fused is not None), name


@pytest.fixture
def half_products(monkeypatch):
    """Emulate CUDA's matrix products of operands in half precision, summed and stored as `out` requires.

    Unlike a CPU, CUDA multiplies an LM head as a whole.
    """

    def matmul(a, b, out):
        return out.copy_(a.float() @ b.float())

    monkeypatch.setattr(lm_head, "_operand_dtype", lambda weight, result: weight.dtype)
    monkeypatch.setattr(lm_head, "_CPU_ROWS", 2**31)
    monkeypatch.setattr(lm_head, "matmul", matmul)
    monkeypatch.setattr(fused_linear, "matmul", matmul)
    monkeypatch.setattr(fused_linear, "add_matmul_", lambda total, a, b: total.add_(a.float() @ b.float()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_of_half_precision(dtype, half_products, monkeypatch):
    """Logits are float32, and gradients in the operands' dtype overwrite them in place."""
    arguments = problem(dtype=dtype, **OPTIONS["everything"])
    found = solved(arguments)
    without_kernels(monkeypatch)
    expected = solved(arguments)
    torch.testing.assert_close(found[0], expected[0])
    for ours, theirs in zip(found[1], expected[1], strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=2e-3)


def rounded_logits(arguments):
    """Return the problem whose teacher and student have the logits rounded to half precision as hidden states."""
    words = len(arguments["student_weight"])
    changed = dict(arguments)
    for side in ("student", "teacher"):
        products = arguments[f"{side}_hidden"].detach().float() @ arguments[f"{side}_weight"].detach().float().T
        changed[f"{side}_hidden"] = products.to(arguments[f"{side}_weight"].dtype).double()
        changed[f"{side}_weight"] = torch.eye(words, dtype=torch.float64)
        if f"{side}_bias" in arguments:
            changed[f"{side}_bias"] = arguments[f"{side}_bias"].detach().double()
    changed["student_hidden"].requires_grad_()
    return changed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_logits_round_the_logits_alone(dtype, half_products, monkeypatch):
    arguments = problem(dtype=dtype, bias=True, labels=True, ce_weight=0.7, temperature=1.7)
    result = run(arguments | {"half_logits": True})
    slope = torch.autograd.grad(result.loss, arguments["student_hidden"])[0]
    without_kernels(monkeypatch)
    exact = rounded_logits(arguments)
    expected = run(exact)
    for name in ("loss", "forward_kl", "reverse_kl", "student_entropy", "student_nll", "teacher_nll"):
        torch.testing.assert_close(getattr(result, name), getattr(expected, name).float())
    [logit_slope] = torch.autograd.grad(expected.loss, exact["student_hidden"])
    torch.testing.assert_close(
        slope, (logit_slope.float() @ arguments["student_weight"].detach().float()).to(dtype), rtol=0.02, atol=2e-3
    )


@pytest.mark.parametrize("change", ["operands", "device", "signal", "rule"])
def test_half_logits_are_refused_without_kernels(change, half_products, monkeypatch):
    arguments = problem(dtype=torch.float32 if change == "operands" else torch.bfloat16) | {"half_logits": True}
    if change == "device":
        without_kernels(monkeypatch)
    if change == "rule":
        arguments |= {"divergence": "skew_kl", "knobs": {}}
    with pytest.raises(ValueError, match="half_logits needs matrix products"):
        if change == "signal":
            hidden, weights = arguments["student_hidden"], arguments["token_weights"]
            signal = SparseSignal.from_logits(torch.zeros(len(hidden), 11), 2)
            head = LMHead(arguments["student_weight"])
            fused_divergence(hidden, head, signal, token_weights=weights, knobs={"beta": 0.3}, half_logits=True)
        else:
            run(arguments)


class Traffic:
    """Bytes that kernels load and store, and that matrix products read and write of tensors as large as the logits."""

    def __init__(self, monkeypatch):
        from triton.runtime.interpreter import InterpreterBuilder

        self.bytes = self.products = 0
        load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

        def counted_load(builder, pointers, mask, *rest):
            self.bytes += int(mask.data.sum()) * pointers.get_element_ty().primitive_bitwidth // 8
            return load(builder, pointers, mask, *rest)

        def counted_store(builder, pointers, value, mask, *rest):
            self.bytes += int(mask.data.sum()) * pointers.get_element_ty().primitive_bitwidth // 8
            return store(builder, pointers, value, mask, *rest)

        monkeypatch.setattr(InterpreterBuilder, "create_masked_load", counted_load)
        monkeypatch.setattr(InterpreterBuilder, "create_masked_store", counted_store)
        for module, name in ((lm_head, "matmul"), (fused_linear, "matmul"), (fused_linear, "add_matmul_")):
            monkeypatch.setattr(module, name, self.counted(getattr(module, name)))

    def counted(self, product):
        def multiply(*tensors, **named):
            self.products += 1
            for tensor in (*tensors, *named.values()):
                if sorted(tensor.shape) == [self.tokens, self.words]:
                    self.bytes += tensor.numel() * tensor.itemsize
            return product(*tensors, **named)

        return multiply


@pytest.mark.parametrize(
    ("half_logits", "rule", "bytes_per_logit"),
    [
        *(
            (True, rule, number)
            for rule, number in [("akd", 18), ("eopd", 18), ("jsd", 22), ("todi", 22), ("adaptive_alpha", 26)]
        ),
        *((False, rule, number) for rule, number in [("akd", 30), ("jsd", 38), ("todi", 38), ("adaptive_alpha", 46)]),
    ],
)
def test_memory_traffic_and_matrix_products(half_logits, rule, bytes_per_logit, half_products, monkeypatch):
    monkeypatch.setattr(kernels, "_block_size", lambda words: 1024)
    traffic = Traffic(monkeypatch)
    traffic.tokens, traffic.words = 2, 3000
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).bfloat16()

    hidden, weight = draw(2, 8).requires_grad_(), draw(3000, 8).requires_grad_()
    signal = DenseSignal(draw(2, 4), LMHead(draw(3000, 4)))
    knobs = {"beta": 0.3} if rule == "akd" else {}
    fused_divergence(
        hidden, LMHead(weight), signal,
        token_weights=torch.ones(2), divergence=rule, knobs=knobs, half_logits=half_logits,
    )  # fmt: skip
    assert traffic.products == 4
    per_logit = traffic.bytes / (2 * 3000)
    assert bytes_per_logit <= per_logit < bytes_per_logit + 0.1
    if half_logits:  # the products write two tensors, and read one twice
        assert kernels.count_passes(divergences.get(rule), knobs) == bytes_per_logit / 2 - 4


@pytest.mark.parametrize("words", [64, 49_152, 128_256, 151_936, 262_144])
@pytest.mark.parametrize("tokens", [1, 100, 8192, 1_000_000])
@pytest.mark.parametrize("rule", ["akd", "skew_kl", "cross-entropy", "sparse"])
def test_buffers_take_less_than_a_gibibyte_on_a_gpu(rule, tokens, words):
    signal = {"cross-entropy": type(None), "sparse": SparseSignal}.get(rule, DenseSignal)
    shapes = buffer_shapes(
        tokens,
        words,
        torch.empty(0, device="meta"),
        signal=signal,
        rule=divergences.get("skew_kl" if rule == "skew_kl" else "akd"),
    )
    assert shapes.on_kernels == (rule in ("akd", "cross-entropy"))
    copies = 50 if rule == "skew_kl" else 0
    size = sum(torch.Size(shape).numel() for shape in (*shapes[:2], (copies, *shapes.scratch[1:])))
    assert 4 * size <= 2**30


def test_little_free_memory_makes_chunks_smaller(monkeypatch):
    sizes = []
    for free in (80_000, 4_000, 1_700, 1_000, 100, 0):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free * 2**20, 80 * 2**30))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 100 * 2**20)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100 * 2**20)
        sizes.append(fused_linear._gpu_bytes(torch.device("cuda")) // 2**20)
    assert sizes == [896, 896, 448, 448, 56, 56]


def test_narrow_gradients_equal_wide_ones():
    """Gradients in half precision overwrite float32 products that are read later in the same row."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 50, generator=generator)
    head, labels = LMHead(torch.zeros(50, 1)), torch.tensor([3, -100, 49])
    narrow = LMHead(head.weight.bfloat16())
    objective = Objective(divergences.get("akd"), {"beta": 0.4}, 1.0, 0.5)
    expected = student.clone()
    divergence_and_gradient_(expected, teacher.clone(), labels, objective, torch.empty(2, 3, 50))
    products = student.clone()
    kernels.divergence_and_gradient_(narrow, products, head, teacher, labels, objective, torch.float32)
    torch.testing.assert_close(kernels.gradient_of(narrow, products), expected.bfloat16())


def test_logits_of_padding_rows(monkeypatch):
    """Rows of the vocabulary with logits of -1e30 have no probability and no gradient."""
    arguments = problem(bias=True, dtype=torch.float32)
    for side in ("student", "teacher"):
        with torch.no_grad():
            arguments[f"{side}_bias"][8:] = -1e30
    numbers, slopes = solved(arguments)
    assert all(value.isfinite().all() for value in numbers.values())
    assert (slopes[1][8:] == 0).all() and (slopes[2][8:] == 0).all()
    without_kernels(monkeypatch)
    torch.testing.assert_close((numbers, slopes), solved(arguments))


def test_inputs_need_not_be_contiguous(monkeypatch):
    arguments = problem(**OPTIONS["everything"])
    for name, value in arguments.items():
        if name.endswith(("hidden", "weight", "bias", "labels")) and isinstance(value, torch.Tensor):
            spread = value.detach().unsqueeze(-1).expand(*value.shape, 2).contiguous()[..., 0]
            arguments[name] = spread.requires_grad_(value.requires_grad)
            assert not spread.is_contiguous()
    found = solved(arguments)
    without_kernels(monkeypatch)
    torch.testing.assert_close(found, solved(arguments), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("gap", [40.0, 104.0])
@pytest.mark.parametrize("case", [case for case in SOME_CASES if not case.startswith("akl")])
def test_sure_models(case, gap, monkeypatch):
    """Models that contradict each other, with probabilities down to 0 in float32."""
    name, knobs, _ = RULES[case]
    identity = LMHead(torch.eye(4))
    student = gap * torch.tensor([[0.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.2, 0.1]]).requires_grad_()
    signal = DenseSignal(gap * torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.1, 0.0]]), identity)

    def solve():
        result = fused_divergence(student, identity, signal, token_weights=torch.ones(2), divergence=name, knobs=knobs)
        return result.divergence, torch.autograd.grad(result.loss, student)[0]

    found = solve()
    without_kernels(monkeypatch)
    expected = solve()
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-30)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-6)


def test_a_rule_of_a_user_runs_on_kernels(monkeypatch):
    monkeypatch.setattr(divergences, "_RULES", dict(divergences._RULES))
    calls = []

    def entropy_mix(block, with_gradient):
        calls.append(type(block).__name__)
        share = torch.exp(-block.teacher_entropy())
        if with_gradient:
            block.write_mix(share, 1 - share)
        return share * block.forward_kl + (1 - share) * block.reverse_kl

    @divergences.register("entropy_mix", fused=entropy_mix, on_kernels=True)
    def function(student_logits, teacher_logits):
        share = torch.exp(-torch.special.entr(teacher_logits.softmax(-1)).sum(-1))
        return share * divergences.forward_kl(student_logits, teacher_logits) + (1 - share) * divergences.reverse_kl(
            student_logits, teacher_logits
        )

    arguments = problem() | {"divergence": "entropy_mix", "knobs": {}}
    found = solved(arguments)
    without_kernels(monkeypatch)
    torch.testing.assert_close(found, solved(arguments))
    assert calls == ["TritonBlock", "Softened"]


def test_kernels_are_chosen_by_device_and_environment(monkeypatch):
    monkeypatch.undo()
    assert kernels.available(torch.device("meta"))
    assert not kernels.available(torch.device("cpu"))
    monkeypatch.setattr(kernels, "_compiles", lambda device: True)
    assert kernels.available(torch.device("cuda", 0))
    monkeypatch.setenv("TRL_AKD_TRITON", "0")
    assert not kernels.available(torch.device("cuda", 0))
    assert not kernels.available(torch.device("meta"))


def test_without_triton_or_a_compiler_the_loss_runs_without_kernels(monkeypatch):
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="Triton cannot run kernels on cuda:7 .*TRL_AKD_TRITON=0"):
        assert not kernels._compiles(torch.device("cuda", 7))
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    assert not kernels._compiles.__wrapped__(torch.device("cuda", 8))


@pytest.mark.slow
def test_torch_compile():
    arguments = problem(dtype=torch.float32, labels=True)

    def loss(student_hidden):
        return fused(arguments | {"student_hidden": student_hidden * 2})

    torch.testing.assert_close(
        torch.compile(loss, backend="eager")(arguments["student_hidden"]), loss(arguments["student_hidden"])
    )


@pytest.mark.slow
def test_the_kernels_compile_for_gpus():
    """For NVIDIA GPUs from Ampere on and AMD's, in all forms that differ in code; needs no GPU."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-m", "tests.losses.compile_kernels"], check=True, env=environment, timeout=600)


@pytest.mark.slow
def test_the_benchmark_for_gpus_runs_dry(tmp_path):
    page = tmp_path / "page.md"
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.bench_gpu",
        "--dry_run",
        "--repeats",
        "1",
        "--output",
        str(page),
    ]
    subprocess.run(command, check=True, timeout=600, capture_output=True)
    found = page.read_text()
    assert "| trl_akd without kernels |" in found and "| AKD |" in found and "| SFT (TRL) |" in found, found
    assert "Left out: trl_akd, half_logits (ValueError: half_logits needs" in found, found
