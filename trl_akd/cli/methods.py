"""Interface between training methods and the command line.

A method is one class: its configuration, its trainer, its replacements in a dry run, and checks before a model is
loaded. `trl-akd NAME` runs it. The methods of this package are listed in `METHODS`. Another package adds one by an
entry point in the group `trl_akd.methods`, which names an instance of a subclass of [`Method`]:

```toml
[project.entry-points."trl_akd.methods"]
my_method = "my_package.method:METHOD"
```
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .command import CommandLine
from .errors import UserError, user_errors
from .launching import check_processes
from .recipes import Recipe

if TYPE_CHECKING:
    from ..akd.akd_config import AKDConfig
    from ..akd.akd_trainer import AKDTrainer
    from .dry_run import DryRun

__all__ = ["Method", "Quickstart", "find_methods", "load_method"]

_GROUP = "trl_akd.methods"
_OWN = ("akd", "codeplan", "iterkd")


@dataclass(frozen=True)
class Quickstart:
    """Offline example of a method, from generated data to measured results.

    Args:
        folder (`str`):
            Default output folder, as in the recipes of the example.
        made (`Sequence[str]`):
            Names that it creates in the output folder, removed before it runs again.
        run (`Callable`):
            Function that runs it, given the output folder and the seed.
    """

    folder: str
    made: Sequence[str]
    run: Callable[[Path, int], None]


class Method(ABC):
    """A training method.

    A subclass imports torch inside its methods only, since they are called after the recipe's `env` is set.

    Attributes:
        name (`str`):
            Name of the command.
        continues (`bool`):
            Whether the command continues an interrupted run without `resume_from_checkpoint`.
    """

    name: str
    continues: bool = False

    @abstractmethod
    def config_class(self) -> "type[AKDConfig]":
        """Return the class of the training arguments."""

    @abstractmethod
    def trainer_class(self) -> "type[AKDTrainer]":
        """Return the class of the trainer."""

    def argument_types(self) -> tuple[type, ...]:
        """Return the dataclasses of a recipe's fields: data, training, student, and those of the method."""
        from trl import ModelConfig

        from .arguments import AKDScriptArguments, BenchmarkArguments

        return AKDScriptArguments, self.config_class(), ModelConfig, BenchmarkArguments

    def check(self, *arguments: Any) -> None:  # noqa: B027, as most methods check in their configurations
        """Check one instance of each of `argument_types` before a model is loaded.

        Raises:
            ValueError: If they contradict each other.
        """

    def base_model(self, student: str, revision: str) -> tuple[str, str]:
        """Return name and revision of the model whose configuration has the student's vocabulary.

        By default, this is the student. A method whose student may be an adapter returns the base model of the
        adapter.
        """
        return student, revision

    def adapt_dry_run(self, dry_run: "DryRun") -> None:  # noqa: B027
        """Replace values of the recipe that a dry run cannot use, before models and data are replaced."""

    def dry_run_rows(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the rows for a dry run, given those of the recipe or, if they are not local, built-in ones."""
        return rows

    def quickstart(self) -> Quickstart | None:
        """Return the example that `trl-akd quickstart --method NAME` runs, or `None`."""
        return None

    def train(self, *arguments: Any, recipe: Recipe | None = None) -> None:
        """Train, save and, if requested, evaluate and push to the Hub.

        Args:
            arguments:
                One instance of each of `argument_types`.
            recipe (`Recipe`, *optional*):
                The recipe as it is run, with the values of flags, for the model card.

        Raises:
            UserError: If an argument is wrong, before training, or if the logits of a model are not finite, during
            training.
        """
        from .training import distill

        distill(self, *arguments, recipe=recipe)

    def main(self, argv: list[str] | None = None) -> None:
        """Run the command with `argv`, by default the arguments of the process.

        Raises:
            UserError: If a value, a file or the machine does not allow the run.
            SystemExit: With the status of a launched process that failed.
        """
        with ExitStack() as stack:
            with user_errors():
                docstring = sys.modules[type(self).__module__].__doc__
                line = CommandLine.read(self.name, self.argument_types, argv, docstring)
                if line.values.dry_run:
                    from .dry_run import dry_run

                    line.values, line.arguments = stack.enter_context(dry_run(self, line.values))
                if line.launcher is not None:
                    line.launch(self.name)
                    return
                check_processes(use_cpu=line.values.use_cpu, deepspeed=line.values.deepspeed is not None)
                arguments = line.dataclasses()
            self.train(*arguments, recipe=line.as_run())


def find_methods() -> dict[str, EntryPoint]:
    """Return the entry points of all methods by name, those of this package first."""
    own = {name: EntryPoint(name, f"{__package__}.{name}:METHOD", _GROUP) for name in _OWN}
    return own | {found.name: found for found in entry_points(group=_GROUP) if found.name not in own}


def load_method(name: str) -> Method:
    """Return the method with that name.

    Raises:
        UserError: If it cannot be imported from the package that registers it.

    Example:

    ```python
    >>> load_method("akd").config_class().__name__
    'AKDConfig'

    ```
    """
    found = find_methods()[name]
    try:
        method: Method = found.load()
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"the method {name!r} cannot be loaded from {found.module} ({error}); update or remove the package that "
            "provides it."
        ) from error
    return method
