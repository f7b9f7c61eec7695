"""The LM head of a language model, and the matrix products that apply it to a chunk of tokens.

Every product is written to a given tensor, which autocast does not change. Autocast only determines the dtype of the
operands, in `_operand_dtype`.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

# Number of rows of an LM head that a CPU multiplies at a time. The BLAS copies a transposed factor before it
# multiplies, which costs up to a third of the time unless the copy stays in the cache.
_CPU_ROWS = 512


@dataclass(frozen=True)
class LMHead:
    """Last layer of a language model: `logits = softcap * tanh(logit_scale * (hidden @ weight.T + bias) / softcap)`.

    Args:
        weight (`torch.Tensor` of shape `[V, H]`):
            Projection from hidden states to logits.
        bias (`torch.Tensor` of shape `[V]`, *optional*):
            Added to the projection.
        logit_scale (`float`, *optional*, defaults to `1.0`):
            Factor on the biased projection (Cohere, Granite).
        softcap (`float`, *optional*):
            Bound on the absolute value of a logit (Gemma 2).

    Example:

    ```python
    >>> LMHead(torch.eye(2), logit_scale=0.5).logits(torch.tensor([4.0, 2.0]))
    tensor([2., 1.])

    ```
    """

    weight: Tensor
    bias: Tensor | None = None
    logit_scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits `[..., V]` of hidden states `[..., H]`, in their dtype."""
        weight, bias = self.weight.to(hidden.dtype), None if self.bias is None else self.bias.to(hidden.dtype)
        logits = torch.nn.functional.linear(hidden, weight, bias) * self.logit_scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def parameters(self) -> list[Tensor]:
        """Return the tensors that a sharded model must gather before the head is used."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    def to(self, device: torch.device) -> Self:
        """Return the head on `device`."""
        return replace(self, weight=self.weight.to(device), bias=None if self.bias is None else self.bias.to(device))

    def whole(self) -> Self:
        """Return the head with full tensors in place of FSDP2's shards."""
        return replace(self, weight=_whole(self.weight), bias=None if self.bias is None else _whole(self.bias))

    # Used by the fused losses, without gradients.

    def cut(self, vocab_size: int, dtype: torch.dtype) -> Self:
        """Return the first `vocab_size` rows, detached and cast once for logits of `dtype`."""
        weight = self.weight.detach()[:vocab_size].to(_operand_dtype(self.weight, dtype))
        return replace(
            self, weight=weight, bias=None if self.bias is None else self.bias.detach()[:vocab_size].to(dtype)
        )

    def project(self, hidden: Tensor, out: Tensor) -> Tensor:
        """Write `hidden @ weight.T` to `out`, which is efficient for many tokens at once."""
        operand = hidden.to(self.weight.dtype)
        size = _CPU_ROWS if out.device.type == "cpu" else len(self.weight)
        for start in range(0, len(self.weight), size):
            matmul(operand, self.weight[start : start + size].t(), out[:, start : start + size])
        return out

    def finish_(self, products: Tensor) -> Tensor:
        """Turn projections into logits in place, which is efficient for few tokens at once."""
        if self.bias is not None:
            products.add_(self.bias)
        if self.logit_scale != 1.0:
            products.mul_(self.logit_scale)
        if self.softcap is not None:
            products.div_(self.softcap).tanh_().mul_(self.softcap)
        return products

    def logits_of(self, hidden: Tensor, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the logits `[N, n]` in `dtype` of a few tokens `[N, n]`, from hidden states `[N, H]`.

        The rows of each token's ids are copied, so this is slower than [`project`] where `n` is a large part of the
        vocabulary.
        """
        operand = _operand_dtype(self.weight, dtype)
        logits = torch.empty(ids.shape, dtype=dtype, device=ids.device)
        budget = (16 if ids.device.type == "cpu" else 128) * 2**20
        size = max(1, budget // (ids.shape[-1] * self.weight.shape[1] * operand.itemsize))
        for start in range(0, len(ids), size):
            rows = slice(start, start + size)
            weight, column = self.weight.detach()[ids[rows]].to(operand), hidden[rows].to(operand).unsqueeze(-1)
            if operand == dtype:
                torch.bmm(weight, column, out=logits[rows].unsqueeze(-1))
            else:
                logits[rows] = torch.bmm(weight, column, out_dtype=dtype).squeeze(-1)
        bias = None if self.bias is None else self.bias.detach()[ids].to(dtype)
        return replace(self, bias=bias).finish_(logits)

    def slope(self, logits: Tensor) -> Tensor | None:
        """Return the derivative of [`finish_`] where it returned `logits`, or `None` if it is 1 everywhere."""
        if self.softcap is not None:
            return (logits / self.softcap).square_().neg_().add_(1.0).mul_(self.logit_scale)
        return None if self.logit_scale == 1.0 else logits.new_tensor(self.logit_scale)


def matmul(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """Write `a @ b` to `out`; half-precision products are summed and stored in the dtype of `out`."""
    if a.dtype == out.dtype:
        return torch.mm(a, b, out=out)
    return torch.mm(a, b, out_dtype=out.dtype, out=out)


def add_matmul_(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Add `a @ b` to `total`; half-precision products are summed in the dtype of `total`."""
    if a.dtype == total.dtype:
        return total.addmm_(a, b)
    return torch.addmm(total, a, b, out_dtype=total.dtype, out=total)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _operand_dtype(weight: Tensor, result: torch.dtype) -> torch.dtype:
    """Choose the dtype of the matrix products.

    CUDA multiplies half-precision operands into float32; on other devices the operands get the dtype of the result.
    Under CUDA autocast the operands are cast to half precision, as by `torch.nn.functional.linear`.
    """
    if weight.device.type != "cuda" or result == torch.float64:
        return result
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else weight.dtype
