"""Configurations of the actions of `trl-akd ranker`."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["RankerBenchmark", "RankerData", "RankerModel", "RankerRanking"]


@dataclass
class RankerBenchmark:
    """
    The benchmark whose problems the programs solve.

    Args:
        benchmark (`str`, *optional*):
            Name of a benchmark, such as `apps` (an unknown name prints all names), or the path of a .jsonl file.
        benchmark_path (`str`, *optional*):
            Local copy of a named benchmark; by default it is downloaded from the Hub.
    """

    benchmark: str | None = None
    benchmark_path: str | None = None

    def __post_init__(self) -> None:
        if not self.benchmark:
            raise ValueError("`benchmark` is missing; set the one that the programs were generated for.")


@dataclass
class RankerData:
    """
    Configuration of `trl-akd ranker data`.

    Args:
        evaluations (`list[str]`, *optional*):
            Folders of `trl-akd evaluate`, with `samples.jsonl` and `verdicts.jsonl`.
        output (`str`, *optional*, defaults to `"outputs/ranker/data.jsonl"`):
            Output file of the rows.
    """

    evaluations: list[str] | None = None
    output: str = "outputs/ranker/data.jsonl"

    def __post_init__(self) -> None:
        if not self.evaluations:
            raise ValueError("`evaluations` is missing; give one or more folders that `trl-akd evaluate` wrote.")


@dataclass
class RankerModel:
    """
    Configuration of `trl-akd ranker train`, besides `TrainingArguments`.

    Args:
        model_name_or_path (`str`, *optional*):
            Model to start from, an encoder such as `microsoft/codebert-base` or a small language model.
        model_revision (`str`, *optional*):
            Branch, tag or commit of the model on the Hub.
        train_file (`str`, *optional*, defaults to `"outputs/ranker/data.jsonl"`):
            Rows from `trl-akd ranker data`.
        labels (`str`, *optional*, defaults to `"error_type"`):
            Classes: `"binary"`, `"ternary"` or `"error_type"`.
        max_length (`int`, *optional*, defaults to `1024`):
            Maximum number of tokens per pair of problem and program, at most the model's number of positions.
        test_size (`float`, *optional*):
            Fraction of the problems to hold out for evaluation.
    """

    model_name_or_path: str | None = None
    model_revision: str | None = None
    train_file: str = "outputs/ranker/data.jsonl"
    labels: Literal["binary", "ternary", "error_type"] = "error_type"
    max_length: int = 1024
    test_size: float | None = None

    def __post_init__(self) -> None:
        if not self.model_name_or_path:
            raise ValueError("`model_name_or_path` is missing; name a model to start from.")
        if self.max_length < 1:
            raise ValueError(f"`max_length` is {self.max_length}; give at least 1.")


@dataclass
class RankerRanking:
    """
    Configuration of `trl-akd ranker rank`.

    Args:
        ranker (`str`, *optional*):
            Folder of a trained ranker.
        samples (`str`, *optional*):
            Programs: the `samples.jsonl` of `trl-akd evaluate`.
        output (`str`, *optional*, defaults to `"ranked.jsonl"`):
            Output file of the programs, the best of each problem first.
        keep (`int`, *optional*):
            Maximum number of programs to keep per problem; by default all.
        batch_size (`int`, *optional*, defaults to `16`):
            Number of programs per batch.
    """

    ranker: str | None = None
    samples: str | None = None
    output: str = "ranked.jsonl"
    keep: int | None = None
    batch_size: int = 16

    def __post_init__(self) -> None:
        for name in ("ranker", "samples"):
            if not getattr(self, name):
                raise ValueError(f"`{name}` is missing; give the ranker's folder and the programs to rank.")
        if self.keep is not None and self.keep < 1:
            raise ValueError(f"`keep` is {self.keep}; keep at least 1, or leave it out for all.")
