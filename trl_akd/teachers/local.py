"""Teachers that run in this process: another model, or the student without its adapter."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator

from ..distributed import gathered, prepare_frozen, through_forward
from ..generation.loading import load_model, source_arguments, without_source_arguments
from ..heads import compiler, evaluating, final_hidden_states, lm_head, verify_head, verify_packing
from ..losses.lm_head import LMHead
from ..losses.signals import DenseSignal


class LocalTeacher:
    """A frozen language model, run once per batch without gradients.

    Args:
        model (`PreTrainedModel`):
            The teacher.
        accelerator (`Accelerator`):
            Accelerator of the trainer, which places the model; under ZeRO-3 a second engine shards it.
        device (`str`, *optional*):
            Device of the model, such as `"cpu"`. By default the accelerator chooses it.
        compilation (`Mapping`, *optional*):
            Arguments of [`torch.compile`]; the model is compiled if they are given.
    """

    def __init__(
        self,
        model: Any,
        accelerator: Accelerator,
        device: str | None = None,
        compilation: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.engine = prepare_frozen(model, accelerator, device)
        self._accelerator = accelerator
        self._compiled = compiler(compilation)
        self._is_verified = False
        self._hidden: torch.Tensor | None = None
        self._head: LMHead | None = None

    @contextmanager
    def forward(self, inputs: Mapping[str, Any]) -> Iterator[None]:
        """Run the model on a batch, and keep its LM head gathered inside the context."""
        device = _device_of(self.model)
        placed = {key: value.to(device) if torch.is_tensor(value) else value for key, value in inputs.items()}
        with torch.no_grad(), self._accelerator.autocast():
            self._hidden = through_forward(self.engine, self.model, lambda: self._final_hidden_states(placed))
        try:
            with gathered(lm_head(self.model).parameters()):
                yield
        finally:
            self._hidden = None

    def signal(self, student: Any) -> DenseSignal:
        """Return the hidden states of the batch and the LM head, on the student's device."""
        if self._hidden is None:
            raise RuntimeError("`signal` was called outside the context of `forward`.")
        if self._head is None:
            head = lm_head(self.model).whole().to(self._accelerator.device)
            if any(hasattr(parameter, "ds_status") for parameter in head.parameters()):
                return DenseSignal(self._hidden, head)  # gathered within this context only
            self._head = head
        return DenseSignal(self._hidden.to(self._accelerator.device), self._head)

    def _final_hidden_states(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        if not self._is_verified:
            verify_architecture(self.model, inputs, role="teacher")
            self._is_verified = True
        with self._compiled(self.model):
            return final_hidden_states(self.model, inputs)


class SelfTeacher:
    """The student with its adapter disabled, for PEFT students; it needs no second model."""

    def __init__(self) -> None:
        self._inputs: Mapping[str, Any] = {}

    @contextmanager
    def forward(self, inputs: Mapping[str, Any]) -> Iterator[None]:
        """Keep the batch inside the context."""
        self._inputs = inputs
        try:
            yield
        finally:
            self._inputs = {}

    def signal(self, student: Any) -> DenseSignal:
        """Run the student without its adapter, in eval mode and without gradients."""
        with torch.no_grad(), evaluating(student), student.disable_adapter():
            return DenseSignal(final_hidden_states(student, self._inputs), lm_head(student).whole())


def load_teacher(
    name_or_path: str,
    *,
    revision: str = "main",
    init_kwargs: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """Load a teacher by name or path: a model, or an adapter and its base model.

    Args:
        name_or_path (`str`):
            Model or adapter on the Hub or folder on disk.
        revision (`str`, *optional*, defaults to `"main"`):
            Revision on the Hub.
        init_kwargs (`Mapping`, *optional*):
            Arguments of `from_pretrained`, such as `dtype`, `attn_implementation` or `quantization_config`. A
            `revision` or `trust_remote_code` among them takes precedence.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run code of the model from the Hub.

    Returns:
        `PreTrainedModel` or `PeftModel`: The teacher.
    """
    source = source_arguments(init_kwargs, revision=revision, trust_remote_code=trust_remote_code)
    return load_model(
        name_or_path, source, autocast_adapter_dtype=False, **without_source_arguments(init_kwargs or {})
    )


def verify_architecture(model: Any, inputs: Mapping[str, Any], *, role: str) -> None:
    """Raise a ValueError if the model's architecture does not support the fused loss, or packing if it is used."""
    with evaluating(model):
        verify_head(model, inputs["input_ids"], role=role)
        if "position_ids" in inputs:
            verify_packing(model, inputs["input_ids"], role=role)


def _device_of(model: Any) -> torch.device:
    device: torch.device = model.get_input_embeddings().weight.device
    return device
