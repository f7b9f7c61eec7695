"""The fused divergence on CUDA, with matrix products in half precision."""

import pytest
import torch

from tests.losses.problem import OPTIONS, fused, gradients, problem, run
from trl_akd.losses import kernels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(params=["kernels", "without kernels"], autouse=True)
def path(request, monkeypatch):
    if request.param == "without kernels":
        monkeypatch.setenv("TRL_AKD_TRITON", "0")
    else:
        assert kernels.available(torch.device("cuda", torch.cuda.current_device()))
    return request.param


HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


def moved(arguments, **to):
    """Return the problem on another device and in another dtype, except masks and labels."""
    dtype = to.pop("dtype", None)
    return {
        name: value.detach()
        .to("cuda", dtype if name.endswith(("hidden", "weight", "bias")) else None)
        .requires_grad_(value.requires_grad)
        if isinstance(value, torch.Tensor)
        else value
        for name, value in arguments.items()
    }


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_equals_the_cpu(options):
    here, there = problem(**options), moved(problem(**options))
    torch.testing.assert_close(fused(there).cpu(), fused(here))
    for found, expected in zip(gradients(fused(there), there), gradients(fused(here), here), strict=True):
        torch.testing.assert_close(found.cpu(), expected)


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("jsd", {"beta": 0.2}),
        *((name, {}) for name in ("skew_kl", "akl", "todi", "eopd", "abkd", "taid", "adaptive_alpha")),
    ],
)
def test_other_rules_equal_the_cpu(name, knobs):
    options = OPTIONS["everything"] | {"divergence": name, "knobs": knobs}
    here, there = problem(**options), moved(problem(**options))
    torch.testing.assert_close(fused(there).cpu(), fused(here))
    for found, expected in zip(gradients(fused(there), there), gradients(fused(here), here), strict=True):
        torch.testing.assert_close(found.cpu(), expected)


@HALVES
def test_half_precision_sums_in_float32(dtype):
    here = problem(dtype=dtype, **OPTIONS["everything"])
    there = moved(here)
    loss = fused(there)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.cpu(), fused(here), rtol=1e-5, atol=1e-6)
    for found, expected in zip(gradients(loss, there), gradients(fused(here), here), strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found.cpu(), expected, rtol=0.02, atol=2e-3)


@HALVES
def test_autocast_chooses_the_operands(dtype):
    single = moved(problem(dtype=dtype), dtype=torch.float32)
    half = moved(problem(dtype=dtype), dtype=dtype)
    with torch.autocast("cuda", dtype=dtype):
        loss = fused(single)
    torch.testing.assert_close(loss, fused(half))
    assert all(gradient.dtype == torch.float32 for gradient in gradients(loss, single))


def test_memory_stays_far_below_all_logits(path):
    tokens, words, width, chunk = 4096, 32000, 256, 256
    arguments = {
        "student_hidden": torch.randn(tokens, width, device="cuda", dtype=torch.bfloat16, requires_grad=True),
        "student_weight": torch.randn(words, width, device="cuda", dtype=torch.bfloat16, requires_grad=True),
        "teacher_hidden": torch.randn(tokens, width, device="cuda", dtype=torch.bfloat16),
        "teacher_weight": torch.randn(words, width, device="cuda", dtype=torch.bfloat16),
        "token_weights": torch.ones(tokens, device="cuda"),
        "beta": 0.3,
        "chunk_size": chunk,
    }
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run(arguments).loss.backward()
    peak = torch.cuda.max_memory_allocated() - before
    logits = 2 if path == "kernels" else 6
    assert peak < logits * 4 * chunk * words + 3 * 4 * words * width
    assert peak < 4 * tokens * words


def test_long_rows_in_half_precision(path):
    """Narrow gradients overwrite the products in rows of many blocks, the last of which is not whole."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to("cuda", torch.bfloat16)

    arguments = {
        "student_hidden": draw(33, 64).requires_grad_(),
        "student_weight": (draw(128_257, 64) / 4).requires_grad_(),
        "teacher_hidden": draw(33, 96),
        "teacher_weight": draw(128_257, 96) / 4,
        "token_weights": torch.ones(33, device="cuda"),
        "beta": 0.3,
    }
    exact = {
        name: value.detach().double().requires_grad_(value.requires_grad) if isinstance(value, torch.Tensor) else value
        for name, value in arguments.items()
    }
    torch.testing.assert_close(run(arguments).divergence.double(), run(exact).divergence, rtol=1e-4, atol=1e-5)
    for _ in range(3):
        for found, expected in zip(
            gradients(fused(arguments), arguments), gradients(fused(exact), exact), strict=True
        ):
            assert (found.double() - expected).norm() < 0.01 * expected.norm()


def test_half_logits_are_close(path):
    if path == "without kernels":
        pytest.skip("needs kernels")
    arguments = moved(problem(dtype=torch.bfloat16))
    torch.testing.assert_close(fused(arguments | {"half_logits": True}), fused(arguments), rtol=0.05, atol=0.01)
