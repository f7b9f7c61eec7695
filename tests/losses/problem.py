"""A small distillation problem, and its solution by full logits and autograd."""

from typing import Any

import torch
from torch import Tensor

from trl_akd.losses import DenseSignal, FusedDivergence, LMHead, divergences, fused_divergence

TOKENS, STUDENT_WIDTH, TEACHER_WIDTH = 7, 4, 5


def problem(
    *,
    student_words: int = 11,
    teacher_words: int = 11,
    dtype: torch.dtype = torch.float64,
    bias: bool = False,
    labels: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Return arguments of `run`; tokens 1 and 5 have weight 0, and token 3 has no label."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    arguments = {
        "student_hidden": draw(TOKENS, STUDENT_WIDTH).requires_grad_(),
        "student_weight": draw(student_words, STUDENT_WIDTH).requires_grad_(),
        "teacher_hidden": draw(TOKENS, TEACHER_WIDTH),
        "teacher_weight": draw(teacher_words, TEACHER_WIDTH),
        "token_weights": torch.tensor([0.3, 0.0, 0.1, 0.05, 0.25, 0.0, 0.3]),
        "beta": 0.3,
    }
    if bias:
        arguments["student_bias"] = draw(student_words).requires_grad_()
        arguments["teacher_bias"] = draw(teacher_words)
    if labels:
        arguments["labels"] = torch.tensor([2, 4, 7, -100, 0, 1, 5])
    return arguments | options


OPTIONS = {
    "plain": {},
    "forward": {"beta": 0.0},
    "reverse": {"beta": 1.0},
    "temperature": {"temperature": 2.5},
    "bias": {"bias": True},
    "scale": {"student_logit_scale": 0.4, "teacher_logit_scale": 1.7},
    "softcap": {"student_softcap": 1.5, "teacher_softcap": 2.0},
    "labels": {"labels": True},
    "ce": {"labels": True, "ce_weight": 0.7},
    "ce-temperature": {"labels": True, "ce_weight": 0.7, "temperature": 0.6},
    "ce-per-token": {
        "labels": True,
        "ce_weight": torch.tensor([0.7, 1.0, 0.0, 2.0, -0.4, 0.1, 3.0], dtype=torch.float64),
        "temperature": 0.6,
        "chunk_size": 3,
    },
    "larger-teacher": {"teacher_words": 14, "bias": True},
    "larger-student": {"student_words": 14, "bias": True},
    "vocab_size": {"student_words": 12, "vocab_size": 9, "labels": True, "ce_weight": 0.2},
    "everything": {
        "student_words": 15,
        "teacher_words": 13,
        "vocab_size": 10,
        "bias": True,
        "labels": True,
        "ce_weight": 0.7,
        "temperature": 1.8,
        "student_logit_scale": 0.4,
        "teacher_logit_scale": 1.7,
        "student_softcap": 1.5,
        "teacher_softcap": 2.0,
        "chunk_size": 2,
    },
}


def logits(arguments: dict[str, Any], side: str) -> Tensor:
    """Full logits of one model, cut to the shared vocabulary."""
    full = arguments[f"{side}_hidden"] @ arguments[f"{side}_weight"].T
    if (bias := arguments.get(f"{side}_bias")) is not None:
        full = full + bias
    full = full * arguments.get(f"{side}_logit_scale", 1.0)
    if cap := arguments.get(f"{side}_softcap"):
        full = cap * torch.tanh(full / cap)
    shared = min(len(arguments["student_weight"]), len(arguments["teacher_weight"]))
    return full[:, : arguments.get("vocab_size", shared)]


def reference_loss(arguments: dict[str, Any]) -> Tensor:
    """The objective by full logits, differentiable by autograd."""
    student, teacher = logits(arguments, "student"), logits(arguments, "teacher")
    rule, knobs = divergences.get(arguments.get("divergence", "akd")), knobs_of(arguments)
    loss = rule(student, teacher, temperature=arguments.get("temperature", 1.0), **knobs)
    if "ce_weight" in arguments:
        nll = torch.nn.functional.cross_entropy(student, arguments["labels"], reduction="none")
        loss = loss + arguments["ce_weight"] * nll
    return (loss * arguments["token_weights"]).sum()


def trainable(arguments: dict[str, Any]) -> list[Tensor]:
    return [value for value in arguments.values() if isinstance(value, Tensor) and value.requires_grad]


def gradients(loss: Tensor, arguments: dict[str, Any]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, trainable(arguments)))


def knobs_of(arguments: dict[str, Any]) -> dict[str, Any]:
    return arguments.get("knobs", {"beta": arguments["beta"]})


def run(arguments: dict[str, Any]) -> FusedDivergence:
    """`fused_divergence` of a problem."""
    rest = arguments | {"knobs": knobs_of(arguments)}
    del rest["beta"]
    hidden, heads = {}, {}
    for side in ("student", "teacher"):
        hidden[side] = rest.pop(f"{side}_hidden")
        heads[side] = LMHead(
            rest.pop(f"{side}_weight"),
            rest.pop(f"{side}_bias", None),
            rest.pop(f"{side}_logit_scale", 1.0),
            rest.pop(f"{side}_softcap", None),
        )
    return fused_divergence(
        hidden["student"], heads["student"], DenseSignal(hidden["teacher"], heads["teacher"]), **rest
    )


def fused(arguments: dict[str, Any]) -> Tensor:
    return run(arguments).loss
