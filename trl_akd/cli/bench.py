r"""`trl-akd bench`: compare divergences in a world of generated programs, with an exact teacher, on a CPU.

```bash
trl-akd bench --config recipes/micro/bench/reduced.yaml
trl-akd bench --report outputs/bench/reduced/results.json
```

`trl-akd bench cycles` compares variants of IterKD in a world of their own.

```bash
trl-akd bench cycles --config recipes/micro/bench/cycles.yaml
trl-akd bench cycles --report outputs/bench/cycles/results.json
```
"""

import os
import sys
from typing import TYPE_CHECKING

from .command import require_one_process, start
from .errors import run, user_errors

if TYPE_CHECKING:
    from ..micro.bench.config import BenchConfig
    from ..micro.bench.cycles_config import CyclesConfig

__all__ = ["main"]


def main(argv: list[str] | None = None) -> None:
    """Run the command on `argv`, by default the process's arguments."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # there is one run per core
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # without it, DeepSpeed warns that there is no GPU
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["cycles"]:
        start("bench", _cycles_types, _run_cycles, arguments[1:], action="cycles")
    else:
        start("bench", _argument_types, _run, arguments)


def _argument_types() -> tuple[type, ...]:
    from ..micro.bench.config import BenchConfig

    return (BenchConfig,)


def _run(config: "BenchConfig") -> None:
    require_one_process("`trl-akd bench`, which starts its own processes,")
    if config.report is None:
        from ..micro.bench.runs import run_benchmark

        with user_errors((RuntimeError,)):
            results = run_benchmark(config)
        print(f"Results: {results}. Make their page: trl-akd bench --report {results}")
        return
    from ..micro.bench.report import write_page

    print(f"Page: {write_page(config.report, config.page, config.introduction)}")


def _cycles_types() -> tuple[type, ...]:
    from ..micro.bench.cycles_config import CyclesConfig

    return (CyclesConfig,)


def _run_cycles(config: "CyclesConfig") -> None:
    require_one_process("`trl-akd bench cycles`, which starts its own processes,")
    if config.report is None:
        from ..micro.bench.cycles_runs import run_cycles

        with user_errors((RuntimeError,)):
            results = run_cycles(config)
        print(f"Results: {results}. Make their page: trl-akd bench cycles --report {results}")
        return
    from ..micro.bench.cycles_report import write_cycles_page

    print(f"Page: {write_cycles_page(config.report, config.page)}")


if __name__ == "__main__":
    raise SystemExit(run(main))
