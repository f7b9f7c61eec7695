"""Cross-entropy without a teacher, compared with float64 loops and with full logits."""

from math import log
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import oracles
from trl_akd.losses import FusedCrossEntropy, LMHead, fused_linear_cross_entropy

TOKENS, WIDTH, WORDS = 7, 4, 11
OPTIONS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"logit_scale": 0.4},
    "softcap": {"softcap": 1.5},
    "chunks": {"chunk_size": 2},
    "everything": {"bias": True, "logit_scale": 0.4, "softcap": 1.5, "chunk_size": 3},
}
EACH = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def problem(dtype: torch.dtype = torch.float64, bias: bool = False, **options: Any) -> dict[str, Any]:
    """Return arguments of `run`; tokens 1 and 5 have weight 0, and token 3 has no label."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return {
        "hidden": draw(TOKENS, WIDTH),
        "weight": draw(WORDS, WIDTH),
        "token_weights": torch.tensor([0.3, 0.0, 0.1, 0.05, 0.25, 0.0, 0.3]),
        "labels": torch.tensor([2, 4, 7, -100, 0, 1, 5]),
        **({"bias": draw(WORDS)} if bias else {}),
        **options,
    }


def run(arguments: dict[str, Any]) -> FusedCrossEntropy:
    rest = dict(arguments)
    head = LMHead(rest.pop("weight"), rest.pop("bias", None), rest.pop("logit_scale", 1.0), rest.pop("softcap", None))
    return fused_linear_cross_entropy(rest.pop("hidden"), head, **rest)


def trainable(arguments: dict[str, Any]) -> list[Tensor]:
    return [value for value in arguments.values() if isinstance(value, Tensor) and value.requires_grad]


def full_logits(arguments: dict[str, Any]) -> Tensor:
    logits = arguments["hidden"] @ arguments["weight"].T + arguments.get("bias", 0.0)
    logits = logits * arguments.get("logit_scale", 1.0)
    cap = arguments.get("softcap")
    return cap * torch.tanh(logits / cap) if cap else logits


def reference(arguments: dict[str, Any]) -> Tensor:
    nll = torch.nn.functional.cross_entropy(full_logits(arguments), arguments["labels"], reduction="none")
    return (nll * arguments["token_weights"]).sum()


@EACH
def test_equals_the_loops(options: dict[str, Any]) -> None:
    arguments = problem(**options)
    result = run(arguments)
    head = {
        "weight": arguments["weight"].tolist(),
        "bias": arguments["bias"].tolist() if "bias" in arguments else None,
        "scale": arguments.get("logit_scale", 1.0),
        "softcap": arguments.get("softcap"),
    }
    total = 0.0
    for token, hidden in enumerate(arguments["hidden"].tolist()):
        weight, label = arguments["token_weights"][token].item(), arguments["labels"][token].item()
        q = oracles.probabilities(oracles.head_logits(hidden, **head))
        nll = -log(q[label]) if label >= 0 and weight else 0.0
        assert result.nll[token].item() == pytest.approx(nll, abs=1e-12)
        assert result.entropy[token].item() == pytest.approx(oracles.entropy(q) if weight else 0.0, abs=1e-12)
        total += weight * nll
    assert result.loss.item() == pytest.approx(total, abs=1e-9)


@EACH
def test_gradients_equal_autograd(options: dict[str, Any]) -> None:
    arguments = problem(**options)
    found = torch.autograd.grad(run(arguments).loss * 3.0, trainable(arguments))
    wanted = torch.autograd.grad(reference(arguments) * 3.0, trainable(arguments))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_lower_precision(dtype: torch.dtype, tolerance: float) -> None:
    arguments = problem(dtype, bias=True)
    expected = {key: value.detach().double().requires_grad_() if isinstance(value, Tensor) and value.requires_grad
                else value for key, value in arguments.items()}  # fmt: skip
    loss = run(arguments).loss
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(reference(expected).item(), rel=tolerance)
    for ours, theirs in zip(
        torch.autograd.grad(loss, trainable(arguments)),
        torch.autograd.grad(reference(expected), trainable(expected)),
        strict=True,
    ):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)


def test_all_weights_zero() -> None:
    arguments = problem(bias=True, token_weights=torch.zeros(TOKENS))
    result = run(arguments)
    assert result.loss.item() == 0.0
    for gradient in torch.autograd.grad(result.loss, trainable(arguments)):
        assert not gradient.any()


def test_large_logits_overflow_nothing() -> None:
    arguments = problem()
    arguments["weight"] = (arguments["weight"].detach() * 1e4).requires_grad_()
    assert run(arguments).loss.item() == pytest.approx(reference(arguments).item())


def test_without_gradients() -> None:
    with torch.no_grad():
        result = run(problem())
    assert isinstance(result, FusedCrossEntropy) and not result.loss.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"labels": torch.full((TOKENS,), WORDS)}, f"labels holds {WORDS}"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "labels has shape"),
        ({"token_weights": torch.ones(3)}, "token_weights has shape"),
        ({"softcap": 0.0}, "^softcap is 0.0"),
        ({"weight": torch.zeros(WORDS, WIDTH + 1)}, "^hidden has shape"),
    ],
)
def test_bad_arguments(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run({**problem(), **change})
