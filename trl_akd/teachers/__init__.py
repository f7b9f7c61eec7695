"""Teachers, which return a dense or sparse signal for each batch."""

from ..losses.signals import DenseSignal, SparseSignal, TeacherSignal
from .base import NoTeacher, Teacher, as_teacher
from .cached import CachedTeacher
from .distillkit import DistillKitFormat, DistillKitTeacher, ResidualBin
from .local import LocalTeacher, SelfTeacher, load_teacher, verify_architecture
from .served import ServedTeacher

__all__ = [
    "CachedTeacher",
    "DenseSignal",
    "DistillKitFormat",
    "DistillKitTeacher",
    "LocalTeacher",
    "NoTeacher",
    "ResidualBin",
    "SelfTeacher",
    "ServedTeacher",
    "SparseSignal",
    "Teacher",
    "TeacherSignal",
    "as_teacher",
    "load_teacher",
    "verify_architecture",
]
