"""From one model's hidden states to its logits over the shared vocabulary, and the matrix products that takes.

Every product is written to a given tensor, which autocast leaves alone: it only chooses operands, in `_operand_dtype`.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Projection:
    """The rows of an LM head that count, detached and in the dtypes of the computation.

    `logits = softcap * tanh(logit_scale * (hidden @ weight.T + bias) / softcap)`

    Attributes:
        weight (`Tensor`): shape `[V, H]`, in the dtype of the matrix products.
        bias (`Tensor`, *optional*): shape `[V]`, in the dtype of the logits.
        logit_scale (`float`): 1 for most models.
        softcap (`float`, *optional*): no cap for most models.
    """

    weight: Tensor
    bias: Tensor | None
    logit_scale: float
    softcap: float | None

    @classmethod
    def cut(
        cls,
        weight: Tensor,
        bias: Tensor | None,
        logit_scale: float,
        softcap: float | None,
        *,
        vocab_size: int,
        dtype: torch.dtype,
    ) -> Self:
        """Keep the first `vocab_size` rows, cast once for logits of `dtype`."""
        weight = weight.detach()[:vocab_size].to(_operand_dtype(weight, dtype))
        return cls(weight, None if bias is None else bias.detach()[:vocab_size].to(dtype), logit_scale, softcap)

    def project(self, hidden: Tensor, out: Tensor) -> Tensor:
        """Write `hidden @ weight.T` to `out`: the part that pays to do for many tokens at once."""
        return matmul(hidden.to(self.weight.dtype), self.weight.t(), out)

    def finish_(self, products: Tensor) -> Tensor:
        """Turn projections into logits in place: the part that pays to do for few tokens at once."""
        if self.bias is not None:
            products.add_(self.bias)
        if self.logit_scale != 1.0:
            products.mul_(self.logit_scale)
        if self.softcap is not None:
            products.div_(self.softcap).tanh_().mul_(self.softcap)
        return products

    def slope(self, logits: Tensor) -> Tensor | None:
        """Return the derivative of [`finish_`] where it gave `logits`, or None where that is 1 throughout."""
        if self.softcap is not None:
            return (logits / self.softcap).square_().neg_().add_(1.0).mul_(self.logit_scale)
        return None if self.logit_scale == 1.0 else logits.new_tensor(self.logit_scale)


def matmul(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """Write `a @ b` to `out`; halves are summed and stored in the dtype of `out`."""
    if a.dtype == out.dtype:
        return torch.mm(a, b, out=out)
    return torch.mm(a, b, out_dtype=out.dtype, out=out)


def add_matmul_(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Add `a @ b` to `total`; halves are summed in the dtype of `total`."""
    if a.dtype == total.dtype:
        return total.addmm_(a, b)
    return torch.addmm(total, a, b, out_dtype=total.dtype, out=total)


def _operand_dtype(weight: Tensor, result: torch.dtype) -> torch.dtype:
    """Choose the dtype of the matrix products.

    CUDA multiplies halves straight into float32; elsewhere the operands take the dtype of the result. Under CUDA
    autocast the operands are halved, as `torch.nn.functional.linear` would.
    """
    if weight.device.type != "cuda" or result == torch.float64:
        return result
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else weight.dtype
