r"""`trl-akd report`: write the report of a run, `report.html`, again from the files in its folder.

```bash
trl-akd report outputs/student
trl-akd report outputs/student --evaluations outputs/evaluation/humaneval/teacher \
    outputs/evaluation/humaneval/student-before
trl-akd report outputs/evaluation/humaneval/student
```

Nothing is trained or run. Training and `trl-akd evaluate` write the report at their end; during training, this command
writes it from the last checkpoint.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from .command import Action, start
from .errors import run

__all__ = ["ACTIONS", "ReportConfig", "main"]


@dataclass
class ReportConfig:
    """
    Configuration of `trl-akd report`.

    Args:
        run_dir (`str`, *optional*):
            Output folder of a training run or of an evaluation. May be given without the flag, as the first argument.
        evaluations (`list[str]`, *optional*):
            Output folders of further evaluations to compare with, such as those of the teacher and of the student
            before training.
    """

    run_dir: str | None = None
    evaluations: list[str] | None = None

    def __post_init__(self) -> None:
        if self.run_dir is None:
            raise ValueError("`run_dir` is missing; give the folder of a run, as in `trl-akd report outputs/student`.")


def main(argv: list[str] | None = None) -> None:
    """Run the command with `argv`, by default the arguments of the process."""
    start("report", ACTIONS, argv)


def _argument_types() -> tuple[type, ...]:
    return (ReportConfig,)


def _run(config: ReportConfig) -> None:
    from ..report import write_report

    print(f"Report: {write_report(config.run_dir or '', config.evaluations or ())}")


ACTIONS: Mapping[str, Action] = {"": Action(_argument_types, _run, one_process=True, first="run_dir")}

if __name__ == "__main__":
    raise SystemExit(run(main))
