"""Trace a training step of a model without memory or arithmetic: live bytes and floating-point operations.

The model is built from its configuration with torch's fake tensors, which have shapes but no values, and runs as in
training. Every operation of the forward and the backward pass, with gradient checkpointing and mixed precision, is
counted as it would be executed; the number of its floating-point operations is that of torch's FLOP counter.
"""

import math
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.initialization import no_init_weights

from ..codeplan.plan_head import add_plan_head, plan_head_of
from ..heads import final_hidden_states, lm_head
from ..losses import divergences
from ..losses.fused_linear import buffer_shapes
from ..losses.pointwise import Objective, divergence_and_gradient_
from ..losses.signals import DenseSignal, SparseSignal
from .settings import ModelSettings, RunSettings

__all__ = ["Meter", "ModelTrace", "Peak", "StudentTrace", "trace_student", "trace_teacher"]

SIGNALS: dict[str | None, type] = {"dense": DenseSignal, "sparse": SparseSignal, None: type(None)}
_KERNELS_ON_REQUEST = ("flash_attention", "kernels-community")


def _cpu_attention_flops(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))  # type: ignore[no-untyped-call]


def _cpu_attention_backward_flops(grad: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    shapes = (grad.shape, query.shape, key.shape, value.shape)
    return int(sdpa_backward_flop_count(*shapes))  # type: ignore[no-untyped-call]


_FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten.addmm_: flop_registry[torch.ops.aten.addmm],
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_attention_backward_flops,
}


