"""`trl-akd quickstart`: train a student and evaluate it by running its code, offline and on a CPU.

Generates small programming tasks, trains a teacher and a student on them, and distills the teacher into the student
with the recipes in `recipes/micro` and the same commands as in a large run. `--method` selects the method, such as
`akd`, by the teacher's distribution; `codeplan`, by plans from the teacher; or `iterkd`, in cycles of correct and
faulty answers, feedback and new questions.

```bash
trl-akd quickstart
trl-akd quickstart --method iterkd --seed 1 --output_dir outputs/second
```
"""

import argparse
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from .errors import UserError, user_errors
from .help import Formatter, description, examples
from .methods import find_methods, load_method

__all__ = ["main", "make_parser"]

_MARKER = ".trl_akd_quickstart"


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="trl-akd quickstart",
        description=description(str(__doc__)),
        epilog=examples(str(__doc__)),
        formatter_class=Formatter,
    )
    parser.add_argument("--method", choices=list(find_methods()), default="akd", help="training method (default: akd)")
    parser.add_argument("--output_dir", help="folder for data, models and results (default: that of the recipes)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the student and of its training (default: 0)")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command with `argv`, by default the arguments of the process."""
    options = make_parser().parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads slow each other down on a busy machine
    quickstart = load_method(options.method).quickstart()
    if quickstart is None:
        raise UserError(f"`--method` is {options.method!r}, which has no quickstart; choose another method.")
    with user_errors((OSError,)):
        folder = _prepare_folder(Path(options.output_dir or quickstart.folder), quickstart.made)
        quickstart.run(folder, options.seed)


def _prepare_folder(folder: Path, made: Sequence[str]) -> Path:
    """Remove the files of an earlier quickstart from `folder`, and return the folder; other files are kept."""
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARKER).exists():
        raise UserError(f"`--output_dir` is {str(folder)!r}, which has other files; give a new or an empty folder.")
    for name in made:
        shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARKER).touch()
    return folder
