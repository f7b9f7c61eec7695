"""Divergences and cross-entropy from hidden states and LM heads, a chunk of tokens at a time.

The full logits of both models are the largest tensors of a distillation step: 8,192 tokens x 152,064 vocabulary
entries x 4 bytes are 5 GB, several times over. Here a chunk of tokens is projected, its divergences are reduced to one
number per token, and its gradient is at once propagated through the student's LM head: four matrix products per chunk,
none of them recomputed in the backward pass. The gradient is computed in the forward pass, as in
[Liger Kernel](https://huggingface.co/papers/2410.10989).

A sparse or sampled signal, or labels alone, need no projection of the teacher: three products per chunk.

Between the products, `kernels.py` computes statistics and gradient on a GPU, and `pointwise.py` on other devices and
for rules and signals without kernels.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import divergences, kernels
from .lm_head import LMHead, add_matmul_, matmul
from .pointwise import (
    LabelStatistics,
    Objective,
    TokenStatistics,
    divergence_and_gradient_,
    likelihood_and_gradient_,
    sparse_divergence_and_gradient_,
)
from .reduction import IGNORE_INDEX
from .signals import NO_TOKEN, DenseSignal, SampledSignal, SparseSignal, TeacherSignal

_MIB = 2**20
_GPU_BYTES = 896 * _MIB  # of all buffers of the size of a chunk of logits, which leaves 128 MiB of 1 GiB for others
_BIAS_ROWS = 128  # of a gradient in half precision that are cast at a time


@dataclass(frozen=True)
class FusedDivergence:
    """Result of [`fused_divergence`]. All but `loss` is detached, and 0 for a token of weight 0.

    Attributes:
        loss (`Tensor`): shape `[]`, the weighted sum, differentiable.
        divergence (`Tensor`): shape `[...]`, the chosen rule's, in nats.
        forward_kl (`Tensor`): shape `[...]`, KL(teacher || student) in nats, whatever the rule.
        reverse_kl (`Tensor`): shape `[...]`, KL(student || teacher) in nats, whatever the rule.
        student_entropy (`Tensor`): shape `[...]`, in nats, at `temperature`.
        student_nll (`Tensor`, *optional*): shape `[...]`, -log q(label) in nats at temperature 1, given labels.
        teacher_nll (`Tensor`, *optional*): shape `[...]`, -log p(label) in nats at temperature 1, given labels. From a
            sparse or sampled signal: at the signal's temperature; if sparse, of the whole tail where the label is in
            it.
    """

    loss: Tensor
    divergence: Tensor
    forward_kl: Tensor
    reverse_kl: Tensor
    student_entropy: Tensor
    student_nll: Tensor | None
    teacher_nll: Tensor | None


def fused_divergence(
    student_hidden: Tensor,
    student_head: LMHead,
    teacher: TeacherSignal,
    *,
    token_weights: Tensor,
    divergence: str = "akd",
    knobs: Mapping[str, Any] | None = None,
    temperature: float = 1.0,
    labels: Tensor | None = None,
    ce_weight: float | Tensor = 0.0,
    chunk_size: int | None = None,
    vocab_size: int | None = None,
    half_logits: bool = False,
) -> FusedDivergence:
    """Compute a weighted sum of divergences between two models without storing the full logits of either.

    `sum_n token_weights[n] * (divergence_n + ce_weight * NLL_n)`. The normalization is in `token_weights`. No factor
    `T ** 2` is applied.

    Tokens of weight 0 are removed before the projection. On a GPU, counting them and checking labels synchronizes with
    the host once, which costs less than projecting every prompt. Logits must be finite; unless `half_logits` is set,
    they are float32 for all inputs (float64 stays float64). Gradients are computed in the forward pass, accumulated in
    float32, returned in the inputs' dtypes, and released by the backward pass, which can therefore run only once.

    Args:
        student_hidden (`Tensor`): shape `[..., Hs]`, final hidden states of the student.
        student_head (`LMHead`): LM head of the student. Under DeepSpeed ZeRO-3 the caller gathers it.
        teacher (`DenseSignal`, `SparseSignal` or `SampledSignal`): signal of the teacher for the same tokens. Never
            differentiated. From a sampled signal, the results of a mix of both KLs are unbiased estimates; other rules
            are refused.
        token_weights (`Tensor`): shape `[...]`, see [`token_weights`] and [`scale`] in `reduction.py`.
        divergence (`str`, *optional*, defaults to `"akd"`): name of a rule in [`divergences`].
        knobs (`Mapping`, *optional*): arguments of the rule, such as `{"beta": 0.3}`. Never differentiated.
        temperature (`float`, *optional*, defaults to `1.0`): divides both models' logits, for the divergences alone.
        labels (`Tensor`, *optional*): shape `[...]`, int64, -100 for none. Needed by `ce_weight` and for the NLLs.
        ce_weight (`float` or `Tensor` of shape `[...]`, *optional*, defaults to `0.0`): weight of the student's NLL of
            the labels. Never differentiated.
        chunk_size (`int`, *optional*): tokens projected at a time. By default one model's chunk of logits takes up to
            16 MiB on a CPU, but at least 192 tokens. Elsewhere all buffers of this size take up to 896 MiB, or half of
            the free memory if that is less, but at least 128 tokens.
        vocab_size (`int`, *optional*): number of leading rows of the heads to use, by default all that both heads
            have. The caller must have checked that the tokenizers agree on them. Gradients of other rows are 0.
        half_logits (`bool`, *optional*, defaults to `False`): whether the logits of heads in half precision are stored
            in it between the matrix products and the Triton kernels. Saves 12 of 30 bytes of memory traffic per logit;
            with realistic logits in bfloat16, the relative error of the gradient rises from 0.002 to 0.06 and more.

    Returns:
        [`FusedDivergence`].

    Raises:
        ValueError: an argument is out of its range, or the shapes of two tensors do not match.
        RuntimeError: on a second backward pass through the same loss.

    Example:
        >>> one = torch.ones(1, 1)
        >>> student, teacher = LMHead(torch.zeros(2, 1)), LMHead(torch.tensor([[3.0], [1.0]]).log())
        >>> signal = DenseSignal(one, teacher)
        >>> fused_divergence(one, student, signal, token_weights=torch.ones(1), divergence="forward_kl").loss
        tensor(0.1308)
    """
    objective = Objective(divergences.get(divergence), dict(knobs or {}), temperature, ce_weight)
    _check_objective(objective, labels)
    _check_tokens(student_hidden, token_weights, labels, chunk_size, ce_weight)
    _check_head("student_", student_hidden, student_head)
    sizes = [len(student_head.weight)]
    if isinstance(teacher, DenseSignal | SampledSignal):
        _check_head("teacher_", teacher.hidden, teacher.head)
        sizes.append(len(teacher.head.weight))
    _check_signal(teacher, student_hidden.shape[:-1], temperature, objective.rule)
    vocab_size = _shared_size(min(sizes), vocab_size)
    loss, statistics = _weighted_sum(
        student_hidden,
        student_head,
        token_weights,
        labels,
        chunk_size,
        vocab_size,
        half_logits,
        teacher.flatten(),
        objective,
    )
    token = TokenStatistics(*statistics)
    return FusedDivergence(
        loss,
        token.divergence,
        token.forward_kl,
        token.reverse_kl,
        token.student_entropy,
        student_nll=None if labels is None else token.student_nll,
        teacher_nll=None if labels is None else token.teacher_nll,
    )


def fused_linear_divergence(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    *,
    token_weights: Tensor,
    beta: float | Tensor,
    temperature: float = 1.0,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    chunk_size: int | None = None,
) -> FusedDivergence:
    """Mix forward and reverse KL linearly: [`fused_divergence`] of the rule `"akd"`, from plain tensors.

    Eq. (9) of Adaptive Knowledge Distillation for code generation (jos.org.cn 7462),
    `sum_n token_weights[n] * ((1 - beta) * KL_n + beta * RKL_n)`, with `+KL` where the paper prints `-KL`.

    Args:
        student_hidden (`Tensor`): shape `[N, Hs]`.
        student_weight (`Tensor`): shape `[Vs, Hs]`.
        teacher_hidden (`Tensor`): shape `[N, Ht]`. Never differentiated.
        teacher_weight (`Tensor`): shape `[Vt, Ht]`. Never differentiated.
        token_weights (`Tensor`): shape `[N]`.
        beta (`float` or 0-dim `Tensor`): share of reverse KL, in [0, 1]. Never differentiated.
        temperature (`float`, *optional*, defaults to `1.0`): divides both models' logits.
        student_bias (`Tensor`, *optional*): shape `[Vs]`.
        teacher_bias (`Tensor`, *optional*): shape `[Vt]`.
        chunk_size (`int`, *optional*): tokens projected at a time.

    Returns:
        [`FusedDivergence`].

    Example:
        >>> one = torch.ones(1, 1)
        >>> student, teacher = torch.zeros(2, 1), torch.tensor([[3.0], [1.0]]).log()
        >>> fused_linear_divergence(one, student, one, teacher, token_weights=torch.ones(1), beta=0.0).loss
        tensor(0.1308)
    """
    return fused_divergence(
        student_hidden,
        LMHead(student_weight, student_bias),
        DenseSignal(teacher_hidden, LMHead(teacher_weight, teacher_bias)),
        token_weights=token_weights,
        knobs={"beta": float(beta.detach() if isinstance(beta, Tensor) else beta)},
        temperature=temperature,
        chunk_size=chunk_size,
    )


@dataclass(frozen=True)
class FusedCrossEntropy:
    """Result of [`fused_linear_cross_entropy`]. All but `loss` is detached, and 0 for a token of weight 0.

    Attributes:
        loss (`Tensor`): shape `[]`, the weighted sum, differentiable.
        nll (`Tensor`): shape `[...]`, -log q(label) in nats.
        entropy (`Tensor`): shape `[...]`, in nats.
    """

    loss: Tensor
    nll: Tensor
    entropy: Tensor


def fused_linear_cross_entropy(
    hidden: Tensor,
    head: LMHead,
    *,
    token_weights: Tensor,
    labels: Tensor,
    chunk_size: int | None = None,
    vocab_size: int | None = None,
    half_logits: bool = False,
) -> FusedCrossEntropy:
    """Compute the weighted cross-entropy of the labels without storing the full logits, and without a teacher.

    `sum_n token_weights[n] * NLL_n`; otherwise as [`fused_divergence`].

    Args:
        hidden (`Tensor`): shape `[..., H]`, final hidden states.
        head (`LMHead`): LM head of the model. Under DeepSpeed ZeRO-3 the caller gathers it.
        token_weights (`Tensor`): shape `[...]`, see [`token_weights`] and [`scale`] in `reduction.py`.
        labels (`Tensor`): shape `[...]`, int64, -100 for none.
        chunk_size (`int`, *optional*): tokens projected at a time.
        vocab_size (`int`, *optional*): number of leading rows of the head to use, by default all.
        half_logits (`bool`, *optional*, defaults to `False`): as in [`fused_divergence`].

    Returns:
        [`FusedCrossEntropy`].

    Raises:
        ValueError: an argument is out of its range, or the shapes of two tensors do not match.
        RuntimeError: on a second backward pass through the same loss.

    Example:
        >>> one, head = torch.ones(1, 1), LMHead(torch.tensor([[3.0], [1.0]]).log())
        >>> fused_linear_cross_entropy(one, head, token_weights=torch.ones(1), labels=torch.tensor([0])).loss
        tensor(0.2877)
    """
    _check_tokens(hidden, token_weights, labels, chunk_size)
    _check_head("", hidden, head)
    vocab_size = _shared_size(len(head.weight), vocab_size)
    loss, statistics = _weighted_sum(hidden, head, token_weights, labels, chunk_size, vocab_size, half_logits)
    token = LabelStatistics(*statistics)
    return FusedCrossEntropy(loss, token.student_nll, token.student_entropy)


class _Tokens(NamedTuple):
    """Hidden states [N, H] of the student, and rows, weights and labels [M] of the tokens with a weight."""

    hidden: Tensor
    rows: Tensor
    weights: Tensor
    labels: Tensor


class _Gradients(NamedTuple):
    """Sums of the gradients of the student's tensors; None for a tensor that requires none."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    @classmethod
    def zeros(cls, *tensors: Tensor | None, dtype: torch.dtype) -> Self:
        """Return zeros for each tensor that requires a gradient, if gradients are enabled."""

        def start(tensor: Tensor | None) -> Tensor | None:
            if tensor is None or not (tensor.requires_grad and torch.is_grad_enabled()):
                return None
            return torch.zeros_like(tensor, dtype=dtype, requires_grad=False)

        return cls(*map(start, tensors))

    def __bool__(self) -> bool:
        """Return whether any tensor requires a gradient."""
        return any(buffer is not None for buffer in self)

    def add_(self, logit_gradient: Tensor, hidden: Tensor, rows: Tensor, weights: Tensor, head: LMHead) -> None:
        """Propagate a chunk's gradient [n, V] through the LM head, and apply the token weights."""
        vocab_size = len(head.weight)
        operand = logit_gradient.to(head.weight.dtype)
        if self.hidden is not None:
            chunk = matmul(operand, head.weight, out=self.hidden.new_empty(hidden.shape))
            self.hidden[rows] = chunk.mul_(weights.unsqueeze(1))
        if self.weight is not None:
            weighted = (hidden * weights.unsqueeze(1)).to(operand.dtype)
            add_matmul_(self.weight[:vocab_size], operand.t(), weighted)
        if self.bias is not None:
            for part in _slices(len(weights), _BIAS_ROWS):
                self.bias[:vocab_size].addmv_(logit_gradient[part].to(self.bias.dtype).t(), weights[part])


