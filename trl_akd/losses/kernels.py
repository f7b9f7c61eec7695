"""Element-wise part of the fused losses on a GPU: as `pointwise.py`, but by Triton kernels and without working memory.

A chunk of tokens takes two passes over its raw products: one for the statistics, and one that overwrites those of the
student with the gradient. `akl`, `jsd`, `todi` and `adaptive_alpha` need more passes for sums of their own.
"""

import os
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .divergences import Rule, head_limit, share_of_head
from .lm_head import LMHead
from .pointwise import LabelStatistics, Objective, TokenStatistics

_MAX_BLOCK_SIZE = 4096
_WARPS = 8


def available(device: torch.device) -> bool:
    """Return whether Triton kernels run on the device. `meta` stands for a GPU with Triton.

    `TRL_AKD_TRITON=0` in the environment turns them off, for example to find out whether they cause an error.
    """
    if os.environ.get("TRL_AKD_TRITON") == "0" or device.type not in ("cuda", "meta"):
        return False
    return device.type == "meta" or _compiles(device)


@cache
def _compiles(device: torch.device) -> bool:
    """Run a kernel. Triton is not part of every build of PyTorch, and needs a C compiler for its first kernel."""
    if find_spec("triton") is None:
        return False
    try:
        from . import triton_kernels

        with torch.cuda.device(device):
            triton_kernels.probe_kernel[(1,)](torch.empty(1, device=device))
    except Exception as error:
        warnings.warn(
            f"Triton cannot run kernels on {device} ({type(error).__name__}: {error}), so the loss runs without them, "
            "which is slower. Triton needs a C compiler; to hide this warning, set TRL_AKD_TRITON=0.",
            stacklevel=2,
        )
        return False
    return True


def likelihood_and_gradient_(
    head: LMHead, products: Tensor, labels: Tensor, dtype: torch.dtype, with_gradient: bool = True
) -> LabelStatistics:
    """Compute each token's likelihood, and overwrite the products with the gradient of its NLL.

    Args:
        head (`LMHead`): the LM head that the products are of.
        products (`Tensor`): shape `[n, V]`, contiguous, `hidden @ head.weight.T`. Overwritten, see [`gradient_of`].
        labels (`Tensor`): shape `[n]`, int64, -100 for none.
        dtype (`torch.dtype`): dtype of the statistics, float32 or float64.
        with_gradient (`bool`): whether the gradient is needed.

    Returns:
        [`LabelStatistics`].
    """
    block = TritonBlock(_Side(head, products), None, labels, temperature=1.0, ce_weight=1.0, dtype=dtype)
    if with_gradient:
        block.write_likelihood()
    return LabelStatistics(block.statistics.student_entropy, block.statistics.student_nll)


def divergence_and_gradient_(
    student_head: LMHead,
    student_products: Tensor,
    teacher_head: LMHead,
    teacher_products: Tensor,
    labels: Tensor,
    objective: Objective,
    dtype: torch.dtype,
    with_gradient: bool = True,
) -> TokenStatistics:
    """Compute each token's statistics, and overwrite the student's products with the objective's gradient.

    Args:
        student_head, teacher_head (`LMHead`): the LM heads that the products are of.
        student_products (`Tensor`): shape `[n, V]`, contiguous, of the student. Overwritten, see [`gradient_of`].
        teacher_products (`Tensor`): shape `[n, V]`, contiguous, of the teacher.
        labels (`Tensor`): shape `[n]`, int64, -100 for none.
        objective (`Objective`): loss to differentiate, of a rule that runs on kernels.
        dtype (`torch.dtype`): dtype of the statistics, float32 or float64.
        with_gradient (`bool`): whether the gradient is needed.

    Returns:
        [`TokenStatistics`].
    """
    rule, knobs, temperature, ce_weight = objective
    student, teacher = _Side(student_head, student_products), _Side(teacher_head, teacher_products)
    block = TritonBlock(student, teacher, labels, temperature, ce_weight, dtype)
    assert rule.fused is not None
    divergence = rule.fused(block, with_gradient, **knobs)
    found = block.statistics
    return TokenStatistics(
        divergence,
        found.forward_kl,
        found.reverse_kl,
        found.student_entropy,
        found.student_nll,
        found.teacher_nll,
    )


