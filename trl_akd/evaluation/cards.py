"""Results of evaluations on model cards."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from ..hub import REPOSITORY
from ..hub.datasets import DatasetContent
from ..hub.markdown import code, escape, markdown_table
from ..hub.model_card import hub_name
from ..hub.private import public_path
from ..hub.scores import add_scores, add_scores_to_file, comparison_section, errors_section, score_results
from ..hub.upload import update_card
from ..ledger import read_json_lines
from .report import compare, error_counts, results_table
from .results import read_results
from .verdicts import VERDICTS

__all__ = [
    "card_comparison",
    "card_scores",
    "card_sections",
    "check_card",
    "effective_settings",
    "find_card",
    "read_judged_samples",
    "samples_content",
    "update_model_card",
]

_SETTINGS = ("num_samples", "temperature", "top_p", "max_new_tokens", "prompt_style", "prompt_template", "step")
_PLANNED = "with plans"
_OF_VERDICTS = ("status", "error_type", "message", "stage", "tests_passed", "tests_total", "label")


def card_scores(results: Mapping[str, Any], settings: Mapping[str, Any] | None) -> list[EvalResult]:
    """Return scores for a model card, with the settings of generation if these are known."""
    benchmark = results["benchmark"]
    counts = [task["samples"] for task in results.get("tasks", {}).values()]
    known = {**({"num_samples": max(counts)} if counts else {}), **effective_settings(settings or {})}
    return score_results(
        benchmark["name"],
        benchmark["dataset"] or benchmark["name"],
        results["metrics"],
        revision=benchmark["revision"],
        variant=_PLANNED if "plans" in results else None,
        problems=benchmark["problems"],
        **{name: known[name] for name in _SETTINGS if known.get(name) is not None},
        fingerprint=benchmark["fingerprint"],
    )


def effective_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of generation without `prompt_template` if the prompts did not contain it.

    Example:

    ```python
    >>> effective_settings({"prompt_style": "completion", "prompt_template": "alpaca"})
    {'prompt_style': 'completion'}

    ```
    """
    without_template = settings.get("prompt_style") != "template"
    return {name: value for name, value in settings.items() if not (without_template and name == "prompt_template")}