@dataclass(frozen=True)
class Peak:
    """Live bytes when their sum is largest.

    Args:
        activations (`int`):
            Bytes of all tensors but gradients of parameters.
        gradients (`int`):
            Bytes of gradients of parameters.
    """

    activations: int
    gradients: int

    @property
    def total(self) -> int:
        """Sum of both."""
        return self.activations + self.gradients


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the bytes of live tensors and the floating-point operations of the code in its context, by phase.

    Args:
        known (`Iterable[Tensor]`):
            Tensors that exist already and do not count, such as parameters.

    Example:

    ```python
    >>> with Meter([]) as meter:
    ...     meter.phase = "product"
    ...     product = torch.ones(4, 8) @ torch.ones(8, 2)
    >>> meter.peak("product").total, meter.flops["product"]
    (224, 128)

    ```
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phase = ""
        self.flops: Counter[str] = Counter()
        self._numbers: dict[int, int] = {tensor.untyped_storage()._cdata: -1 for tensor in known}
        self._sizes: list[int] = []
        self._events: list[tuple[str, int, bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        count = _FLOPS.get(func._overloadpacket)
        if count is not None:
            self.flops[self.phase] += count(*args, **kwargs, out_val=result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor)
        return result

    def number(self, tensor: Tensor) -> int | None:
        """Return the number of the live storage of a tensor, or `None` if it is not counted."""
        return self._numbers.get(tensor.untyped_storage()._cdata)

    def peak(self, phase: str, gradients: Iterable[int | None] = (), *, separately: bool = False) -> Peak:
        """Return the live bytes at the peak of a phase.

        Args:
            phase (`str`):
                Name of the phase.
            gradients (`Iterable[int]`, *optional*):
                Numbers of the storages that are gradients of parameters.
            separately (`bool`, *optional*, defaults to `False`):
                Whether to return the peaks of both parts, rather than both at the peak of their sum.
        """
        chosen, live = set(gradients), [0, 0]
        peak = Peak(0, 0)
        for name, number, is_new in self._events:
            live[number in chosen] += self._sizes[number] if is_new else -self._sizes[number]
            if name == phase:
                if separately:
                    peak = Peak(max(peak.activations, live[0]), max(peak.gradients, live[1]))
                elif sum(live) > peak.total:
                    peak = Peak(*live)
        return peak

    def start(self, phase: str) -> None:
        """Begin a phase, whose peak includes everything that is live at its beginning."""
        self.phase = phase
        self._sizes.append(0)
        self._events.append((phase, len(self._sizes) - 1, True))

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._numbers:
            return
        number = self._numbers[key] = len(self._sizes)
        self._sizes.append(storage.nbytes())
        self._events.append((self.phase, number, True))
        weakref.finalize(storage, self._remove, key, number)

    def _remove(self, key: int, number: int) -> None:
        if self._numbers.get(key) == number:
            del self._numbers[key]
        self._events.append((self.phase, number, False))


@dataclass(frozen=True)
class ModelTrace:
    """Size of a model and its forward pass without gradients.

    Args:
        parameters (`int`):
            Number of parameters.
        trainable (`int`):
            Number of parameters that are trained.
        weights (`int`):
            Bytes of the parameters and buffers, quantized if the model is.
        trainable_shapes (`tuple`):
            Shape and dtype of each parameter that is trained.
        largest_layer (`int`):
            Number of parameters of the largest layer or embedding.
        head (`tuple[int, int]`):
            Shape of the LM head.
        head_dtype (`torch.dtype`):
            Its dtype.
        hidden (`int`):
            Bytes of the final hidden states.
        forward (`int`):
            Peak of the live bytes, with the final hidden states.
        forward_flops (`int`):
            Floating-point operations without the LM head.
    """

    parameters: int
    trainable: int
    weights: int
    trainable_shapes: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    largest_layer: int
    head: tuple[int, int]
    head_dtype: torch.dtype
    hidden: int
    forward: int
    forward_flops: int


@dataclass(frozen=True)
class StudentTrace:
    """Micro-batch of the student: live bytes and floating-point operations.

    Args:
        model (`ModelTrace`):
            The student without gradients.
        forward (`int`):
            Peak of the activations in the forward pass.
        saved (`int`):
            Activations that are live after it.
        loss (`int`):
            Peak in the loss, without `saved`: logits of a chunk, gradients of hidden states and output layers.
        backward (`Peak`):
            Peak in the backward pass.
        backward_alone (`int`):
            Peak of the activations in the backward pass, without gradients of parameters.
        forward_flops (`int`):
            Floating-point operations of the forward pass, without output layers.
        backward_flops (`int`):
            Those of the backward pass, with recomputation.
    """

    model: ModelTrace
    forward: int
    saved: int
    loss: int
    backward: Peak
    backward_alone: int
    forward_flops: int
    backward_flops: int


def trace_student(settings: RunSettings) -> StudentTrace:
    """Trace forward pass, loss and backward pass of a micro-batch.

    Raises:
        ValueError: If the model cannot be traced, for example since its operations depend on values.
    """
    student = settings.student
    with _tracing(student):
        model = _build(student, plan_head=any(output.plan_head for output in settings.outputs))
        facts = _measure(model, student)
        if settings.has_float32_masters:
            model.to(settings.autocast)
    with _tracing(student), FakeTensorMode(allow_non_fake_inputs=True):
        model = _as_fake(model)
        if settings.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if settings.accumulation > 1:
            for parameter in parameters:
                parameter.grad = torch.empty_like(parameter)
        meter = Meter([*_tensors(model), *(p.grad for p in parameters if p.grad is not None)])
        with meter:
            with _autocast(settings):
                meter.start("forward")
                hidden = final_hidden_states(model, _inputs(model, settings))
                meter.start("loss")
                saved = meter.peak("loss").total
                loss = torch.stack([_loss(model, hidden, settings, index) for index in range(len(settings.outputs))])
            meter.start("backward")
            loss.sum().backward()  # type: ignore[no-untyped-call]
            del hidden, loss
        gradients = {meter.number(p.grad) for p in parameters if p.grad is not None}
    return StudentTrace(
        facts,
        meter.peak("forward").total,
        saved,
        meter.peak("loss").total - saved,
        meter.peak("backward", gradients),
        meter.peak("backward", gradients, separately=True).activations,
        meter.flops["forward"],
        meter.flops["backward"],
    )


def trace_teacher(teacher: ModelSettings, settings: RunSettings) -> ModelTrace:
    """Trace a forward pass of a micro-batch without gradients.

    Raises:
        ValueError: If the model cannot be traced.
    """
    with _tracing(teacher):
        model = _build(teacher).eval()
        facts = _measure(model, teacher)
    with _tracing(teacher), FakeTensorMode(allow_non_fake_inputs=True):
        model = _as_fake(model)
        meter = Meter(_tensors(model))
        with meter, torch.no_grad(), _autocast(settings):
            meter.start("forward")
            hidden = final_hidden_states(model, _inputs(model, settings))
    return ModelTrace(
        **{
            **vars(facts),
            "hidden": hidden.untyped_storage().nbytes(),
            "forward": meter.peak("forward").total,
            "forward_flops": meter.flops["forward"],
        }
    )


@contextmanager
def _tracing(model: ModelSettings) -> Iterator[None]:
    """Turn errors of tensors without values into a ValueError about the model."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (RuntimeError, NotImplementedError, TypeError, AttributeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"the step of {model.name} ({model.config.model_type}) cannot be traced without weights ({reason}); "
            "measure it with two real steps, `--max_steps 2`."
        ) from error


def _build(settings: ModelSettings, *, plan_head: bool = False) -> Any:
    """Return the model on the device `meta`."""
    family = AutoModelForSeq2SeqLM if settings.config.is_encoder_decoder else AutoModelForCausalLM
    attention = settings.attention
    if attention is not None and attention.startswith(_KERNELS_ON_REQUEST):
        attention = None  # which needs as little memory
    with torch.device("meta"), no_init_weights():
        model = family.from_config(settings.config, dtype=settings.dtype, attn_implementation=attention)
        model.tie_weights()  # which skipping the initialization skips
        if settings.adapter is not None:
            model = get_peft_model(model, settings.adapter)
        if plan_head:
            add_plan_head(model)
    return model


def _as_fake(model: Any) -> Any:
    """Replace the tensors of a model on the device `meta` by fake tensors on the CPU."""
    replaced: dict[int, Any] = {}
    for module in model.modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None:
                continue
            if id(tensor) not in replaced:
                fake = torch.empty_like(tensor, device="cpu")
                is_parameter = isinstance(tensor, nn.Parameter)
                replaced[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
            (module._parameters if name in module._parameters else module._buffers)[name] = replaced[id(tensor)]
    return model


def _measure(model: Any, settings: ModelSettings) -> ModelTrace:
    """Return the sizes of a model, without those of its forward pass."""
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    weights = sum(tensor.untyped_storage().nbytes() for tensor in _tensors(model))
    if settings.quantization is not None:
        quantized = _quantized(model)
        weights -= sum(weight.untyped_storage().nbytes() for weight in quantized)
        weights += settings.quantization.bytes_of(sum(weight.numel() for weight in quantized))
    head = lm_head(model).weight
    blocks = [sum(p.numel() for p in block.parameters()) for block in _blocks(model)]
    return ModelTrace(
        sum(parameter.numel() for parameter in parameters),
        sum(parameter.numel() for parameter in trained),
        weights,
        tuple((tuple(parameter.shape), parameter.dtype) for parameter in trained),
        max(*blocks, head.numel()),
        (head.shape[0], head.shape[1]),
        head.dtype,
        hidden=0,
        forward=0,
        forward_flops=0,
    )


def _quantized(model: Any) -> list[Tensor]:
    """Return the weights of the linear layers, without LM head and adapters."""
    head = model.get_output_embeddings()
    return [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and "lora_" not in name
    ]


def _blocks(model: Any) -> list[nn.Module]:
    return [block for module in model.modules() if isinstance(module, nn.ModuleList) for block in module]


def _tensors(model: Any) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _autocast(settings: RunSettings) -> AbstractContextManager[Any]:
    if settings.autocast is None or settings.has_float32_masters:
        return nullcontext()
    return torch.autocast("cpu", dtype=settings.autocast)


def _inputs(model: Any, settings: RunSettings) -> dict[str, Tensor]:
    def tokens(length: int) -> Tensor:
        return torch.zeros(settings.rows, length, dtype=torch.int64)

    inputs = {"input_ids": tokens(settings.length)}
    if settings.padded:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens(settings.target_length)
    return inputs


def _loss(model: Any, hidden: Tensor, settings: RunSettings, index: int) -> Tensor:
    """Return a loss with the buffers of a fused one."""
    output = settings.outputs[index]
    plan_head = plan_head_of(model) if output.plan_head else None
    weight = lm_head(model).weight if plan_head is None else plan_head.weight
    loss: Tensor = _Buffers.apply(hidden, weight, settings, output.signal)  # type: ignore[no-untyped-call]
    return loss


class _Buffers(torch.autograd.Function):
    """Allocate the buffers of a fused loss, whose values decide how many tokens it projects."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, settings: RunSettings, signal: str | None) -> Tensor:
        rule = divergences.get(settings.divergence)
        operand = torch.float32 if settings.on_cpu else (settings.autocast or weight.dtype)
        dtypes = [tensor.dtype for tensor in (hidden, weight)]
        gradients = [
            torch.empty_like(tensor, dtype=torch.float32) if needed else None
            for tensor, needed in zip((hidden, weight), ctx.needs_input_grad, strict=False)
        ]
        heads = [weight.to(operand)]
        if signal == "dense" and settings.teacher is not None and settings.teacher.dtype != operand:
            text = settings.teacher.text_config
            heads.append(weight.new_empty(len(weight), _hidden_size(text), dtype=operand))
        device = "cpu" if settings.on_cpu else "meta"
        shapes = buffer_shapes(
            settings.tokens,
            len(weight),
            torch.empty(0, device=device),
            signal=SIGNALS[signal],
            rule=rule,
            chunk_size=settings.chunk_size,
        )
        tiles, scratch = (weight.new_empty(shape, dtype=torch.float32) for shape in shapes[:2])
        chunk = [weight.new_empty(shapes.tiles[1], weight.shape[1], dtype=torch.float32) for _ in range(2)]
        if signal == "dense" and rule.fused is None:
            blocks = math.ceil(_autograd_blocks(settings.divergence, settings.knobs))
            autograd = weight.new_empty(blocks, *shapes.scratch[1:], dtype=torch.float32)
            del autograd
        product = tiles[0] if shapes.on_kernels else tiles[0].to(operand)
        del heads, tiles, scratch, chunk, product
        ctx.gradients, ctx.dtypes = gradients, dtypes
        return weight.new_zeros((), dtype=torch.float32)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        scaled = (
            None if gradient is None else gradient.mul_(grad).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        )
        return *scaled, None, None


@cache
def _autograd_blocks(divergence: str, knobs: tuple[tuple[str, Any], ...]) -> float:
    """Return how many tensors of the size of a block of logits the autograd of a rule keeps at its peak."""
    rows, words = 4, 512
    with unset_fake_temporarily():
        student, teacher = torch.randn(2, rows, words, generator=torch.Generator().manual_seed(0))
        labels, scratch = torch.zeros(rows, dtype=torch.int64), torch.empty(2, rows, words)
        objective = Objective(divergences.get(divergence), dict(knobs), 1.0, 0.0)
        with Meter([student, teacher, labels, scratch]) as meter:
            meter.start("autograd")
            divergence_and_gradient_(student, teacher, labels, objective, scratch)
    return float(meter.peak("autograd").total / (rows * words * 4))


def _hidden_size(text_config: Any) -> int:
    return int(text_config.hidden_size)
