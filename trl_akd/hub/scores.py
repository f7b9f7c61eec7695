"""Measured scores on a model card: as `model-index` metadata for the Hub, and as tables for readers."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard

from ..ledger import replace_text
from .markdown import code, escape, has_section, markdown_table, section, set_section

__all__ = [
    "FewerProblemsError",
    "add_scores",
    "add_scores_to_file",
    "before_and_after",
    "comparison_section",
    "errors_section",
    "measured_sections",
    "not_measured",
    "read_card",
    "score_results",
]

_SCORE = re.compile(r"pass@\d+")
_NOT_IN_KEYS = re.compile(r"[^\w.+]+")
_EVALUATION, _LIMITS = "evaluation", "not measured"
_NO_SCORES = "No benchmark has been run on this model."
_SOURCE = (
    "Measured by running the programs that the model writes against the benchmark's tests, with `trl-akd evaluate` or "
    "during training. Intervals are 95 % confidence intervals unless another level is named. For problems that are "
    "not from the Hub, the last column has a digest of them."
)
_USUAL_LEVEL = 0.95
_OWN_COLUMNS = ("interval", "confidence", "fingerprint")
_NEVER_MEASURED = (
    "The variation between training runs: this is a single run.",
    "Whether the training data contains problems of the benchmarks, unless it is stated here.",
    "Anything other than whether programs pass tests, such as their security, speed and style, and text in natural "
    "languages.",
)


class FewerProblemsError(ValueError):
    """Scores were not added to a model card, because it has scores of more problems of the same benchmark."""


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
            interval, and optionally the level `confidence` of the intervals. Other entries are ignored.
        revision (`str`, *optional*):
            Commit of the dataset.
        variant (`str`, *optional*):
            Variant of the evaluation with separate scores, such as `"with plans"`.
        **settings:
            Settings of the evaluation, such as `problems`, `num_samples` and `temperature`.

    Example:

    ```python
    >>> metrics = {"pass@1": 0.25, "pass@1_low": 0.2, "pass@1_high": 0.3}
    >>> found = score_results("humaneval", "openai/openai_humaneval", metrics)
    >>> found[0].metric_type, found[0].metric_value, found[0].metric_args
    ('pass@1', 0.25, {'interval': [0.2, 0.3]})

    ```
    """
    confidence = {name: metrics[name] for name in ("confidence",) if name in metrics}
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset,
            dataset_name=benchmark,
            dataset_revision=revision,
            metric_type=name,
            metric_name=None if variant is None else f"{name} {variant}",
            metric_value=value,
            metric_args={"interval": [metrics[f"{name}_low"], metrics[f"{name}_high"]], **confidence, **settings},
        )
        for name, value in metrics.items()
        if _SCORE.fullmatch(name)
    ]


def errors_section(benchmark: str, counts: Mapping[str, int]) -> dict[str, str]:
    """Return the section on the outcomes of a model's programs, from their number by class, by its key."""
    total = sum(counts.values())
    rows = [[escape(name), str(count), f"{count / total:.1%}"] for name, count in counts.items()]
    table = markdown_table(["outcome", "programs", "share"], rows)
    return {_key("errors", benchmark): f"### Outcomes of the programs: {escape(benchmark)}\n\n{table}"}


def comparison_section(benchmark: str, table: str, note: str = "") -> dict[str, str]:
    """Return the section that compares the model with others on a benchmark, by its key."""
    content = f"### Comparison: {escape(benchmark)}\n\n{table}"
    return {_key("comparison", benchmark): f"{content}\n\n{note}" if note else content}


def before_and_after(before: Sequence[EvalResult], after: Sequence[EvalResult]) -> dict[str, str]:
    """Return the section that compares the student's scores before and after training, by its key."""
    later = {_identity(result): result for result in after}
    pairs = [(result, later[_identity(result)]) for result in before if _identity(result) in later]
    if not pairs:
        return {}
    rows = [
        [_metric(result), title, _score(result), _interval(result)]
        for pair in pairs
        for title, result in zip(("before training", "after training"), pair, strict=True)
    ]
    return comparison_section(
        pairs[0][0].dataset_name, markdown_table(["metric", "student", "score", "interval"], rows)
    )


def measured_sections(results: Sequence[EvalResult], sections: Mapping[str, str]) -> list[str]:
    """Return the sections of a new card on scores, on other measurements, and on what was not measured.

    Args:
        results (`Sequence[EvalResult]`):
            Scores, from [`score_results`].
        sections (`Mapping[str, str]`):
            Sections by key, from [`errors_section`] and [`comparison_section`].
    """
    text = section(_EVALUATION, _evaluation(results))
    for key, content in sections.items():
        text = set_section(text, key, content, after=_EVALUATION)
    return [text, section(_LIMITS, _not_measured(results, text))]


def add_scores(card: ModelCard, results: Sequence[EvalResult], sections: Mapping[str, str], *, name: str) -> None:
    """Add scores to a model card, replacing earlier ones of the same benchmark and metric.

    All other content is kept, including scores and sections of other tools.

    Args:
        card (`ModelCard`):
            The card.
        results (`Sequence[EvalResult]`):
            Scores, from [`score_results`].
        sections (`Mapping[str, str]`):
            Sections by key, from [`errors_section`] and [`comparison_section`].
        name (`str`):
            Name of the model in the `model-index`, if the card has none.

    Raises:
        FewerProblemsError: If the card has a score of more problems of a benchmark; it is left unchanged.
    """
    _check_problems(card.data.eval_results or (), results)
    replaced = set(map(_identity, results))
    kept = [old for old in card.data.eval_results or () if _identity(old) not in replaced]
    card.data.eval_results = [*kept, *results] or None
    card.data.model_name = card.data.model_name or name
    ours = [result for result in card.data.eval_results or () if _is_ours(result)]
    text = set_section(card.text, _EVALUATION, _evaluation(ours))
    for key, content in sections.items():
        text = set_section(text, key, content, after=_EVALUATION)
    if has_section(text, _LIMITS):
        text = set_section(text, _LIMITS, _not_measured(ours, text))
    card.text = text