def card_sections(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the sections of a model card about an evaluation, by key."""
    return errors_section(_title(results), error_counts(results))


def card_comparison(runs: Mapping[str, Mapping[str, Any]], k: Sequence[int], seed: int) -> dict[str, str]:
    """Return the section of the last model's card that compares it with the other models, the teacher first."""
    last = list(runs)[-1]
    rows = [
        [
            f"pass@{each}",
            _role(row["model"], runs),
            f"{row[f'pass@{each}']:.3f}",
            f"{row['low']:.3f} to {row['high']:.3f}",
            "" if row["accuracy_loss"] is None else f"{row['accuracy_loss']:.1%}",
            *("" if row[name] is None else f"{row[name]:.2g}" for name in ("p_first", "p_above")),
        ]
        for each in k
        for row in compare(runs, k=each, seed=seed)
    ]
    header = ["metric", "model", "score", "interval", "accuracy loss", "p, against teacher", "p, against row above"]
    note = (
        "The accuracy loss is the relative distance to the teacher's score. The p-values are of paired tests on the "
        "same problems."
    )
    return comparison_section(_title(runs[last]), markdown_table(header, rows), note)


def find_card(model: str) -> Path | None:
    """Return the model card in a model's folder, or `None`."""
    card = Path(model).expanduser() / "README.md"
    return card if card.is_file() else None


def check_card(model: str) -> None:
    """Check that a model can have a card, before it is evaluated.

    Raises:
        ValueError: If it is neither in a folder nor on the Hub.
        FileNotFoundError: If its folder has no card.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir() and hub_name(model) is None:
        raise ValueError(
            f"`update_card` is on, but {model!r} is neither the folder of a model nor a name on the Hub; leave it out."
        )
    if folder.is_dir() and find_card(model) is None:
        raise FileNotFoundError(
            f"`update_card` is on, but {str(folder)!r} has no README.md; create one, or leave `update_card` out."
        )


def update_model_card(
    model: str,
    results: Sequence[EvalResult],
    sections: Mapping[str, str],
    *,
    revision: str | None,
    folder: Path,
) -> str:
    """Add scores and sections to a model's card, in its folder or on the Hub, and return the place of the card.

    Args:
        model (`str`):
            Folder or name on the Hub.
        results (`Sequence[EvalResult]`):
            Scores.
        sections (`Mapping[str, str]`):
            Sections by key.
        revision (`str`, *optional*):
            Branch on the Hub.
        folder (`Path`):
            Folder of the results, for error messages.

    Raises:
        ValueError: If the card is malformed; it is left unchanged.
        FewerProblemsError: If the card has a score of more problems of the benchmark; it is left unchanged.
        OSError: If the card cannot be replaced.
        HubError: If the repository cannot be changed.
    """
    if (card := find_card(model)) is not None:
        add_scores_to_file(card, results, sections)
        return str(card)
    name = model.rpartition("/")[2]
    update_card(
        model,
        lambda card: add_scores(card, results, sections, name=name),
        message="Scores measured by trl-akd evaluate",
        kept=f"Nothing is lost: the results are in {str(folder)!r}, and the same command adds them to the card.",
        revision=revision,
    )
    return f"https://huggingface.co/{model}"


def samples_content(folder: Path) -> DatasetContent:
    """Return the programs of an evaluation, with their verdicts, as a dataset.

    Raises:
        FileNotFoundError: If the folder has no results or samples.
        ValueError: If a file is malformed.
    """
    results, rows = read_results(folder), read_judged_samples(folder)
    benchmark, settings = results["benchmark"], effective_settings(results.get("generation") or {})
    counts = error_counts(results)
    outcomes = markdown_table(["outcome", "programs"], [[escape(name), str(count)] for name, count in counts.items()])
    model = public_path(str(results["model"]["name"]))
    return DatasetContent(
        title=f"Programs of {model.rpartition('/')[2]} for {benchmark['name']}",
        description="Programs that a model wrote for a benchmark, and the results of running them against its tests, "
        f"by `trl-akd evaluate` of [trl_akd]({REPOSITORY}).",
        tables={"samples": rows},
        facts={
            "Model": model,
            "Commit": results["model"].get("commit"),
            "Benchmark": benchmark["dataset"] or benchmark["name"],
            "Revision": benchmark["revision"],
            **{name: settings.get(name) for name in _SETTINGS},
        },
        sections=[f"## Scores\n\n{results_table(code(model), results)}", f"## Outcomes\n\n{outcomes}"],
        sources=[benchmark["dataset"]] if benchmark["dataset"] else [],
    )


def read_judged_samples(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of `samples.jsonl` that have a verdict, with its fields, such as `status` and `label`.

    Raises:
        FileNotFoundError: If the folder has no samples or verdicts.
        ValueError: If a line is malformed.
    """
    verdicts = {_key(row, where): row for row, where in read_json_lines(folder / VERDICTS, interrupted=True)}
    return [
        {**row, **{name: verdicts[key][name] for name in _OF_VERDICTS if name in verdicts[key]}}
        for row, where in read_json_lines(folder / "samples.jsonl", interrupted=True)
        if (key := _key({"sample": 0, **row}, where)) in verdicts
    ]


def _key(row: Mapping[str, Any], where: str) -> tuple[str, int]:
    task_id, sample = row.get("task_id"), row.get("sample")
    if not (isinstance(task_id, str) and isinstance(sample, int)):
        raise ValueError(f"{where} has no `task_id` or no `sample`; correct or delete the line, or evaluate again.")
    return task_id, sample


def _role(run: str, runs: Mapping[str, Mapping[str, Any]]) -> str:
    names = list(runs)
    if run == names[-1]:
        return "this model"
    name = code(public_path(str(runs[run]["model"]["name"])))
    return f"teacher, {name}" if run == names[0] else name


def _title(results: Mapping[str, Any]) -> str:
    name = str(results["benchmark"]["name"])
    return f"{name} {_PLANNED}" if "plans" in results else name
