"""Writing of the report of a run."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..hub.private import make_redactor
from ..ledger import replace_text
from .page import render
from .sections import make_sections
from .sources import Run, read_run

__all__ = ["REPORT", "save_report", "try_to_write_report", "write_report"]

if TYPE_CHECKING:
    from ..akd.akd_trainer import AKDTrainer

REPORT = "report.html"

logger = logging.getLogger(__name__)


def write_report(run_dir: str | Path, evaluations: Sequence[str | Path] = ()) -> Path:
    """Write `report.html` into the folder of a run, from the files in the folder, and return its path.

    The report is one file, which loads nothing from elsewhere: scores with intervals, curves, outcomes of the
    programs and sample programs, settings, and what was not measured. Secrets of the environment and paths of the
    machine are left out. It can be written during training as well, from the last checkpoint.

    Args:
        run_dir (`str` or `Path`):
            Output folder of a training run or of an evaluation.
        evaluations (`Sequence[str | Path]`, *optional*):
            Output folders of further evaluations to compare with, such as those of the teacher and of the student
            before training.

    Raises:
        FileNotFoundError: If there is no such folder, or it has no files of a run.
        ValueError: If a further evaluation is damaged.
        OSError: If the report cannot be written; an earlier one is kept.
    """
    folder, further = Path(run_dir).expanduser(), [Path(each).expanduser() for each in evaluations]
    run = read_run(folder, further)
    redact = make_redactor(folder, *further)
    sections = make_sections(run)
    for problem in run.problems:
        logger.warning("%s The report leaves it out.", problem)
    page = render(_title(run), _subtitle(run), sections, _footer(), redact)
    replace_text(folder / REPORT, page)
    return folder / REPORT


def try_to_write_report(run_dir: str | Path, evaluations: Sequence[str | Path] = ()) -> Path | None:
    """Write the report as `write_report` does; if that fails, log a warning and return `None`."""
    try:
        return write_report(run_dir, evaluations)
    except Exception as error:  # of any kind, as the run is complete and its results must not be lost
        logger.warning(
            "The report of %s was not written: %s. Nothing else is lost; `trl-akd report` writes it again.",
            run_dir,
            str(error).rstrip(".") or type(error).__name__,
        )
        return None


def save_report(trainer: "AKDTrainer", evaluations: Sequence[str | Path] = ()) -> Path | None:
    """Save the trainer's state, its model card and the report of its run. All processes may call it.

    Args:
        trainer (`AKDTrainer`, `CodePLANTrainer` or `IterKDTrainer`):
            Trainer, after `train`.
        evaluations (`Sequence[str | Path]`, *optional*):
            As in `write_report`.

    Returns:
        `Path`: The report, or `None` on processes other than the main one and, after a warning, if it cannot be
        written.

    Example:

    ```python
    >>> trainer.train()  # doctest: +SKIP
    >>> save_report(trainer)  # doctest: +SKIP
    PosixPath('student-AKD/report.html')

    ```
    """
    trainer.save_state()
    trainer.create_model_card()
    return try_to_write_report(str(trainer.args.output_dir), evaluations) if trainer.is_world_process_zero() else None


def _title(run: Run) -> str:
    if run.facts:
        return str(run.facts["name"])
    if run.subject is not None:
        return f"{run.subject.model} on {run.subject.benchmark}"
    return run.folder.resolve().name


def _subtitle(run: Run) -> str:
    parts = [str(run.facts["method"])] if run.facts else []
    if not run.facts and run.evaluations:
        parts.append("Evaluation by running programs")
    if run.cycles:
        parts.append(f"{len(run.cycles)} cycle{'s' if len(run.cycles) > 1 else ''}")
    if run.logs:
        parts.append(f"{max(log['step'] for log in run.logs):,.0f} optimizer steps")
    return ", ".join(parts)


def _footer() -> str:
    return f"Written by trl_akd at {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC."
