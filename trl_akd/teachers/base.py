"""The interface between a trainer and its teacher."""

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from ..losses.signals import DenseSignal, TeacherSignal


@runtime_checkable
class Teacher(Protocol):
    """Interface of teachers; an object of any class with these two methods can be given as `teacher_model`.

    Its signal is a [`DenseSignal`] or a [`SparseSignal`] with the leading dimensions `[B, T]` of the batch. Position t
    is about the token after t.

    If it knows fewer tokens than the student, its attribute `vocabulary_size` is the number of leading ids that both
    share.

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
        """Read a batch; optionally return a context to stay open until [`signal`] has been used.

        Args:
            inputs (`Mapping`):
                `input_ids` `[B, T]`, and `attention_mask`, `position_ids` or `decoder_input_ids` where there are any.
        """

    def signal(self, student: Any) -> TeacherSignal | None:
        """Return the signal of the batch, on the student's device; `None` if nothing is learned from it.

        Called once after each [`forward`], inside the student's own forward.

        Args:
            student (`PreTrainedModel` or `PeftModel`):
                The unwrapped student.
        """


class NoTeacher:
    """Teacher of a run that learns from the data alone."""

    def forward(self, inputs: Mapping[str, Any]) -> None:
        """Do nothing."""

    def signal(self, student: Any) -> None:
        """Return `None`."""


class _ObservingTeacher:
    """Adapter of a teacher with the methods `observe` and `knowledge`, the former interface."""

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
    """Adapt a teacher that has the deprecated methods `observe` and `knowledge`; return anything else as it is."""
    if isinstance(model, Teacher) or not (hasattr(model, "observe") and hasattr(model, "knowledge")):
        return model
    warnings.warn(
        f"`teacher_model` ({type(model).__name__}) has the methods `observe` and `knowledge`, which are deprecated; "
        "rename them to `forward` and `signal`, and return DenseSignal(hidden, head) from the latter.",
        FutureWarning,
        stacklevel=3,
    )
    return _ObservingTeacher(model)
