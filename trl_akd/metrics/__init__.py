"""Metrics of generated programs, as `evaluate` modules, and their statistics."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trl_akd.metrics.base import LocalMetric

__all__ = ["load"]

_CLASSES = {"accuracy_loss": "AccuracyLoss", "code_errors": "CodeErrors", "pass_at_k": "PassAtK"}


def load(name: str) -> "LocalMetric":
    """Load a metric of this package, without access to the Hub.

    `evaluate.load(PATH)` with the metric's folder, `trl_akd/metrics/NAME`, returns the same metric and takes the
    options of `evaluate` for several processes.

    Args:
        name (`str`): `"accuracy_loss"`, `"code_errors"` or `"pass_at_k"`.

    Returns:
        `evaluate.Metric`: The metric, with a method `compute`.

    Raises:
        ValueError: If there is no such metric.

    Example:
        ```python
        >>> load("accuracy_loss").compute(predictions=[20.7], references=[20.7])
        {'accuracy_loss': 0.0, 'per_item': [0.0]}

        ```
    """
    if name not in _CLASSES:
        raise ValueError(f"There is no metric {name!r}; choose one of {', '.join(sorted(_CLASSES))}.")
    metric: LocalMetric = getattr(import_module(f"{__name__}.{name}.{name}"), _CLASSES[name])()
    return metric
