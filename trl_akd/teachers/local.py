"""Teachers whose weights are at hand: another model, or the student without its adapter."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from ..distributed import gathered, prepare_frozen, through_forward
from ..heads import LMHead, compiler, evaluating, final_hidden_states, lm_head, prove_head, prove_packing


@runtime_checkable
class Teacher(Protocol):
    """Interface between the trainer and a teacher; an object of any class with these methods is a `teacher_model`.

    `observe` opens a context for one batch; inside it, and inside the student's forward, `knowledge` returns the
    hidden states `[B, T, Ht]` of the batch, on the student's device, and the head that turns them into logits, or
    `None` if nothing is learned from it. Where the head has fewer or other rows than the student's, the attribute
    `vocabulary_size` says how many of the first ids both share.

    Example:

    ```python
    >>> class Halves:
    ...     def __init__(self, one, other):
    ...         self.models = one, other
    ...
    ...     @contextmanager
    ...     def observe(self, inputs):
    ...         self.inputs = inputs
    ...         yield
    ...
    ...     def knowledge(self, student):
    ...         with torch.no_grad():
    ...             hidden = [final_hidden_states(model, self.inputs) for model in self.models]
    ...         weights = [lm_head(model).weight.detach() / 2 for model in self.models]
    ...         return torch.cat(hidden, dim=-1), LMHead(torch.cat(weights, dim=1))
    >>> isinstance(Halves(None, None), Teacher)
    True

    ```
    """

    def observe(self, inputs: Mapping[str, Any]) -> Any:
        """Open the context of one batch."""

    def knowledge(self, student: Any) -> tuple[torch.Tensor, LMHead] | None:
        """Return hidden states and head of the observed batch; `student` is the unwrapped student."""


class LocalTeacher:
    """A frozen language model, run once a batch without gradients.

    Args:
        model (`PreTrainedModel`):
            The teacher.
        accelerator (`Accelerator`):
            Decides how it is placed; under ZeRO-3 it is sharded by an engine of its own.
        device (`str`, *optional*):
            Where it stays instead, such as `"cpu"`.
        compilation (`Mapping`, *optional*):
            Arguments of [`torch.compile`], by which it is compiled.
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
        self._proven = False
        self._hidden: torch.Tensor | None = None
        self._head: LMHead | None = None

    @contextmanager
    def observe(self, inputs: Mapping[str, Any]) -> Iterator[None]:
        """Run the teacher on a batch and keep its head gathered until the context closes."""
        device = _device_of(self.model)
        placed = {key: value.to(device) if torch.is_tensor(value) else value for key, value in inputs.items()}
        with torch.no_grad(), self._accelerator.autocast():
            self._hidden = through_forward(self.engine, self.model, lambda: self._read(placed))
        try:
            with gathered(lm_head(self.model).parameters()):
                yield
        finally:
            self._hidden = None

    def knowledge(self, student: Any) -> tuple[torch.Tensor, LMHead]:
        """Return the batch's hidden states and the head, on the student's device."""
        if self._hidden is None:
            raise RuntimeError("`knowledge` was asked for outside `observe`.")
        if self._head is None:
            head = lm_head(self.model).whole().to(self._accelerator.device)
            if any(hasattr(parameter, "ds_status") for parameter in head.parameters()):
                return self._hidden, head  # whole only for as long as this batch is observed
            self._head = head
        return self._hidden.to(self._accelerator.device), self._head

    def _read(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        if not self._proven:
            prove_architecture(self.model, inputs, role="teacher")
            self._proven = True
        with self._compiled(self.model):
            return final_hidden_states(self.model, inputs)


class SelfTeacher:
    """The student with its adapter switched off (LoRA students only), which costs no second model."""

    def __init__(self) -> None:
        self._inputs: Mapping[str, Any] = {}

    @contextmanager
    def observe(self, inputs: Mapping[str, Any]) -> Iterator[None]:
        """Remember the batch."""
        self._inputs = inputs
        try:
            yield
        finally:
            self._inputs = {}

    def knowledge(self, student: Any) -> tuple[torch.Tensor, LMHead]:
        """Run the student without its adapter, in eval mode and without gradients."""
        with torch.no_grad(), evaluating(student), student.disable_adapter():
            return final_hidden_states(student, self._inputs), lm_head(student).whole()


class NoTeacher:
    """Stands where nothing is learned from a teacher."""

    def observe(self, inputs: Mapping[str, Any]) -> Any:
        """Open a context in which nothing is asked."""
        return nullcontext()

    def knowledge(self, student: Any) -> None:
        """Know nothing."""


def load_teacher(
    name_or_path: str,
    *,
    revision: str = "main",
    init_kwargs: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a teacher by name or path.

    Args:
        name_or_path (`str`):
            Model on the Hub or folder on disk.
        revision (`str`, *optional*, defaults to `"main"`):
            Revision on the Hub.
        init_kwargs (`Mapping`, *optional*):
            Passed to `from_pretrained`, such as `dtype`, `attn_implementation` or `quantization_config`.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether code from the Hub may run.
    """
    source = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(name_or_path, **source)
    architecture = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model: PreTrainedModel = architecture.from_pretrained(name_or_path, **{**source, **(init_kwargs or {})})
    return model


def prove_architecture(model: Any, inputs: Mapping[str, Any], *, role: str) -> None:
    """Refuse an architecture that the fused loss or packing would treat wrongly, on the first batch."""
    with evaluating(model):
        prove_head(model, inputs["input_ids"], role=role)
        if "position_ids" in inputs:
            prove_packing(model, inputs["input_ids"], role=role)


def _device_of(model: Any) -> torch.device:
    device: torch.device = model.get_input_embeddings().weight.device
    return device
