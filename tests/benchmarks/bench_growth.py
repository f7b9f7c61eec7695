"""Growth of CPU time and peak memory with the size of each part of the work.

    python -m tests.benchmarks.bench_growth [--full] [--only rows results] [--sizes 1000 4000] [--json PATH]

Every measurement runs in a separate process, with one thread. The time is in CPU seconds, because other programs may
share the cores; training steps report the fastest one. The memory is the growth of the anonymous resident memory to
its peak, without libraries and without files that are mapped. The exponent is the slope of the logarithm of time or
memory over that of the size, between the last two sizes: 1 is linear, 0 constant. `--full` has the large sizes, and
`--sizes` replaces the sizes of all parts. The table is that of the section "Growth" in docs/benchmarks.md. No test
depends on the numbers.
"""

import argparse
import json
import math
import os
import random
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORDS = [f"word{number}" for number in range(1000)]
WEIGHTS = [1 / (rank + 1) for rank in range(len(WORDS))]  # as in natural language (Zipf)


@dataclass
class Cost:
    """CPU seconds, and increase of the anonymous memory in bytes."""

    seconds: float = 0.0
    bytes: int = 0


@contextmanager
def measured() -> Iterator[Cost]:
    """Measure the cost of a block, with that of the child processes that it waits for."""
    cost, before, stop = Cost(), anonymous_bytes(), threading.Event()

    def watch() -> None:
        while True:
            cost.bytes = max(cost.bytes, anonymous_bytes() - before)
            if stop.wait(0.02):
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = cpu_seconds()
    try:
        yield cost
    finally:
        cost.seconds = cpu_seconds() - start
        stop.set()
        watcher.join()


def cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))


def tokens(size: int) -> Cost:
    """One fused loss, forward and backward, with a vocabulary of 8,192."""
    return loss(size, 8192)


def vocabulary(size: int) -> Cost:
    """One fused loss, forward and backward, with 512 tokens."""
    return loss(512, size)


def loss(tokens: int, vocabulary: int) -> Cost:
    import torch

    from trl_akd.losses import DenseSignal, LMHead, fused_divergence

    torch.set_num_threads(1)

    def run(tokens: int) -> None:
        hidden, weight = torch.randn(tokens, 128), torch.randn(vocabulary, 128)
        teacher = DenseSignal(torch.randn(tokens, 256), LMHead(torch.randn(vocabulary, 256)))
        weights = torch.full((tokens,), 1 / tokens)
        head = LMHead(weight.requires_grad_())
        found = fused_divergence(hidden.requires_grad_(), head, teacher, token_weights=weights, knobs={"beta": 0.3})
        found.loss.backward()

    run(8)
    with measured() as cost:
        run(tokens)
    return cost


def batch(size: int) -> Cost:
    """One AKD step of rows of 128 tokens, with a vocabulary of 4,096."""
    return step(rows=size)


def accumulation(size: int) -> Cost:
    """One AKD step of micro-batches of two rows."""
    return step(rows=2, accumulation=size)