def add_scores_to_file(card_file: Path, results: Sequence[EvalResult], sections: Mapping[str, str]) -> None:
    """Add scores to the model card in an existing `README.md`, see [`add_scores`].

    Raises:
        ValueError: If the file is not text, or its metadata is malformed; it is left unchanged.
        FewerProblemsError: If the card has a score of more problems of a benchmark; it is left unchanged.
        OSError: If the file cannot be replaced; it is left unchanged.
    """
    card = read_card(card_file)
    add_scores(card, results, sections, name=card_file.parent.resolve().name)
    replace_text(card_file, f"{str(card).rstrip()}\n")


def read_card(card_file: Path) -> ModelCard:
    """Read a model card.

    Raises:
        ValueError: If the file is not text, or its metadata is malformed.
    """
    try:
        return ModelCard.load(card_file)
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise ValueError(
            f"{card_file} cannot be read ({reason}); correct the metadata between its `---` lines."
        ) from error


def _evaluation(results: Sequence[EvalResult]) -> str:
    if not results:
        return f"## Evaluation\n\n{_NO_SCORES}"
    header = "| benchmark | metric | score | interval | settings | revision |\n|---|---|---:|---|---|---|"
    return "\n".join(["## Evaluation", "", header, *map(_row, results), "", _SOURCE])


def _not_measured(results: Sequence[EvalResult], text: str) -> str:
    remarks = not_measured(
        is_measured=bool(results),
        is_compared="<!-- trl_akd: comparison " in text,
        with_teacher="accuracy loss" in text,
    )
    return "\n".join(["## Not measured", "", *(f"- {remark}" for remark in remarks)])


def not_measured(*, is_measured: bool, is_compared: bool, with_teacher: bool) -> list[str]:
    """Return what the measurements of a run leave open, one sentence each.

    Args:
        is_measured (`bool`):
            Whether the student's programs were run against a benchmark.
        is_compared (`bool`):
            Whether another model, such as the student before training, was measured in the same way.
        with_teacher (`bool`):
            Whether the teacher was.
    """
    remarks = list(_NEVER_MEASURED)
    if not is_measured:
        remarks.insert(0, "Whether the programs that this model writes are correct.")
    if not is_compared:
        remarks.insert(0, "How the teacher, and the student before training, score with the same settings.")
    elif not with_teacher:
        remarks.insert(0, "How the teacher scores with the same settings.")
    return remarks


def _identity(result: EvalResult) -> tuple[Any, ...]:
    """Return the key of a score, without the dataset's name, because `model-index` keeps one name per dataset."""
    return result.dataset_type, result.dataset_config, result.metric_type, result.metric_name


def _check_problems(present: Sequence[EvalResult], results: Sequence[EvalResult]) -> None:
    for new in results:
        for old in filter(_is_ours, present):
            more, fewer = ((result.metric_args or {}).get("problems") for result in (old, new))
            if more is not None and fewer is not None and more > fewer and _is_same_benchmark(old, new):
                raise FewerProblemsError(
                    f"the card keeps its score of {more} problems of {old.dataset_name!r}, because the new one is of "
                    f"only {fewer}; evaluate all problems (without `limit`), or delete the score from the card first."
                )


def _is_same_benchmark(old: EvalResult, new: EvalResult) -> bool:
    """Return whether scores are of the same benchmark and variant; local files are compared by their digests."""
    names, digests = [], []
    for result in (old, new):
        variant = (result.metric_name or "").partition(" ")[2]
        names.append((result.dataset_type, result.dataset_config, variant))
        digests.append(None if result.dataset_revision else result.metric_args.get("fingerprint"))
    return names[0] == names[1] and (None in digests or digests[0] == digests[1])


def _is_ours(result: EvalResult) -> bool:
    return (
        _SCORE.fullmatch(result.metric_type) is not None
        and isinstance(result.metric_value, float | int)
        and len((result.metric_args or {}).get("interval") or ()) == 2
    )


def _row(result: EvalResult) -> str:
    settings = {name: value for name, value in result.metric_args.items() if name not in _OWN_COLUMNS}
    given = ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    revision = result.dataset_revision or result.metric_args.get("fingerprint")
    cells = [escape(result.dataset_name), _metric(result), _score(result), _interval(result), escape(given)]
    return f"| {' | '.join([*cells, code(revision) if revision else ''])} |"


def _metric(result: EvalResult) -> str:
    return escape(result.metric_name or result.metric_type)


def _score(result: EvalResult) -> str:
    return f"{result.metric_value:.3f}"


def _interval(result: EvalResult) -> str:
    (low, high), level = result.metric_args["interval"], result.metric_args.get("confidence")
    return f"{low:.3f} to {high:.3f}" + ("" if level in (None, _USUAL_LEVEL) else f" ({level:.0%})")


def _key(kind: str, benchmark: str) -> str:
    return f"{kind} {_NOT_IN_KEYS.sub('_', benchmark)}"
