"""`trl-akd quickstart`: from nothing to a student, judged by the code it writes. Offline, on a CPU.

A world of small programming tasks is generated, a teacher and a student are trained on it, and the student learns from
the teacher by the recipes in `recipes/micro`, through the same commands that a large run uses. `--method` chooses how:
`akd`, by the teacher's distribution; `codeplan`, by plans that the teacher writes; or `iterkd`, in cycles of right and
wrong answers, feedback and new questions.
"""

import argparse
import os
import shutil
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from .errors import UserError, user_errors

__all__ = ["main"]

FOLDERS = {
    "akd": "outputs/quickstart",
    "codeplan": "outputs/quickstart-codeplan",
    "iterkd": "outputs/quickstart-iterkd",
}
_MARKER = ".trl_akd_quickstart"


def main(argv: list[str] | None = None) -> None:
    """Run the command on `argv`, by default the process's arguments."""
    parser = argparse.ArgumentParser(
        prog="trl-akd quickstart", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", choices=list(FOLDERS), default="akd", help="how the student learns (default: akd)")
    parser.add_argument("--output_dir", help="folder for data, models and results (default: that of the recipes)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the student and of its training")
    options = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin stall one another on a busy machine
    method = import_module(f".quickstart_{options.method}", __package__)
    folder = Path(options.output_dir or FOLDERS[options.method])
    with user_errors((OSError,)):
        method.quickstart(_own_folder(folder, method.MADE), options.seed)


def _own_folder(folder: Path, made: Sequence[str]) -> Path:
    """Return `folder` without the folders that an earlier quickstart made there; all else stays."""
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARKER).exists():
        raise UserError(f"`--output_dir` is {str(folder)!r}, which holds other files; name a new or an empty folder.")
    for name in made:
        shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARKER).touch()
    return folder
