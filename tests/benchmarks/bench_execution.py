"""Benchmark of the executor: programs per second compared with `evaluate`'s code_eval, first verdict, caller's memory.

    python -m tests.benchmarks.bench_execution [--repeats 5] [--workers 3] [--tiny 20000] [--json PATH]

The metric's script is on the Hub and not in the wheel, so it is reimplemented here: a pool of threads, each of which
starts a Manager and forks a process for every program from a parent that has imported `evaluate` and `datasets`; the
child works in a temporary folder, sets functions that could harm its parent to None, discards output, and runs
candidate and test as one text under an alarm; "passed" goes into the Manager's list. Every measurement runs in a
separate process, and the implementations take turns. The executor runs each solution five times, and as many programs
that compute nothing, which show its own cost. Its time includes its creation and its end; its code is compiled to byte
code before, as by pip when it installs a package. Processor time is that of the caller and of all its descendants;
unlike the rate, it is comparable between runs on a machine with other processes. Stolen time is what the processors of
a virtual machine wanted to run and could not. No test depends on the speed; it is checked that all programs pass.
"""

import argparse
import builtins
import compileall
import contextlib
import gzip
import io
import json
import multiprocessing
import os
import platform
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from trl_akd.execution import CodeExecutor

HUMAN_EVAL = Path(__file__).parents[3] / "shared" / "data" / "humaneval" / "HumanEval.jsonl.gz"
CODE = Path(__file__).parents[2] / "trl_akd" / "execution"
RIVAL = "code_eval"
RIVAL_WORKERS = (1, 2, 4)
SAMPLES = 5
TINY = "tiny programs"
TIMEOUT = 3.0
DISABLED = {
    os: "kill system putenv remove removedirs rmdir fchdir setuid fork forkpty killpg rename renames truncate replace "
    "unlink fchmod fchown chmod chown chroot lchown getcwd chdir",
    shutil: "rmtree move chown",
    subprocess: "Popen",
    builtins: "exit quit",
}


def reference_programs() -> list[tuple[str, str]]:
    if not HUMAN_EVAL.is_file():
        raise SystemExit("This benchmark needs ../shared/data/humaneval/HumanEval.jsonl.gz.")
    rows = map(json.loads, gzip.decompress(HUMAN_EVAL.read_bytes()).splitlines())
    return [
        (row["prompt"] + row["canonical_solution"], f"{row['test']}\ncheck({row['entry_point']})\n") for row in rows
    ]


def tiny_programs(count: int) -> Iterator[tuple[str, str]]:
    """Yield programs that compute nothing."""
    return ((f"def number():\n    return {n}\n", f"assert number() == {n}\n") for n in range(count))


def run_rival(programs: list[tuple[str, str]], workers: int) -> int:
    """Evaluate all programs as code_eval does, and count those that pass."""
    with ThreadPoolExecutor(workers) as pool:
        return sum(pool.map(rival_judges, [f"{candidate}\n{test}" for candidate, test in programs]))


def rival_judges(program: str) -> bool:
    fork = multiprocessing.get_context("fork")
    with fork.Manager() as manager:
        verdicts = manager.list()
        process = fork.Process(target=rival_executes, args=(program, verdicts))
        process.start()
        process.join(TIMEOUT + 1)
        if process.is_alive():
            process.kill()
        return list(verdicts) == ["passed"]


def rival_executes(program: str, verdicts: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["OMP_NUM_THREADS"] = "1"
        remembered = {(module, name): getattr(module, name, None) for module, name in disabled()}
        for module, name in remembered:
            setattr(module, name, None)
        try:
            silence = io.StringIO()
            with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence), alarm(TIMEOUT):
                exec(program, {})
            verdicts.append("passed")
        except BaseException as error:
            verdicts.append(f"failed: {error}")
        for (module, name), value in remembered.items():
            setattr(module, name, value)
        os.chdir("/")


def disabled() -> Iterator[tuple[Any, str]]:
    for module, names in DISABLED.items():
        for name in names.split():
            yield module, name


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise TimeoutError

    signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.signal(signal.SIGALRM, ring)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def run_ours(programs: list[tuple[str, str]], workers: int, isolation: str) -> int:
    with CodeExecutor(workers, TIMEOUT, isolation=isolation, allow_code_execution=True) as executor:
        return sum(result.passed for result in executor.run(programs))


def contenders(workers: int) -> dict[str, Callable[[list[tuple[str, str]]], int]]:
    ours = {
        f"{isolation}, {workers} workers{suffix}": lambda programs, isolation=isolation: run_ours(
            programs, workers, isolation
        )
        for isolation in ("auto", "process")
        for suffix in ("", f", {TINY}")
    }
    rivals = {
        f"{RIVAL}, {count} workers": lambda programs, count=count: run_rival(programs, count)
        for count in RIVAL_WORKERS
    }
    return ours | rivals


