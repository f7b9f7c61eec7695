"""Run every benchmark with the sizes that `docs/benchmarks.md` reports."""

import runpy
import sys

RUNS = [
    "bench_losses --tokens 1024 --vocab 49152",
    "bench_losses --tokens 2048 --vocab 152064 --student_hidden 896 --teacher_hidden 3584 --repeats 3",
    "bench_training",
    "bench_cache loss",
    "bench_cache steps --rounds 4",
    "bench_codeplan",
    "bench_iterkd",
    "bench_profile",
    "bench_execution",
]

for run in RUNS:
    module, *flags = run.split()
    print(f"\n### {run}\n", flush=True)
    sys.argv = [module, *flags]
    runpy.run_module(f"{__package__}.{module}", run_name="__main__", alter_sys=True)