def count_passes(rule: Rule | None, knobs: Mapping[str, Any]) -> int:
    """Return how many tensors of the size of one model's logits the kernels read and write.

    Args:
        rule (`Rule`, *optional*): rule that runs on kernels, or `None` for cross-entropy.
        knobs (`Mapping`): arguments of the rule.

    Example:
        >>> from trl_akd.losses import divergences
        >>> count_passes(divergences.get("todi"), {})
        7
    """
    logits = torch.zeros(1, 1)
    side, labels = _Side(LMHead(logits), logits), torch.zeros(1, dtype=torch.int64)
    block = _CountedBlock(side, side if rule else None, labels, temperature=1.0, ce_weight=0.0, dtype=logits.dtype)
    if rule is None:
        block.write_likelihood()
    else:
        assert rule.fused is not None
        rule.fused(block, True, **knobs)
    return block.passes


def gradient_of(head: LMHead, products: Tensor) -> Tensor:
    """Return the view of the products `[n, V]` that holds their gradient, in the dtype of the head's weight."""
    if head.weight.dtype == products.dtype:
        return products
    return products.view(head.weight.dtype)[:, : products.shape[1]]


class _Side(NamedTuple):
    """LM head of a model, and raw products `[n, V]`."""

    head: LMHead
    products: Tensor

    @property
    def bias(self) -> Tensor:
        """The bias, contiguous, or in its place a tensor that is not read."""
        return self.products if self.head.bias is None else self.head.bias.contiguous()

    def options(self, name: str) -> dict[str, Any]:
        """Return the constants of a kernel that turn the products into logits."""
        return {
            f"HAS_{name}_BIAS": self.head.bias is not None,
            f"{name}_SCALE": float(self.head.logit_scale),
            f"{name}_CAP": float(self.head.softcap or 0.0),
        }


class _Statistics(NamedTuple):
    """Statistics of shape `[n]`, in the order in which the kernel writes them."""

    student_maximum: Tensor
    student_log_sum: Tensor
    student_log_sum_1: Tensor
    teacher_maximum: Tensor
    teacher_log_sum: Tensor
    forward_kl: Tensor
    reverse_kl: Tensor
    student_entropy: Tensor
    teacher_entropy: Tensor
    student_nll: Tensor
    teacher_nll: Tensor


