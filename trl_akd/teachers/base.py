"""The interface between a trainer and its teacher."""

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from ..losses.signals import DenseSignal, TeacherSignal


@runtime_checkable
class Teacher(Protocol):
    """Interface of teachers; an object of any class with these two methods can be given as `teacher_model`.

    The signal is a [`DenseSignal`] or a [`SparseSignal`] with the leading dimensions `[B, T]` of the batch. Position t
    has the distribution of token t + 1.

    If the teacher's vocabulary is smaller than the student's, the attribute `vocabulary_size` of the teacher is the
    number of leading token ids that both share.

    Example:

    ```python
    >>> import torch
    >>> from trl_akd.teachers import SparseSignal, Teacher
    >>> class TopK:
    ...     def __init__(self, model, k):
    ...         self.model, self.k = model, k
    ...
    ...     def forward(self, inputs):
    ...         with torch.no_grad():
    ...             self.logits = self.model(**inputs).logits
    ...
    ...     def signal(self, student):
    ...         return SparseSignal.from_logits(self.logits, self.k)
    >>> isinstance(TopK(None, 8), Teacher)
    True

    ```
    """

    def forward(self, inputs: Mapping[str, Any]) -> AbstractContextManager[Any] | None:
        """Process a batch, and optionally return a context manager to keep open until the signal has been used.

        Args:
            inputs (`Mapping`):
                `input_ids` `[B, T]`, and `attention_mask`, `position_ids` or `decoder_input_ids` if there are any.
        """

    def signal(self, student: Any) -> TeacherSignal | None:
        """Return the signal of the batch on the student's device, or `None` if the objective uses no teacher.

        Called once after each [`forward`], inside the student's forward.

        Args:
            student (`PreTrainedModel` or `PeftModel`):
                The unwrapped student.
        """


class NoTeacher:
    """Placeholder for objectives without a teacher."""

    def forward(self, inputs: Mapping[str, Any]) -> None:
        """Do nothing."""

    def signal(self, student: Any) -> None:
        """Return `None`."""


class _DeprecatedTeacher:
    """Adapter of a teacher with the deprecated methods `observe` and `knowledge`."""

    def __init__(self, teacher: Any) -> None:
        self._teacher = teacher
        if hasattr(teacher, "vocabulary_size"):
            self.vocabulary_size = teacher.vocabulary_size

    def forward(self, inputs: Mapping[str, Any]) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self._teacher.observe(inputs)
        return context

    def signal(self, student: Any) -> DenseSignal | None:
        knowledge = self._teacher.knowledge(student)
        return None if knowledge is None else DenseSignal(*knowledge)


def as_teacher(model: Any) -> Any:
    """Adapt a teacher with the deprecated methods `observe` and `knowledge`, and return other objects unchanged."""
    if isinstance(model, Teacher) or not (hasattr(model, "observe") and hasattr(model, "knowledge")):
        return model
    warnings.warn(
        f"`teacher_model` ({type(model).__name__}) has the methods `observe` and `knowledge`, which are deprecated; "
        "rename them to `forward` and `signal`, and return DenseSignal(hidden, head) from the latter.",
        FutureWarning,
        stacklevel=3,
    )
    return _DeprecatedTeacher(model)
