r"""`trl-akd ranker`: train a small model that ranks programs by correctness, and rank programs with it.

```bash
trl-akd ranker data --evaluations outputs/evaluation/apps/student --benchmark apps
trl-akd ranker train --model_name_or_path microsoft/codebert-base --test_size 0.1 \
    --output_dir outputs/ranker/model
trl-akd ranker rank --ranker outputs/ranker/model --benchmark humaneval \
    --samples outputs/evaluation/humaneval/student/samples.jsonl --output ranked.jsonl --keep 1
trl-akd evaluate --samples ranked.jsonl --benchmark humaneval --allow_code_execution
```
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ledger import read_json_lines, write_json_lines
from .command import Action, check_output, start_action
from .errors import run

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from ..codeplan.ranker_config import RankerBenchmark, RankerData, RankerModel, RankerRanking
    from ..evaluation.benchmarks import Benchmark

__all__ = ["ACTIONS", "build_data", "main", "rank", "train"]


def main(argv: list[str] | None = None) -> None:
    """Run the action named first in `argv`, by default the arguments of the process."""
    start_action("ranker", ACTIONS, str(__doc__), argv)


def build_data(benchmark: "RankerBenchmark", config: "RankerData") -> None:
    """Write training rows for a ranker from the samples and verdicts of evaluations.

    Raises:
        FileNotFoundError: If a folder lacks one of the files.
        ValueError: If the files are for another benchmark.
    """
    from ..codeplan.ranker import ranker_rows

    check_output("output", config.output, benchmark=benchmark.benchmark, benchmark_path=benchmark.benchmark_path)
    for folder in config.evaluations or ():
        for file in ("samples.jsonl", "verdicts.jsonl"):
            check_output("output", config.output, evaluations=f"{folder}/{file}")
    problems = _texts(_load(benchmark))
    remedy = "give folders that `trl-akd evaluate` wrote"
    rows = [
        row
        for folder in map(Path.expanduser, map(Path, config.evaluations or ()))
        for row in ranker_rows(
            problems,
            _read(folder / "samples.jsonl", remedy, task_id=(str, int), solution=str),
            _read(folder / "verdicts.jsonl", remedy, task_id=(str, int), sample=int, label=dict),
        )
    ]
    distinct = {(row["id"], row["program"]): row for row in rows}
    write_json_lines(Path(config.output).expanduser(), distinct.values())
    counts = Counter(row["label"] for row in distinct.values())
    print(
        f"{len(distinct)} programs in {config.output}: {', '.join(f'{n} {name}' for name, n in counts.most_common())}."
    )


def train(config: "RankerModel", args: "TrainingArguments") -> None:
    """Train a ranker and save it with its tokenizer.

    Raises:
        OSError: If there is no such model or file.
        ValueError: If there are too few rows, or a checkpoint would be replaced or is missing.
    """
    from transformers import AutoModelForSequenceClassification, set_seed

    from ..codeplan.ranker import RANKER_LABELS, make_ranker_trainer
    from ..text_pairs import hold_out
    from .models import read_model
    from .training import find_checkpoint, train_and_save

    check_output("output_dir", str(args.output_dir), model_name_or_path=config.model_name_or_path)
    checkpoint = find_checkpoint(args)
    columns: dict[str, Any] = {"problem": str, "program": str, "label": str}
    if config.test_size is not None:
        columns["id"] = (str, int)
    rows = list(_read(Path(config.train_file).expanduser(), "give the file of `trl-akd ranker data`", **columns))
    if not rows:
        raise ValueError(f"{config.train_file} has no rows; give the file of `trl-akd ranker data`.")
    held_out: list[dict[str, Any]] = []
    if config.test_size is not None:
        rows, held_out = hold_out(rows, config.test_size, args.seed)
    source = {"revision": config.model_revision, "trust_remote_code": False}
    tokenizer, _ = read_model("model_name_or_path", str(config.model_name_or_path), source)
    set_seed(args.seed)  # before the classification head is drawn
    trainer = make_ranker_trainer(
        AutoModelForSequenceClassification.from_pretrained(
            config.model_name_or_path,
            num_labels=len(RANKER_LABELS[config.labels]),
            ignore_mismatched_sizes=True,
            **source,
        ),
        tokenizer,
        args,
        rows,
        held_out or None,
        labels=config.labels,
        max_length=config.max_length,
    )
    train_and_save(trainer, checkpoint, trainer.evaluate if held_out else None)


def rank(benchmark: "RankerBenchmark", config: "RankerRanking") -> None:
    """Write the programs of each problem in the order of a ranker.

    Raises:
        OSError: If there is no such ranker or file.
        ValueError: If a program belongs to no problem of the benchmark.
    """
    from ..codeplan.ranker import Ranker, rank_samples
    from ..evaluation.prompts import Prompting
    from ..evaluation.samples import read_programs
    from .models import read_model

    assert config.ranker is not None and config.samples is not None
    check_output(
        "output",
        config.output,
        samples=config.samples,
        benchmark=benchmark.benchmark,
        benchmark_path=benchmark.benchmark_path,
    )
    loaded = _load(benchmark)
    samples = list(read_programs(Path(config.samples).expanduser(), loaded, Prompting("completion").program))
    if not samples:
        raise ValueError(f"{config.samples} has no samples; give the `samples.jsonl` of `trl-akd evaluate`.")
    read_model("ranker", config.ranker, {"trust_remote_code": False})
    ranker = Ranker.from_pretrained(config.ranker, batch_size=config.batch_size)
    ranked = rank_samples(ranker, _texts(loaded), samples, keep=config.keep)
    write_json_lines(Path(config.output).expanduser(), ranked)
    print(f"{len(ranked)} of {len(samples)} programs, best first for each problem: {config.output}.")


def _read(path: Path, remedy: str, **columns: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSON Lines file that have values of these types in these columns.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line has not; the message has its number and the remedy.
    """
    for row, where in read_json_lines(path):
        for name, kind in columns.items():
            if not isinstance(row.get(name), kind):
                raise ValueError(f"{where} has the value {row.get(name)!r:.80} in the column `{name}`; {remedy}.")
        yield row


def _load(config: "RankerBenchmark") -> "Benchmark":
    from ..evaluation.benchmarks import load_benchmark

    return load_benchmark(config.benchmark or "", config.benchmark_path)


def _texts(benchmark: "Benchmark") -> dict[str, str]:
    """Return the problems' texts by `task_id`."""
    return {problem.task_id: problem.instruction for problem in benchmark.problems}


def _data_types() -> tuple[type, ...]:
    from ..codeplan.ranker_config import RankerBenchmark, RankerData

    return RankerBenchmark, RankerData


def _training_types() -> tuple[type, ...]:
    from transformers import TrainingArguments

    from ..codeplan.ranker_config import RankerModel

    return RankerModel, TrainingArguments


def _ranking_types() -> tuple[type, ...]:
    from ..codeplan.ranker_config import RankerBenchmark, RankerRanking

    return RankerBenchmark, RankerRanking


ACTIONS: Mapping[str, Action] = {
    "data": Action(_data_types, build_data, one_process=True),
    "train": Action(_training_types, train),
    "rank": Action(_ranking_types, rank, one_process=True),
}

if __name__ == "__main__":
    raise SystemExit(run(main))
