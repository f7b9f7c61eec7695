"""Measured scores on a model card: as `model-index` metadata for the Hub, and as a table for readers."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

__all__ = ["add_scores", "evaluation_section", "score_results"]

_SCORE = re.compile(r"pass@\d+")
_SECTION = re.compile(r"^## Evaluation\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def score_results(
    benchmark: str,
    dataset: str,
    metrics: Mapping[str, float],
    *,
    revision: str | None = None,
    **settings: Any,
) -> list[EvalResult]:
    """Return a benchmark's scores as `model-index` entries.

    Args:
        benchmark (`str`):
            Name of the benchmark, such as `humaneval`.
        dataset (`str`):
            Its dataset on the Hub, or its name again where it has none.
        metrics (`Mapping[str, float]`):
            Scores `pass@k`, fractions, each with the ends `pass@k_low` and `pass@k_high` of its interval; other
            entries are ignored.
        revision (`str`, *optional*):
            Commit of the dataset.
        **settings:
            How the scores were measured, such as `problems`, `samples` and `temperature`.

    Example:

    ```python
    >>> metrics = {"pass@1": 0.25, "pass@1_low": 0.2, "pass@1_high": 0.3}
    >>> found = score_results("humaneval", "openai/openai_humaneval", metrics)
    >>> found[0].metric_type, found[0].metric_value, found[0].metric_args
    ('pass@1', 0.25, {'interval': [0.2, 0.3]})

    ```
    """
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset,
            dataset_name=benchmark,
            dataset_revision=revision,
            metric_type=name,
            metric_value=value,
            metric_args={"interval": [metrics[f"{name}_low"], metrics[f"{name}_high"]], **settings},
        )
        for name, value in metrics.items()
        if _SCORE.fullmatch(name)
    ]


def evaluation_section(results: Sequence[EvalResult]) -> str:
    """Return the card's section on scores, which says so where none was measured.

    Example:

    ```python
    >>> print(evaluation_section([]))
    ## Evaluation
    <BLANKLINE>
    No benchmark has been run on this model.

    ```
    """
    if not results:
        return "## Evaluation\n\nNo benchmark has been run on this model."
    lines = [_row(result) for result in results]
    header = "| benchmark | metric | score | interval | settings |\n|---|---|---:|---|---|"
    source = (
        "Measured by running the programs that the model writes against the benchmark's tests, with "
        "`trl-akd evaluate` or during training."
    )
    return "\n".join(["## Evaluation", "", header, *lines, "", source])


def add_scores(card_file: Path, results: Sequence[EvalResult]) -> None:
    """Add scores to a model card, in place of earlier ones of the same benchmark and metric.

    Args:
        card_file (`Path`):
            An existing `README.md`; what it says beyond scores is kept.
        results (`Sequence[EvalResult]`):
            From [`score_results`].

    Raises:
        ValueError: If its metadata is malformed.
    """
    card = ModelCard.load(card_file)
    replaced = set(map(_identity, results))
    kept = [old for old in card.data.eval_results or () if _identity(old) not in replaced]
    card.data.eval_results = [*kept, *results]
    card.data.model_name = card.data.model_name or card_file.parent.resolve().name
    section = f"{evaluation_section(card.data.eval_results)}\n\n"
    text, found = _SECTION.subn(lambda _: section, card.text, count=1)
    card.text = text if found else f"{card.text.rstrip()}\n\n{section}"
    card.save(card_file)


def _identity(result: EvalResult) -> tuple[Any, ...]:
    return result.dataset_type, result.dataset_name, result.metric_type


def _row(result: EvalResult) -> str:
    settings = dict(result.metric_args or {})
    low, high = settings.pop("interval", (None, None))
    interval = "" if low is None else f"{low:.3f} to {high:.3f}"
    score = f"{result.metric_value:.3f}" if isinstance(result.metric_value, float | int) else str(result.metric_value)
    how = ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    return f"| {result.dataset_name} | {result.metric_type} | {score} | {interval} | {how} |"