def rate(contender: str, workers: int) -> list[float]:
    """Measure the programs per second, and the milliseconds of processor time per program, of one executor."""
    programs = reference_programs()
    if contender.startswith(RIVAL):
        import datasets  # noqa: F401
        import evaluate  # noqa: F401
    else:
        programs *= SAMPLES
    if contender.endswith(TINY):
        programs = list(tiny_programs(len(programs)))
    start, used = time.perf_counter(), processor_time()
    passed = contenders(workers)[contender](programs)
    seconds, used = time.perf_counter() - start, processor_time() - used
    if passed != len(programs):
        raise ArithmeticError(f"{contender}: only {passed} of {len(programs)} programs pass")
    return [len(programs) / seconds, 1000 * used / len(programs)]


def processor_time() -> float:
    """Return the seconds of processor time of this process and of its descendants that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def stolen_time() -> float:
    """Return the seconds that the processors of this virtual machine could not run since its start."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return int(fields[8]) / os.sysconf("SC_CLK_TCK")


def first_verdict(isolation: str) -> list[float]:
    """Measure the milliseconds from the creation of an executor to its first verdict in this process."""
    start = time.perf_counter()
    with CodeExecutor(1, TIMEOUT, isolation=isolation, allow_code_execution=True) as executor:
        assert executor.run([("def one():\n    return 1\n", "assert one() == 1\n")])[0].passed
        return [1000 * (time.perf_counter() - start)]


def caller_memory(programs: int, workers: int) -> dict[int, int]:
    """Measure the memory of this process in KiB after each quarter of the tiny programs."""
    held = {}
    with CodeExecutor(workers, TIMEOUT, allow_code_execution=True) as executor:
        for count, (_, result) in enumerate(executor.stream(tiny_programs(programs)), 1):
            assert result.passed, result
            if count in (100, *(programs * quarter // 4 for quarter in (1, 2, 3, 4))):
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                held[count] = pages * os.sysconf("SC_PAGE_SIZE") // 1024
    return held


def elsewhere(task: str, workers: int) -> list[float]:
    command = [sys.executable, "-m", "tests.benchmarks.bench_execution", "--task", task, "--workers", str(workers)]
    numbers: list[float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return numbers


def measure(tasks: list[str], repeats: int, workers: int) -> dict[str, list[list[float]]]:
    measured: dict[str, list[list[float]]] = {task: [] for task in tasks}
    for turn in range(repeats):
        shift = turn % len(tasks)
        for task in tasks[shift:] + tasks[:shift]:
            measured[task].append(elsewhere(task, workers))
            print(f"turn {turn}: {task}: {measured[task][-1]}", file=sys.stderr)
    return measured


def table(measured: dict[str, list[list[float]]]) -> str:
    """Return a Markdown table of programs per second, times per program, and the speed-up over code_eval."""
    rates = {name: [rate for rate, _ in turns] for name, turns in measured.items()}
    best = max(statistics.median(turns) for name, turns in rates.items() if name.startswith(RIVAL))
    rows = [
        "| executor | programs per second, median | range | ms per program | processor time, ms per program "
        "| speed-up over the best code_eval |",
        "|---|---|---|---|---|---|",
    ]
    for name, turns in rates.items():
        median, used = statistics.median(turns), statistics.median(used for _, used in measured[name])
        spread = f"{min(turns):.1f} to {max(turns):.1f}"
        speed_up = "" if name.endswith(TINY) else f"{median / best:.2f}"  # code_eval runs other programs
        rows.append(f"| {name} | {median:.1f} | {spread} | {1000 / median:.1f} | {used:.1f} | {speed_up} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)) + 1, help="those of CodeExecutor")
    parser.add_argument("--tiny", type=int, default=20_000, help="programs while the caller's memory is watched")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--task", help="only print one measurement: a contender's rate, or `first` and a level")
    arguments = parser.parse_args()
    if arguments.task:
        kind, _, isolation = arguments.task.partition(" ")
        print(json.dumps(first_verdict(isolation) if kind == "first" else rate(arguments.task, arguments.workers)))
        return
    compileall.compile_dir(CODE, quiet=1)
    start, stolen = time.perf_counter(), stolen_time()
    rates = measure(list(contenders(arguments.workers)), arguments.repeats, arguments.workers)
    stolen = (stolen_time() - stolen) / (time.perf_counter() - start)
    starts = measure(["first auto", "first process"], 3 * arguments.repeats, arguments.workers)
    firsts = {name: [milliseconds for (milliseconds,) in turns] for name, turns in starts.items()}
    memory = caller_memory(arguments.tiny, arguments.workers)
    load = " ".join(f"{load:.1f}" for load in os.getloadavg())
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {load}, {stolen:.1%} of one core stolen"
    print(f"Python {platform.python_version()}, {machine}\n\n{table(rates)}\n")
    for name, turns in firsts.items():
        print(f"{name} verdict: {statistics.median(turns):.0f} ms ({min(turns):.0f}-{max(turns):.0f})")
    print("caller's memory:", ", ".join(f"{kib} KiB after {count}" for count, kib in memory.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps({"rates": rates, "first": firsts, "memory": memory}, indent=2) + "\n")


if __name__ == "__main__":
    main()