def processes(size: int) -> Cost:
    """One AKD step under DDP with four rows in each process: the slowest one's time, the largest memory."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    workers = []
    for rank in range(size):
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
        places = {name: str(value) for name, value in world.items()} if size > 1 else {}
        environment = os.environ | places | {"MASTER_ADDR": "localhost", "ACCELERATE_USE_CPU": "true"}
        workers.append(subprocess.Popen(_command("step", 4), env=environment, stdout=subprocess.PIPE, text=True))
    found = [Cost(**json.loads(worker.communicate()[0].splitlines()[-1])) for worker in workers]
    return Cost(max(cost.seconds for cost in found), max(cost.bytes for cost in found))


def step(rows: int, accumulation: int = 1) -> Cost:
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback

    from tests import tiny
    from trl_akd import AKDConfig, AKDTrainer

    torch.set_num_threads(1)
    length, vocabulary, times = 128, 4096, []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            times.append(-time.process_time())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            times[-1] += time.process_time()

    ids = torch.randint(256, (8 * rows * accumulation, length), generator=torch.Generator().manual_seed(0)).tolist()
    trainer = AKDTrainer(
        tiny.model(vocabulary=vocabulary, hidden=128),
        tiny.model("qwen2", vocabulary=vocabulary, hidden=256),
        AKDConfig(
            tempfile.mkdtemp(),
            max_steps=4,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=accumulation,
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            report_to="none",
            save_strategy="no",
            optim="sgd",
            max_length=length,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"input_ids": ids, "labels": ids}),
        processing_class=tiny.tokenizer(),
        teacher_tokenizer=tiny.tokenizer(),
        callbacks=[Clock()],
    )
    with measured() as cost:
        trainer.train()
    cost.seconds = min(times[1:])
    return cost


def rows(size: int) -> Cost:
    """Tokenization of a dataset of rows with about 30 tokens."""
    from datasets import Dataset, disable_progress_bars

    from tests import tiny
    from trl_akd.data.tokenization import tokenize_dataset

    disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        with open(path, "w", encoding="utf-8") as file:
            for number in range(size):
                file.write(json.dumps({"prompt": f"add {number:07d}", "completion": "return a + b"}) + "\n")
        dataset = Dataset.from_json(str(path), cache_dir=folder)
        tokenizer = tiny.tokenizer()
        tokenize_dataset(dataset.select(range(10)), tokenizer, max_length=64)
        with measured() as cost:
            tokenize_dataset(dataset, tokenizer, max_length=64)
    return cost


def packing(size: int) -> Cost:
    """Packing of tokenized rows of 30 tokens into rows of up to 256."""
    from datasets import Dataset, disable_progress_bars

    from trl_akd.data.tokenization import pack

    disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        dataset = Dataset.from_generator(_tokenized, gen_kwargs={"size": size}, cache_dir=folder)
        with measured() as cost:
            pack(dataset, 256)
    return cost


def _tokenized(size: int) -> Iterator[dict[str, list[int]]]:
    """Yield different rows of 30 tokens, of which half are targets."""
    for number in range(size):
        ids = [int(digit) for digit in f"{number:08d}"] + [number % 50] * 22
        yield {"input_ids": ids, "labels": [-100] * 15 + ids[15:]}


def cache_rows(size: int) -> Cost:
    """Rows of which a teacher cache is made, with tiny models."""
    from datasets import Dataset, disable_progress_bars

    from tests import tiny
    from trl_akd import AKDConfig, AKDTrainer
    from trl_akd.akd.cache_creation import create_cache

    disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        trainer = AKDTrainer(
            tiny.model(),
            tiny.model("qwen2"),
            AKDConfig(
                folder,
                use_cpu=True,
                bf16=False,
                report_to="none",
                max_length=64,
                per_device_eval_batch_size=64,
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_generator(_tokenized, gen_kwargs={"size": size}, cache_dir=folder),
            processing_class=tiny.tokenizer(),
            teacher_tokenizer=tiny.tokenizer(),
        )
        with measured() as cost:
            create_cache(trainer, Path(folder) / "cache", shard_mb=1)
    return cost


def cache_check(size: int) -> Cost:
    """Comparison of a dataset with a teacher cache of its rows."""
    teacher_rows, folder = _teacher_cache(size)
    with folder, measured() as cost:
        _open_cache(folder).uncached(teacher_rows())
    return cost


def cache_reads(size: int) -> Cost:
    """Signals of 200 batches of eight rows, from a teacher cache of this number of rows."""
    import torch

    teacher_rows, folder = _teacher_cache(size)
    with folder:
        teacher = _open_cache(folder)
        known = [
            torch.from_numpy(row.tokens.astype("int64")) for row, _ in zip(teacher_rows(), range(64), strict=False)
        ]
        batches = [torch.stack(random.Random(number).choices(known, k=8)) for number in range(200)]
        with measured() as cost:
            for ids in batches:
                teacher.forward({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
                teacher.signal(None)
    return cost


def _teacher_cache(size: int) -> tuple[Callable[[], Iterator[Any]], Any]:
    """Write a cache of rows with 16 targets, in shards of 65,536 rows."""
    import numpy as np
    import torch

    from trl_akd.losses import LMHead
    from trl_akd.teachers.cache_files import CachedRow, Manifest, write_head, write_manifest, write_shard

    is_target = np.arange(24) >= 7
    is_target[-1] = False

    def make(start: int, stop: int) -> Iterator[Any]:
        for number in range(start, stop):
            digits = [int(digit) for digit in f"{number:08d}"]
            yield CachedRow(np.array([*digits, *range(16)], dtype=np.int32), is_target)

    folder, per_shard = tempfile.TemporaryDirectory(), 65_536
    targets = int(is_target.sum())
    manifest = Manifest(
        kind="hidden", dtype="bfloat16", top_k=None, temperature=1.0, vocabulary_size=64, hidden_size=8, teacher="t",
        teacher_revision=None, teacher_weights=None, tokenizer="", rows=size, tokens=size * targets, rows_digest="",
        shards=math.ceil(size / per_shard),
    )  # fmt: skip
    write_head(Path(folder.name), LMHead(torch.zeros(64, 8)))
    for number in range(manifest.shards):
        written = list(make(number * per_shard, min((number + 1) * per_shard, size)))
        hidden = torch.zeros(len(written) * targets, 8, dtype=torch.bfloat16)
        write_shard(Path(folder.name), manifest, number, written, {"hidden": hidden})
    write_manifest(Path(folder.name), manifest)
    return lambda: make(0, size), folder


def _open_cache(folder: Any) -> Any:
    from trl_akd.teachers import CachedTeacher

    return CachedTeacher(folder.name)


def ledger(size: int) -> Cost:
    """Lines appended to a ledger, 100 at a time, and read one by one."""
    from trl_akd.ledger import Ledger

    line = {"prompt": "p" * 200, "completions": ["c" * 200]}
    with tempfile.TemporaryDirectory() as folder, measured() as cost:
        with Ledger(Path(folder) / "ledger.jsonl", {"model": "m"}) as book:
            for start in range(0, size, 100):
                book.append([{"id": start + number, **line} for number in range(min(100, size - start))])
            assert sum(1 for _ in book.read()) == size
    return cost


def results(size: int) -> Cost:
    """Samples of an evaluation, ten per problem: written, judged by a rule, summarized, and evaluated again."""
    from trl_akd.evaluation.benchmarks import Benchmark
    from trl_akd.evaluation.problems import Problem
    from trl_akd.evaluation.results import summarize, write_eval_results, write_results
    from trl_akd.evaluation.samples import Sample, SampleFile
    from trl_akd.evaluation.verdicts import VerdictFile
    from trl_akd.execution import ExecutionResult

    class Executor:
        def stream(self, pairs: Iterator[Any], fail_fast: bool) -> Iterator[tuple[int, ExecutionResult]]:
            for number, _ in enumerate(pairs):
                yield number, outcomes[number % 2]

    outcomes = ExecutionResult("passed"), ExecutionResult("failed", "AssertionError", stage="test", ending="exception")
    problems = tuple(Problem(f"p/{number}", "p", "assert True") for number in range(size // 10))
    benchmark = Benchmark("growth", problems, "memory", "0")
    executor: Any = Executor()
    with tempfile.TemporaryDirectory() as name, measured() as cost:
        folder = Path(name)
        with SampleFile(folder, {"model": "m"}) as file:
            for problem in problems:
                texts = (f"{problem.task_id} {number} {'s' * 200}" for number in range(10))
                file.append([Sample(problem.task_id, text, text, number) for number, text in enumerate(texts)])
        for _ in range(2):
            with SampleFile(folder, {"model": "m"}) as file:
                samples = file.first([problem.task_id for problem in problems], 10)
            with VerdictFile(folder / "verdicts.jsonl", {}) as kept:
                verdicts = kept.run(problems, samples, executor, progress=False)
            found = summarize(benchmark, verdicts, [1, 10])
            write_results(folder, found)
            write_eval_results(folder, found | {"model": {"name": "m"}}, verdicts)
    return cost


def programs(size: int) -> Cost:
    """Programs run in the sandbox by two workers."""
    from trl_akd.execution import CodeExecutor

    pairs = ((f"def f(x):\n    return x + {number}\n", f"assert f(1) == {number + 1}") for number in range(size))
    with measured() as cost, CodeExecutor(workers=2) as executor:
        assert sum(result.passed for _, result in executor.stream(pairs)) == size
    return cost


def questions(size: int) -> Cost:
    """Questions of IterKD with words as frequent as in natural language, compared with all before them."""
    source = random.Random(0)
    return _novelty([f"{number} " + " ".join(source.choices(WORDS, WEIGHTS, k=20)) for number in range(size)])


def similar_questions(size: int) -> Cost:
    """Questions of IterKD that share the same 13 of 21 words."""
    wording = "Write a python function that takes a list of numbers and returns the"
    return _novelty([f"{wording} {' '.join(f'{number}x{word}' for word in range(8))}" for number in range(size)])


def reordered_questions(size: int) -> Cost:
    """Questions of IterKD that have the same 20 words in other orders, the worst case."""
    source = random.Random(0)
    return _novelty([" ".join(source.sample(WORDS[:20], k=20)) for _ in range(size)])


def _novelty(texts: list[str]) -> Cost:
    from trl_akd.iterkd.cycle.novelty import NoveltyIndex, filter_novel
    from trl_akd.iterkd.cycle.records import Question

    asked = [Question(str(number), text) for number, text in enumerate(texts)]
    with measured() as cost:
        filter_novel(asked, NoveltyIndex())
    return cost


def cycles(size: int) -> Cost:
    """A run of IterKD with eight questions in each cycle, a teacher by rule and a tiny student."""
    from tests.iterkd import cycle_world
    from trl_akd.execution import CodeExecutor

    with tempfile.TemporaryDirectory() as name, CodeExecutor(workers=1) as executor:
        folder = Path(name)
        cycle_world.prepare(folder)
        teacher = cycle_world.RuleTeacher()
        cycle_world.trainer(folder, folder / "warm", teacher, executor, cycles=1).train()
        trainer = cycle_world.trainer(folder, folder / "run", teacher, executor, cycles=size)
        with measured() as cost:
            trainer.train()
    return cost


# What grows -> sizes by default, and further ones with --full.
GROWTH: dict[Callable[[int], Cost], tuple[list[int], list[int]]] = {
    tokens: ([512, 1024, 2048], [4096, 8192]),
    vocabulary: ([4096, 8192, 16_384, 32_768], [65_536, 131_072]),
    batch: ([4, 8, 16], [32, 64]),
    accumulation: ([2, 4, 8], [16]),
    processes: ([1, 2], []),
    rows: ([1000, 4000, 16_000], [64_000, 250_000, 1_000_000]),
    packing: ([1000, 4000, 16_000], [64_000, 250_000, 1_000_000]),
    cache_rows: ([1000, 4000, 16_000], [64_000]),
    cache_check: ([1000, 10_000, 50_000], [250_000, 1_000_000]),
    cache_reads: ([1000, 10_000, 50_000], [250_000, 1_000_000]),
    ledger: ([1000, 10_000, 50_000], [250_000, 1_000_000]),
    results: ([1000, 5000, 25_000], [100_000, 1_000_000]),
    programs: ([250, 500, 1000], [10_000, 100_000]),
    questions: ([250, 500, 1000], [5000, 20_000]),
    similar_questions: ([250, 500, 1000], [5000, 20_000]),
    reordered_questions: ([250, 500, 1000], [2000]),
    cycles: ([1, 2, 4], [8, 16]),
}


def exponents(sizes: list[int], values: list[float]) -> str:
    """Return the slope between the last two points in logarithms."""
    if len(values) < 2 or min(values[-2:]) <= 0:
        return "-"
    return f"{math.log(values[-1] / values[-2]) / math.log(sizes[-1] / sizes[-2]):.2f}"


def table(found: dict[str, dict[int, Cost]]) -> str:
    """Return a Markdown table of the first and the last size, and the exponents between the last two."""
    lines = ["| what grows | sizes | CPU s | exponent | MiB | exponent |", "|---|---|---|---|---|---|"]
    about = {function.__name__: (function.__doc__ or "").splitlines()[0].rstrip(".") for function in GROWTH}
    for name, costs in found.items():
        sizes, seconds = list(costs), [cost.seconds for cost in costs.values()]
        mebibytes = [cost.bytes / 2**20 for cost in costs.values()]
        cells = [f"`{name}`: {about[name]}", _ends(sizes, ","), _ends(seconds, ".3g"), exponents(sizes, seconds)]
        cells += [_ends(mebibytes, ".1f"), exponents(sizes, mebibytes)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _ends(values: Sequence[float], form: str) -> str:
    return " to ".join(format(value, form) for value in dict.fromkeys([values[0], values[-1]]))


def _command(name: str, size: int) -> list[str]:
    return [sys.executable, "-m", "tests.benchmarks.bench_growth", "--measure", name, "--sizes", str(size)]


def main() -> None:
    names = [function.__name__ for function in GROWTH]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="also the large sizes")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="parts to measure")
    parser.add_argument("--sizes", nargs="+", type=int, help="sizes in place of the usual ones")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--measure", choices=[*names, "step"], help="only print the costs of one part, as JSON")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    os.environ["HF_ALLOW_CODE_EVAL"] = "1"  # of the programs in this file
    if options.measure:
        for size in options.sizes:
            print(json.dumps(vars(globals()[options.measure](size))))
        return
    found: dict[str, dict[int, Cost]] = {}
    for function, (small, large) in GROWTH.items():
        if function.__name__ not in options.only:
            continue
        costs = found[function.__name__] = {}
        for size in options.sizes or [*small, *(large if options.full else [])]:
            command = _command(function.__name__, size)
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            costs[size] = Cost(**json.loads(output.splitlines()[-1]))
            print(f"{function.__name__} {size:,}: {costs[size]}", file=sys.stderr, flush=True)
    print(table(found))
    if options.json:
        numbers = {name: {size: vars(cost) for size, cost in costs.items()} for name, costs in found.items()}
        options.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
