"""Sampling from a mixture of the student's and the teacher's distributions, token by token."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import LogitsProcessor

from ..generation.decoding import unwrapped_for_generation
from ..heads import without_adapter
from ..losses.policy_gradient import mix_log_probs
from ..losses.signals import DenseSignal
from ..teachers import LocalTeacher, SelfTeacher, Teacher, TeacherSignal

NextLogits = Callable[[Tensor], Tensor]


class TeacherMix(LogitsProcessor):
    """Mix the teacher's distribution into the student's during `generate`.

    Args:
        next_logits (`Callable`):
            Function of the tokens so far `[B, T]` that returns the teacher's logits of the next token `[B, V]`.
        teacher_mix (`float`):
            Share of the teacher, in [0, 1].
    """

    def __init__(self, next_logits: NextLogits, teacher_mix: float) -> None:
        self._next_logits = next_logits
        self._teacher_mix = teacher_mix

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the logarithm of the mixture `[B, V]`."""
        teacher = self._next_logits(input_ids).to(scores.device)
        return mix_log_probs(scores, teacher[:, : scores.shape[-1]], self._teacher_mix)


@contextmanager
def teacher_next_logits(
    teacher: Teacher, student: Any, accelerator: Accelerator, *, vocabulary_size: int
) -> Iterator[Callable[[Tensor], NextLogits]]:
    """Yield a function that returns, for the prompts of one `generate`, the function of the teacher's next logits.

    A language model keeps a KV cache. Any other teacher processes the whole text at each step, so that the cost grows
    with the square of the length. Under ZeRO-3, the teacher is gathered inside the context.

    Args:
        teacher (`Teacher`):
            The teacher.
        student (`PreTrainedModel` or `PeftModel`):
            The student as it generates.
        accelerator (`Accelerator`):
            Accelerator of the trainer.
        vocabulary_size (`int`):
            Number of leading token ids that both models share.

    Yields:
        `Callable`: Function of the attention mask `[B, P]` of left-padded prompts. It returns a function of the tokens
        so far `[B, T]`, which returns logits `[B, vocabulary_size]`.
    """

    def shared(logits: NextLogits) -> NextLogits:
        return lambda input_ids: logits(input_ids)[:, :vocabulary_size]

    if isinstance(teacher, LocalTeacher):
        with unwrapped_for_generation(teacher.engine, accelerator) as model:
            yield lambda mask: shared(_Cached(model, mask, accelerator.autocast))
    elif isinstance(teacher, SelfTeacher):
        yield lambda mask: shared(_Cached(student, mask, student.disable_adapter))
    else:
        yield lambda mask: shared(lambda input_ids: _from_signal(teacher, student, input_ids, mask))


class _Cached:
    """Logits of the next token from a language model with a KV cache.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The model.
        attention_mask (`torch.Tensor` of shape `[B, P]`):
            Attention mask of the left-padded prompts.
        context (`Callable`, *optional*):
            Returns a context manager for each call of the model.
    """

    def __init__(
        self, model: Any, attention_mask: Tensor, context: Callable[[], AbstractContextManager[Any]] = nullcontext
    ) -> None:
        self._model = model
        self._prompt_mask = attention_mask
        self._context = context
        self._parameters = inspect.signature(without_adapter(model).forward).parameters
        self._cache: Any = None

    def __call__(self, input_ids: Tensor) -> Tensor:
        """Return the logits `[B, V]` after the tokens `[B, T]`, which continue those of the previous call."""
        device = self._model.get_input_embeddings().weight.device
        mask = _extended(self._prompt_mask, input_ids).to(device)
        new = slice(None) if self._cache is None else slice(-1, None)
        inputs: dict[str, Any] = {"input_ids": input_ids.to(device)[:, new], "attention_mask": mask}
        optional = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)[:, new], "logits_to_keep": 1}
        inputs |= {name: value for name, value in optional.items() if name in self._parameters}
        with self._context():
            output = self._model(**inputs, past_key_values=self._cache, use_cache=True)
        self._cache = output.past_key_values
        logits: Tensor = output.logits[:, -1].float()
        return logits


def _from_signal(teacher: Teacher, student: Any, input_ids: Tensor, prompt_mask: Tensor) -> Tensor:
    """Return the logits of the next token from the signal for the whole text, with its padding moved to the right."""
    lengths = _extended(prompt_mask, input_ids).sum(-1)
    place = torch.arange(input_ids.shape[1], device=input_ids.device)
    mask = place < lengths[:, None]
    padding = input_ids.shape[1] - lengths
    moved = input_ids.gather(1, (place + padding[:, None]).clamp(max=input_ids.shape[1] - 1))
    with teacher.forward({"input_ids": moved, "attention_mask": mask.long()}) or nullcontext():
        signal = require_dense(teacher.signal(student))
        return signal.head.logits(signal.hidden[torch.arange(len(lengths)), lengths - 1]).float()


def require_dense(signal: TeacherSignal | None) -> DenseSignal:
    """Return a dense signal, and refuse any other.

    Raises:
        ValueError: If the signal lacks the probabilities of some tokens.
    """
    if not isinstance(signal, DenseSignal):
        raise ValueError(
            "`teacher_model` returns a sparse signal, but the policy gradient of 'minillm' needs the probability of "
            "every token that the student samples; give a teacher with a DenseSignal, or set divergence='reverse_kl'."
        )
    return signal


def _extended(prompt_mask: Tensor, input_ids: Tensor) -> Tensor:
    """Return the attention mask of prompts and the tokens after them."""
    return torch.nn.functional.pad(prompt_mask, (0, input_ids.shape[1] - prompt_mask.shape[1]), value=1)