def _weighted_sum(
    hidden: Tensor,
    head: LMHead,
    token_weights: Tensor,
    labels: Tensor | None,
    chunk_size: int | None,
    vocab_size: int,
    half_logits: bool,
    teacher: TeacherSignal | None = None,
    objective: Objective | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the loss with its gradients attached, and the tokens' statistics [fields, ...].

    With a teacher, these are the fields of [`TokenStatistics`]; without, those of [`LabelStatistics`], and the loss is
    the labels' NLL.
    """
    shape, hidden, token_weights = token_weights.shape, hidden.flatten(0, -2), token_weights.flatten()
    labels = None if labels is None else labels.flatten()
    dtype = _result_dtype(hidden, head, teacher)
    student_tensors = (hidden, head.weight, head.bias)
    gradients = _Gradients.zeros(*student_tensors, dtype=dtype)
    with torch.no_grad():
        head = head.cut(vocab_size, dtype)
        if isinstance(teacher, DenseSignal):
            teacher = DenseSignal(teacher.hidden, teacher.head.cut(vocab_size, dtype))
        rows = _weighted_rows(token_weights, labels, teacher, vocab_size)
        weights = token_weights[rows].to(dtype)
        if objective is not None and isinstance(objective.ce_weight, Tensor):
            objective = objective._replace(ce_weight=objective.ce_weight.flatten()[rows].to(dtype))
        # Half precision cannot represent a weight of 1e-6, so the weights are scaled to a maximum of 1 until the
        # gradients are in float32.
        unit = weights.abs().amax() if len(weights) else weights.new_ones(())
        targets = torch.full_like(rows, IGNORE_INDEX) if labels is None else labels[rows]
        tokens = _Tokens(hidden, rows, weights / unit, targets)
        statistics = _chunked_forward(head, tokens, teacher, objective, gradients, chunk_size, half_logits)
        if objective is None:
            per_token = LabelStatistics(*statistics).student_nll
        else:
            per_token = objective(TokenStatistics(*statistics))
        loss = (weights * per_token).sum()
    if gradients:
        loss = _AttachGradients.apply(loss, gradients, unit, *student_tensors)  # type: ignore[no-untyped-call]
    everywhere = statistics.new_zeros(len(statistics), len(token_weights)).index_copy_(1, rows, statistics)
    return loss, everywhere.view(len(statistics), *shape)


def _chunked_forward(
    head: LMHead,
    tokens: _Tokens,
    teacher: TeacherSignal | None,
    objective: Objective | None,
    gradients: _Gradients,
    chunk_size: int | None,
    half_logits: bool,
) -> Tensor:
    """Accumulate the gradients a chunk of tokens at a time, and return the statistics of each token [fields, M].

    Matrix products are efficient for many tokens at once, and element-wise operations on a CPU for few: the former
    work on chunks, the latter on blocks of a chunk.
    """
    fields = LabelStatistics._fields if teacher is None else TokenStatistics._fields
    statistics = tokens.weights.new_empty(len(fields), len(tokens.rows))
    sizes = buffer_shapes(
        len(tokens.rows),
        len(head.weight),
        statistics,
        signal=type(teacher),
        rule=None if objective is None else objective.rule,
        chunk_size=chunk_size,
        half_logits=half_logits,
    )
    logits_dtype = _half_dtype(head, teacher, sizes.on_kernels) if half_logits else statistics.dtype
    tiles = statistics.new_empty(sizes.tiles, dtype=logits_dtype)
    compute = _by_kernels if sizes.on_kernels else partial(_by_blocks, scratch=statistics.new_empty(sizes.scratch))
    for chunk in _slices(len(tokens.rows), sizes.tiles[1]):
        rows = tokens.rows[chunk]
        hidden, products = tokens.hidden[rows], tiles[:, : len(rows)]
        head.project(hidden, out=products[0])
        signal = None if teacher is None else teacher[rows]
        if isinstance(signal, DenseSignal):
            signal.head.project(signal.hidden, out=products[1])
        gradient = compute(
            head,
            products,
            signal,
            tokens.labels[chunk],
            None if objective is None else objective.of(chunk),
            statistics[:, chunk],
            bool(gradients),
        )
        gradients.add_(gradient, hidden, rows, tokens.weights[chunk], head)
    return statistics


def _by_kernels(
    head: LMHead,
    products: Tensor,
    signal: TeacherSignal | None,
    labels: Tensor,
    objective: Objective | None,
    statistics: Tensor,
    with_gradient: bool,
) -> Tensor:
    """Compute a chunk on Triton kernels, and return the gradient, which overwrites the student's products."""
    if isinstance(signal, DenseSignal) and objective is not None:
        numbers: LabelStatistics | TokenStatistics = kernels.divergence_and_gradient_(
            head, products[0], signal.head, products[1], labels, objective, statistics.dtype, with_gradient
        )
    else:
        numbers = kernels.likelihood_and_gradient_(head, products[0], labels, statistics.dtype, with_gradient)
    statistics.copy_(torch.stack(numbers))
    return kernels.gradient_of(head, products[0])


def _by_blocks(
    head: LMHead,
    products: Tensor,
    signal: TeacherSignal | None,
    labels: Tensor,
    objective: Objective | None,
    statistics: Tensor,
    with_gradient: bool,
    *,
    scratch: Tensor,
) -> Tensor:
    """Compute a chunk in blocks of tokens, and return the gradient, which overwrites the student's products."""
    gradient = products[0]
    for block in _slices(len(labels), scratch.shape[1]):
        logits = head.finish_(gradient[block])
        slope = head.slope(logits) if with_gradient else None
        spare = scratch[:, : len(logits)]
        numbers: LabelStatistics | TokenStatistics
        if signal is None or objective is None:
            numbers = likelihood_and_gradient_(logits, labels[block], spare[0], with_gradient)
        elif isinstance(signal, DenseSignal):
            teacher_logits = signal.head.finish_(products[1, block])
            numbers = divergence_and_gradient_(
                logits, teacher_logits, labels[block], objective.of(block), spare, with_gradient
            )
        else:
            numbers = sparse_divergence_and_gradient_(
                logits, signal[block], labels[block], objective.of(block), spare, with_gradient
            )
        if slope is not None:
            gradient[block].mul_(slope)
        statistics[:, block] = torch.stack(numbers)
    return gradient


class _AttachGradients(torch.autograd.Function):
    """Attach known gradients to a loss. The backward pass only multiplies them by the gradient of the loss."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: _Gradients, unit: Tensor, *tensors: Tensor | None) -> Tensor:
        ctx.gradients, ctx.unit = gradients, unit
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in tensors]
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "The gradients of this fused loss were released by its first backward pass; compute the loss again "
                "for another."
            )
        # No reference is kept, so that .grad can be the buffer itself instead of a copy.
        gradients, ctx.gradients = ctx.gradients, None
        factor = grad_loss * ctx.unit
        scaled = (
            None if buffer is None else buffer.mul_(factor).to(dtype)
            for buffer, dtype in zip(gradients, ctx.dtypes, strict=True)
        )
        return None, None, None, *scaled


class BufferShapes(NamedTuple):
    """Shapes of the two largest buffers of a fused loss: `[models, chunk, V]` logits, and `[2, 1 or 0, block, V]`."""

    tiles: tuple[int, int, int]
    scratch: tuple[int, int, int]
    on_kernels: bool
    """Whether Triton kernels write the gradient over the logits, in the dtype of the matrix products."""


def buffer_shapes(
    tokens: int,
    vocab_size: int,
    like: Tensor,
    *,
    signal: type[TeacherSignal | None],
    rule: divergences.Rule | None = None,
    chunk_size: int | None = None,
    half_logits: bool = False,
) -> BufferShapes:
    """Return the shapes of the buffers of a fused loss, which has no others of the size of a chunk of logits.

    Without kernels, logits are copied for matrix products in half precision, and rules without a hand-written gradient
    keep 20 to 50 tensors of the size of a block for autograd.

    Args:
        tokens (`int`): number of tokens with a weight.
        vocab_size (`int`): number of rows of the heads.
        like (`Tensor`): a tensor with the device and the dtype of the statistics; `meta` stands for a GPU with enough
            free memory.
        signal (`type`): [`DenseSignal`], [`SparseSignal`], [`SampledSignal`], or `type(None)` for cross-entropy.
        rule (`Rule`, *optional*): rule of the divergence.
        chunk_size (`int`, *optional*): tokens projected at a time, as in [`fused_divergence`].
        half_logits (`bool`, *optional*, defaults to `False`): whether logits are stored in half precision.

    Example:
        >>> like, rule = torch.empty(0, device="meta"), divergences.get("akd")
        >>> buffer_shapes(4096, 151_936, like, signal=DenseSignal, rule=rule).tiles
        (2, 683, 151936)
    """
    is_dense, on_kernels = issubclass(signal, DenseSignal), _on_kernels(like, signal, rule)
    models, by_autograd = (2 if is_dense else 1), is_dense and rule is not None and rule.fused is None
    scratch = 0 if on_kernels else 1 if issubclass(signal, type(None)) else 2
    bytes_per_token = vocab_size * (2 if half_logits else like.itemsize)
    if chunk_size is None:
        chunk_size = _chunk_size(tokens, bytes_per_token, like.device, models + scratch)
    chunk_size = max(1, min(chunk_size, tokens))
    block_size = 1 if on_kernels else _block_size(chunk_size, bytes_per_token, like.device, by_autograd)
    return BufferShapes((models, chunk_size, vocab_size), (scratch, block_size, vocab_size), on_kernels)


def _on_kernels(like: Tensor, signal: type[TeacherSignal | None], rule: divergences.Rule | None) -> bool:
    """Choose between both implementations of the element-wise part."""
    if issubclass(signal, DenseSignal):
        return rule is not None and rule.on_kernels and kernels.available(like.device)
    return issubclass(signal, type(None)) and kernels.available(like.device)


def _half_dtype(head: LMHead, teacher: TeacherSignal | None, on_kernels: bool) -> torch.dtype:
    heads = [head, teacher.head] if isinstance(teacher, DenseSignal) else [head]
    dtype, *others = {each.weight.dtype for each in heads}
    if others or dtype.itemsize != 2 or not on_kernels:
        raise ValueError(
            "half_logits needs matrix products of both models in the same half precision and a loss that runs on the "
            "Triton kernels (a GPU, a dense signal or none, a rule with kernels); leave it out."
        )
    return dtype


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _chunk_size(tokens: int, bytes_per_token: int, device: torch.device, buffers: int) -> int:
    """Bound the bytes of the buffers, but keep enough tokens for an efficient matrix product."""
    if device.type == "cpu":
        return _even(tokens, max(192, 16 * _MIB // bytes_per_token))
    return _even(tokens, max(128, _gpu_bytes(device) // (buffers * bytes_per_token)))


def _gpu_bytes(device: torch.device) -> int:
    """Return the bytes for all buffers: at most half of the free memory, in powers of two so that they rarely vary."""
    budget = _GPU_BYTES
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + cached
        while 2 * budget > free and budget > _GPU_BYTES // 16:
            budget //= 2
    return budget


def _block_size(chunk_size: int, bytes_per_token: int, device: torch.device, by_autograd: bool) -> int:
    """Bound the bytes of a tensor in element-wise operations.

    On a CPU, four tensors of 2 MiB per thread fit the cache. On other devices, few launches are faster. Autograd keeps
    20 to 50 such tensors.
    """
    on_cpu = device.type == "cpu"
    if not (on_cpu or by_autograd):
        return chunk_size
    budget = (2 if on_cpu else 8) if by_autograd else 2 * torch.get_num_threads()
    return _even(chunk_size, max(1, budget * _MIB // bytes_per_token))


def _even(length: int, limit: int) -> int:
    """Return the size of nearly equal slices, as few as the limit allows."""
    return math.ceil(length / max(1, math.ceil(length / limit)))


def _result_dtype(hidden: Tensor, head: LMHead, teacher: TeacherSignal | None) -> torch.dtype:
    tensors = [hidden, head.weight]
    if isinstance(teacher, DenseSignal | SampledSignal):
        tensors += [teacher.hidden, teacher.head.weight]
    elif isinstance(teacher, SparseSignal):
        tensors.append(teacher.log_probs)
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _weighted_rows(
    token_weights: Tensor, labels: Tensor | None, teacher: TeacherSignal | None, vocab_size: int
) -> Tensor:
    """Return the indices of the tokens with a weight, after checking their labels and the teacher's token ids.

    The host reads one small tensor, which is the only synchronization with the device in a fused loss.

    Raises:
        ValueError: a label or a token id is not in the vocabulary, or a token id is repeated.
    """
    has_weight, top = token_weights != 0, teacher.top if isinstance(teacher, SampledSignal) else teacher
    faults = [] if labels is None else [_unknown(labels, IGNORE_INDEX, vocab_size)]
    if isinstance(top, SparseSignal):
        faults += [fault.any(dim=-1) for fault in _faulty_ids(top, vocab_size)]
    count, *numbers_of_faults = torch.stack(
        [has_weight.sum(), *((has_weight & each).sum() for each in faults)]
    ).tolist()
    rows = (~has_weight).to(torch.uint8).argsort(stable=True)[:count]
    if any(numbers_of_faults):
        if labels is not None:
            _check_labels(labels[rows], vocab_size)
        if isinstance(top, SparseSignal):
            _check_ids(top[rows], vocab_size)
    return rows


def _unknown(ids: Tensor, nothing: int, vocab_size: int) -> Tensor:
    """Return which ids are neither in the vocabulary nor `nothing`."""
    return ((ids < 0) | (ids >= vocab_size)) & (ids != nothing)


def _check_labels(labels: Tensor, vocab_size: int) -> None:
    unknown = labels[_unknown(labels, IGNORE_INDEX, vocab_size)]
    if len(unknown):
        raise ValueError(
            f"labels holds {unknown[0].item()}; a label is -100 or one of the {vocab_size} shared tokens."
        )


def _shared_size(shared: int, vocab_size: int | None) -> int:
    if vocab_size is None:
        return shared
    if not 1 <= vocab_size <= shared:
        raise ValueError(f"vocab_size is {vocab_size}; the LM heads have rows for 1 to {shared}.")
    return vocab_size


def _check_objective(objective: Objective, labels: Tensor | None) -> None:
    objective.rule.check(objective.knobs)
    if not objective.temperature > 0.0:
        raise ValueError(f"temperature is {objective.temperature}; it divides the logits and must be positive.")
    if objective.has_ce and labels is None:
        given = "a tensor" if isinstance(objective.ce_weight, Tensor) else objective.ce_weight
        raise ValueError(f"ce_weight is {given} without labels; pass the labels or leave it at 0.")


def _check_tokens(
    hidden: Tensor,
    token_weights: Tensor,
    labels: Tensor | None,
    chunk_size: int | None,
    ce_weight: float | Tensor = 0.0,
) -> None:
    for name, tensor in (("token_weights", token_weights), ("labels", labels), ("ce_weight", ce_weight)):
        if isinstance(tensor, Tensor) and tensor.shape != hidden.shape[:-1]:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}; the hidden states need {list(hidden.shape[:-1])}."
            )
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; project at least 1 token at a time, or leave it None.")


def _check_head(prefix: str, hidden: Tensor, head: LMHead) -> None:
    weight, bias, softcap = head.weight, head.bias, head.softcap
    if hidden.ndim < 2 or weight.ndim != 2 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"{prefix}hidden has shape {list(hidden.shape)} and {prefix}weight {list(weight.shape)}; pass [..., H] and"
            " [V, H] with one H (under DeepSpeed ZeRO-3, gather the weight first)."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{prefix}bias has shape {list(bias.shape)}; {prefix}weight needs [{len(weight)}].")
    if softcap is not None and not softcap > 0.0:
        raise ValueError(f"{prefix}softcap is {softcap}; make it positive, or None for no cap.")


def _check_signal(teacher: TeacherSignal, tokens: torch.Size, temperature: float, rule: divergences.Rule) -> None:
    if isinstance(teacher, DenseSignal | SampledSignal):
        if teacher.hidden.shape[:-1] != tokens:
            raise ValueError(
                f"teacher_hidden has {list(teacher.hidden.shape[:-1])} tokens; student_hidden has {list(tokens)}."
            )
    if isinstance(teacher, DenseSignal):
        return
    if isinstance(teacher, SampledSignal):
        if rule.reverse_share is None:
            raise ValueError(
                f"the divergence {rule.name!r} is not estimated from sampled tokens, as it is no mix of forward and "
                f"reverse KL; choose {', '.join(map(repr, divergences.sampled_names()))}, or pass a dense signal."
            )
        for name, tensor in (("log_normalizer", teacher.log_normalizer), ("offsets", teacher.offsets)):
            if tensor.shape != tokens:
                raise ValueError(
                    f"the teacher's signal has {name} {list(tensor.shape)}; for {list(tokens)} tokens pass [...]."
                )
        if teacher.samples < 1:
            raise ValueError(f"the teacher's signal has samples={teacher.samples}; give at least 1.")
        teacher = teacher.top
    ids, log_probs, tail = teacher.ids.shape, teacher.log_probs.shape, teacher.tail_log_prob.shape
    if ids[:-1] != tokens or log_probs != ids or tail != tokens:
        raise ValueError(
            f"the teacher's signal has ids {list(ids)}, log_probs {list(log_probs)} and tail_log_prob {list(tail)}; "
            f"for {list(tokens)} tokens pass [..., K], [..., K] and [...]."
        )
    if teacher.ids.dtype != torch.int64:
        raise ValueError(f"the ids of the teacher's signal are {teacher.ids.dtype}; convert them to int64.")
    if teacher.temperature != temperature:
        raise ValueError(
            f"temperature is {temperature}, but the teacher's log-probabilities are at temperature "
            f"{teacher.temperature}; make both the same."
        )


def _faulty_ids(teacher: SparseSignal, vocab_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return which ids are misplaced, not in the vocabulary, and repeated, the latter in ascending order."""
    missing, ordered = teacher.ids == NO_TOKEN, teacher.ids.sort(dim=-1).values
    misplaced = missing & (teacher.log_probs != -torch.inf)
    misplaced[..., :1] |= missing[..., :1]
    repeated = torch.nn.functional.pad((ordered.diff(dim=-1) == 0) & (ordered[..., 1:] != NO_TOKEN), (1, 0))
    return misplaced, _unknown(teacher.ids, NO_TOKEN, vocab_size), repeated


def _check_ids(teacher: SparseSignal, vocab_size: int) -> None:
    misplaced, unknown, repeated = _faulty_ids(teacher, vocab_size)
    if misplaced.any():
        raise ValueError(
            f"the teacher's signal has the token id {NO_TOKEN} first, or with a log-probability; it stands for no "
            "token, so put it last, with -inf."
        )
    if unknown.any():
        raise ValueError(
            f"the teacher's signal has the token id {teacher.ids[unknown][0].item()}; keep ids of the {vocab_size} "
            "shared tokens, and count all others in the tail."
        )
    if repeated.any():
        first = teacher.ids.sort(dim=-1).values[repeated][0].item()
        raise ValueError(f"the teacher's signal has the token id {first} twice; make the ids distinct.")
