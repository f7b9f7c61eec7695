"""Measured scores on a model card: as `model-index` metadata for the Hub, and as a table for readers."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard

from ..ledger import replace_text

__all__ = ["add_scores", "evaluation_section", "score_results"]

_SCORE = re.compile(r"pass@\d+")
_NO_SCORES = "No benchmark has been run on this model."
_SOURCE = (
    "Measured by running the programs that the model writes against the benchmark's tests, with `trl-akd evaluate` or "
    "during training."
)
_SECTION = re.compile(  # only as `evaluation_section` writes it: a section written by the card's author is kept
    rf"^## Evaluation\s+(?:{re.escape(_NO_SCORES)}|(?:\|[^\n]*\n)+\s*{re.escape(_SOURCE)})\s*", re.MULTILINE
)


def score_results(
    benchmark: str,
    dataset: str,
    metrics: Mapping[str, float],
    *,
    revision: str | None = None,
    variant: str | None = None,
    **settings: Any,
) -> list[EvalResult]:
    """Return a benchmark's scores as `model-index` entries.

    Args:
        benchmark (`str`):
            Name of the benchmark, such as `humaneval`.
        dataset (`str`):
            Dataset of the benchmark on the Hub; the benchmark's name if there is none.
        metrics (`Mapping[str, float]`):
            Scores `pass@k` as fractions, each with the bounds `pass@k_low` and `pass@k_high` of its confidence
            interval. Other entries are ignored.
        revision (`str`, *optional*):
            Commit of the dataset.
        variant (`str`, *optional*):
            Variant of the evaluation with separate scores, such as `"with plans"`.
        **settings:
            Settings of the evaluation, such as `problems`, `samples` and `temperature`.

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
            metric_name=None if variant is None else f"{name} {variant}",
            metric_value=value,
            metric_args={"interval": [metrics[f"{name}_low"], metrics[f"{name}_high"]], **settings},
        )
        for name, value in metrics.items()
        if _SCORE.fullmatch(name)
    ]


def evaluation_section(results: Sequence[EvalResult]) -> str:
    """Return the card's section on scores, including when no score was measured.

    Example:

    ```python
    >>> print(evaluation_section([]))
    ## Evaluation
    <BLANKLINE>
    No benchmark has been run on this model.

    ```
    """
    if not results:
        return f"## Evaluation\n\n{_NO_SCORES}"
    lines = [_row(result) for result in results]
    header = "| benchmark | metric | score | interval | settings |\n|---|---|---:|---|---|"
    return "\n".join(["## Evaluation", "", header, *lines, "", _SOURCE])


def add_scores(card_file: Path, results: Sequence[EvalResult]) -> None:
    """Add scores to a model card, replacing earlier ones of the same benchmark and metric.

    Args:
        card_file (`Path`):
            An existing `README.md`. All other content is kept, including other scores and sections.
        results (`Sequence[EvalResult]`):
            From [`score_results`].

    Raises:
        ValueError: If the file is not text, or its metadata is malformed; it is left unchanged.
        OSError: If the file cannot be replaced; it is left unchanged.
    """
    try:
        card = ModelCard.load(card_file)
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise ValueError(
            f"{card_file} cannot be read ({reason}); correct the metadata between its `---` lines."
        ) from error
    replaced = set(map(_identity, results))
    kept = [old for old in card.data.eval_results or () if _identity(old) not in replaced]
    card.data.eval_results = [*kept, *results]
    card.data.model_name = card.data.model_name or card_file.parent.resolve().name
    section = f"{evaluation_section([result for result in card.data.eval_results if _is_ours(result)])}\n\n"
    text, found = _SECTION.subn(lambda _: section, card.text, count=1)
    card.text = text if found else f"{card.text.rstrip()}\n\n{section}"
    replace_text(card_file, f"{str(card).rstrip()}\n")


def _identity(result: EvalResult) -> tuple[Any, ...]:
    """Return the key of a score, without the dataset's name, because `model-index` keeps one name per dataset."""
    return result.dataset_type, result.dataset_config, result.metric_type, result.metric_name


def _is_ours(result: EvalResult) -> bool:
    return _SCORE.fullmatch(result.metric_type) is not None and "interval" in (result.metric_args or {})


def _row(result: EvalResult) -> str:
    settings = dict(result.metric_args or {})
    low, high = settings.pop("interval", (None, None))
    interval = "" if low is None else f"{low:.3f} to {high:.3f}"
    score = f"{result.metric_value:.3f}" if isinstance(result.metric_value, float | int) else str(result.metric_value)
    given = ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    return f"| {result.dataset_name} | {result.metric_name or result.metric_type} | {score} | {interval} | {given} |"
