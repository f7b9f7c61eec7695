r"""`trl-akd bench`: compare divergences in a world of generated programs, with an exact teacher, on a CPU.

```bash
trl-akd bench --config recipes/micro/bench/reduced.yaml
trl-akd bench --report outputs/bench/reduced/results.json
```

`trl-akd bench cycles` compares variants of IterKD, and `trl-akd bench plans` trainings of CodePLAN, in worlds of their
own.

```bash
trl-akd bench cycles --config recipes/micro/bench/cycles.yaml
trl-akd bench plans --config recipes/micro/bench/plans.yaml
trl-akd bench plans --report outputs/bench/plans/results.json
```

`trl-akd bench models` compares rules with real models: it trains and evaluates them by the commands of this package.

```bash
trl-akd bench models --config recipes/paper/akd/table4_5.yaml --dry_run
trl-akd bench models --config recipes/paper/akd/table4_5.yaml --allow_code_execution
trl-akd bench models --report outputs/bench/akd/table4_5.json
```
"""

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from .command import Action, start
from .errors import run, user_errors

if TYPE_CHECKING:
    from ..bench.config import ModelsConfig
    from ..bench.fields import ExperimentConfig
    from ..bench.pages import Page
    from ..bench.runs import Run
    from ..micro.bench.config import BenchConfig
    from ..micro.bench.cycles_config import CyclesConfig
    from ..micro.bench.plans_config import PlansConfig

__all__ = ["ACTIONS", "main"]

_Config = TypeVar("_Config", bound="ExperimentConfig")


def main(argv: list[str] | None = None) -> None:
    """Run the command on `argv`, by default the process's arguments."""
    arguments = sys.argv[1:] if argv is None else argv
    action = arguments[0] if arguments and arguments[0] in ACTIONS else ""
    if action != "models":
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # there is one run per core
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # without it, DeepSpeed warns that there is no GPU
    start("bench", ACTIONS, arguments[1:] if action else arguments, name=action)


def _argument_types() -> tuple[type, ...]:
    from ..micro.bench.config import BenchConfig

    return (BenchConfig,)


def _run(config: "BenchConfig") -> None:
    """Compare divergences in a world of generated programs."""
    from ..micro.bench.report import BENCH_PAGE
    from ..micro.bench.runs import run_benchmark

    _run_or_report(config, run_benchmark, BENCH_PAGE)


def _cycles_types() -> tuple[type, ...]:
    from ..micro.bench.cycles_config import CyclesConfig

    return (CyclesConfig,)


def _run_cycles(config: "CyclesConfig") -> None:
    """Compare variants of IterKD in a world of generated programs."""
    from ..micro.bench.cycles_report import CYCLES_PAGE
    from ..micro.bench.cycles_runs import run_cycles

    _run_or_report(config, run_cycles, CYCLES_PAGE)


def _plans_types() -> tuple[type, ...]:
    from ..micro.bench.plans_config import PlansConfig

    return (PlansConfig,)


def _run_plans(config: "PlansConfig") -> None:
    """Compare trainings of CodePLAN in a world of generated programs."""
    from ..micro.bench.plans_report import PLANS_PAGE
    from ..micro.bench.plans_runs import run_plans

    _run_or_report(config, run_plans, PLANS_PAGE)


def _models_types() -> tuple[type, ...]:
    from ..bench.config import ModelsConfig

    return (ModelsConfig,)


def _run_models(config: "ModelsConfig") -> None:
    """Compare rules with real models, which are trained and evaluated by the commands of this package."""
    from ..bench.plan import plan, run_models
    from ..bench.report import MODELS_PAGE
    from .resolving import resolve

    if config.report is None:
        runs = plan(config, resolve)
        if config.dry_run:
            _print_plan(runs, Path(config.output_dir))
            return
    _run_or_report(config, lambda config: run_models(config, runs), MODELS_PAGE)


def _print_plan(runs: "Sequence[Run]", folder: Path) -> None:
    """Write the recipes of the runs, and print their commands."""
    distinct = list({planned.key: planned for planned in reversed(runs)}.values())[::-1]
    for planned in distinct:
        print(f"{planned.name}:")
        for arguments in planned.write_recipes(folder):
            print(f"  {shlex.join(['trl-akd', *arguments])}")
    print(f"{len(distinct)} runs, none of which was started. Their recipes: {folder / 'runs'}")


def _run_or_report(config: _Config, execute: Callable[[_Config], Path], page: "Page") -> None:
    if config.report is not None:
        print(f"Page: {page.write(config.report, config.page, config.introduction)}")
        return
    with user_errors((RuntimeError,)):
        results = execute(config)
    print(f"Results: {results}. Make their page: {page.command} --report {results}")


ACTIONS: Mapping[str, Action] = {
    "": Action(_argument_types, _run, one_process=True),
    "cycles": Action(_cycles_types, _run_cycles, one_process=True),
    "plans": Action(_plans_types, _run_plans, one_process=True),
    "models": Action(_models_types, _run_models, one_process=True),
}


if __name__ == "__main__":
    raise SystemExit(run(main))
