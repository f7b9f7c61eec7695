"""What the actions of `trl-akd ranker` need to know."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["RankerBenchmark", "RankerData", "RankerModel", "RankerRanking"]


@dataclass
class RankerBenchmark:
    """
    Problems that programs are for.

    Args:
        benchmark (`str`, *optional*):
            `humaneval`, `humaneval_plus`, `mbpp`, `mbpp_plus`, `apps`, or a .jsonl file of one's own.
        benchmark_path (`str`, *optional*):
            Local copy of a named benchmark; without it, it comes from the Hub.
    """

    benchmark: str | None = None
    benchmark_path: str | None = None

    def __post_init__(self) -> None:
        if not self.benchmark:
            raise ValueError("`benchmark` is missing; name the one that the programs were written for.")


@dataclass
class RankerData:
    """
    Where a ranker's data come from and go to.

    Args:
        evaluations (`list[str]`, *optional*):
            Folders of `trl-akd evaluate`, with `samples.jsonl` and `verdicts.jsonl`.
        output (`str`, *optional*, defaults to `"outputs/ranker/data.jsonl"`):
            File for the rows.
    """

    evaluations: list[str] | None = None
    output: str = "outputs/ranker/data.jsonl"

    def __post_init__(self) -> None:
        if not self.evaluations:
            raise ValueError("`evaluations` is missing; give one or more folders that `trl-akd evaluate` wrote.")


@dataclass
class RankerModel:
    """
    What a ranker is made of, beside how it is trained.

    Args:
        model_name_or_path (`str`, *optional*):
            Model to start from, an encoder such as `microsoft/codebert-base` or a small language model.
        model_revision (`str`, *optional*):
            Branch, tag or commit of the model on the Hub.
        train_file (`str`, *optional*, defaults to `"outputs/ranker/data.jsonl"`):
            Rows of `trl-akd ranker data`.
        labels (`str`, *optional*, defaults to `"error_type"`):
            Classes: `"binary"`, `"ternary"` or `"error_type"`.
        max_length (`int`, *optional*, defaults to `1024`):
            Most tokens of problem and program together.
        test_size (`float`, *optional*):
            Share of the problems to hold out and to report on.
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
    What a ranker puts in order.

    Args:
        ranker (`str`, *optional*):
            Folder of a trained ranker.
        samples (`str`, *optional*):
            Programs: the `samples.jsonl` of `trl-akd evaluate`.
        output (`str`, *optional*, defaults to `"ranked.jsonl"`):
            File for the programs, those of each problem the best first.
        keep (`int`, *optional*):
            Keep the best so many of each problem.
        batch_size (`int`, *optional*, defaults to `16`):
            Programs to read at a time.
    """

    ranker: str | None = None
    samples: str | None = None
    output: str = "ranked.jsonl"
    keep: int | None = None
    batch_size: int = 16

    def __post_init__(self) -> None:
        for name in ("ranker", "samples"):
            if not getattr(self, name):
                raise ValueError(f"`{name}` is missing; give the ranker's folder and the programs to put in order.")
        if self.keep is not None and self.keep < 1:
            raise ValueError(f"`keep` is {self.keep}; keep at least 1, or leave it out for all.")
