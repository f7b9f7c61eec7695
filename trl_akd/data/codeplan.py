"""Deprecated location of [`trl_akd.codeplan.collator`]."""

import warnings
from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    value = getattr(import_module("trl_akd.codeplan.collator"), name)
    warnings.warn("trl_akd.data.codeplan has moved to trl_akd.codeplan.collator.", FutureWarning, stacklevel=2)
    return value