class TritonBlock:
    """Operations of a [`divergences.Block`] by kernels.

    Args:
        student (`_Side`): head and products of the student. The products are overwritten with the gradient.
        teacher (`_Side`, *optional*): head and products of the teacher.
        labels (`Tensor`): shape `[n]`, int64, -100 for none.
        temperature (`float`): divides both models' logits in the divergences.
        ce_weight (`float` or `Tensor` of shape `[n]`): weight of the student's NLL in the gradient.
        dtype (`torch.dtype`): dtype of the statistics, float32 or float64.
    """

    def __init__(
        self,
        student: _Side,
        teacher: _Side | None,
        labels: Tensor,
        temperature: float,
        ce_weight: float | Tensor,
        dtype: torch.dtype,
    ) -> None:
        # Without a teacher, the kernels read nothing of this side.
        self._student, self._teacher, self._has_teacher = student, teacher or student, teacher is not None
        self._labels, self._ce_weight = labels, ce_weight
        self._common = {
            **self._student.options("STUDENT"),
            **self._teacher.options("TEACHER"),
            "TEMPERATURE": float(temperature),
        }
        self._statistics = student.products.new_zeros(len(_Statistics._fields), len(labels), dtype=dtype)
        self._launch("statistics_kernel", labels, self._statistics, HAS_TEACHER=self._has_teacher)
        self.statistics = _Statistics(*self._statistics)

    @property
    def forward_kl(self) -> Tensor:
        """KL(p || q)."""
        return self.statistics.forward_kl

    @property
    def reverse_kl(self) -> Tensor:
        """KL(q || p)."""
        return self.statistics.reverse_kl

    def teacher_entropy(self) -> Tensor:
        """Return the entropy of p in nats."""
        return self.statistics.teacher_entropy

    def overlap(self) -> Tensor:
        """Return `sum(min(p, q))`."""
        return self._sums("OVERLAP")[0]

    def head_share(self, mu: float) -> Tensor:
        """Return the weight of forward KL in `akl`."""
        out = torch.empty_like(self._statistics[:2])
        self._launch("head_kernel", self._statistics, out, LIMIT=head_limit(mu, out.dtype))
        return share_of_head(*out) if mu < 1.0 else torch.ones_like(self.forward_kl)

    def write_mix(self, forward_weight: Tensor, reverse_weight: Tensor) -> None:
        """Write the gradient of a mix of both KLs."""
        self._write("MIX", forward_weight - reverse_weight * self.reverse_kl, reverse_weight, forward_weight)

    def write_todi(self) -> None:
        """Write the gradient of `todi`."""
        self._write("TODI", self._sums("TODI")[0])

    def mixture_divergences(self, beta: float, with_gradient: bool) -> tuple[Tensor, Tensor]:
        """Return KL(p || m) and KL(q || m); with a gradient, write that of `jsd`."""
        shares = torch.full_like(self.forward_kl, beta), torch.full_like(self.forward_kl, 1 - beta)
        forward, reverse = self._sums("JSD", *shares)
        if with_gradient:
            self._write("JSD", *shares, reverse)
        return forward, reverse

    def alpha_sums(self, complement: Tensor, factor: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return `sum(q - p)` and `sum(u - p)`; with a factor, write the gradient."""
        change, drift = self._sums("ALPHA", 1 - complement, complement)
        if factor is not None:
            self._write("ALPHA", 1 - complement, complement, 1 + change, factor)
        return drift, change

    def write_likelihood(self) -> None:
        """Write the gradient of the labels' NLL."""
        self._write("LIKELIHOOD")

    def _sums(self, formula: str, *coefficients: Tensor) -> Tensor:
        out = torch.zeros_like(self._statistics[:2])
        self._launch("sums_kernel", self._statistics, self._stacked(coefficients), out, FORMULA=formula)
        return out

    def _write(self, formula: str, *coefficients: Tensor) -> None:
        gradient = gradient_of(self._student.head, self._student.products)
        ce_weight = self._ce_weight
        self._launch(
            "gradient_kernel",
            self._labels,
            self._statistics,
            self._stacked(coefficients),
            ce_weight if isinstance(ce_weight, Tensor) else self._statistics,  # in its place, not read
            gradient,
            gradient.stride(0),
            FORMULA=formula,
            CE_WEIGHT=1.0 if isinstance(ce_weight, Tensor) else float(ce_weight),
            HAS_CE_WEIGHTS=isinstance(ce_weight, Tensor),
            NARROW=gradient.dtype != self._student.products.dtype,
        )

    def _stacked(self, coefficients: tuple[Tensor, ...]) -> Tensor:
        return torch.stack(coefficients) if coefficients else self._statistics

    def _launch(self, name: str, *arguments: Tensor | int, **constants: Any) -> None:
        """Run a kernel, a program per token."""
        tokens, words = self._student.products.shape
        _eager_launch()(
            name,
            self._student.products,
            self._teacher.products,
            self._student.bias,
            self._teacher.bias,
            words,
            self._student.products.stride(0),
            tokens,
            *arguments,
            **constants,
            **self._common,
            BLOCK=_block_size(words),
        )


class _CountedBlock(TritonBlock):
    """Counts the rows that kernels read and write, and does not run them."""

    passes = 0

    def _launch(self, name: str, *arguments: Tensor | int, **constants: Any) -> None:
        models = 2 if self._has_teacher else 1
        searched = 31 if name == "head_kernel" else 0
        written = 1 if name == "gradient_kernel" else 0
        self.passes += models + searched + written


@cache
def _eager_launch() -> Callable[..., None]:
    """Return a launcher of kernels that `torch.compile` does not trace. Its decorator takes seconds to import."""
    from . import triton_kernels

    def launch(name: str, products: Tensor, *arguments: Tensor | int, **constants: Any) -> None:
        if "FORMULA" in constants:
            constants["FORMULA"] = getattr(triton_kernels, constants["FORMULA"]).value
        with torch.cuda.device_of(products):  # type: ignore[no-untyped-call]
            kernel = getattr(triton_kernels, name)[(len(products),)]
            kernel(products, *arguments, **constants, num_warps=_WARPS)

    disabled: Callable[..., None] = torch.compiler.disable(launch)  # type: ignore[no-untyped-call]
    return disabled


def _block_size(words: int) -> int:
    return min(_MAX_BLOCK_SIZE, 1 << (words - 1).bit_length())
