"""Arguments of the training commands about data and benchmarks."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["AKDScriptArguments", "BenchmarkArguments"]


@dataclass
class AKDScriptArguments:
    """
    Arguments of the training commands about data, an extension of [`trl.ScriptArguments`].

    Args:
        dataset_name (`str`, *optional*):
            Dataset on the Hub, or path of a .json, .jsonl, .parquet or .csv file or of a saved dataset.
        dataset_config (`str`, *optional*):
            Configuration of a dataset on the Hub.
        dataset_revision (`str`, *optional*):
            Branch, tag or commit of a dataset on the Hub.
        dataset_train_split (`str`, *optional*, defaults to `"train"`):
            Training split, or a slice of one such as `"train[:1000]"`.
        dataset_test_split (`str`, *optional*, defaults to `"test"`):
            Evaluation split, used if `eval_strategy` is not `"no"` and `test_size` is not set.
        test_size (`float`, *optional*):
            Number of training rows to hold out for evaluation, or their fraction if below 1.
        dry_run (`bool`, *optional*, defaults to `False`):
            Whether to try the recipe offline for two steps with tiny models of the same architectures. Saves nothing.
        hub_merge_adapter (`bool`, *optional*, defaults to `False`):
            Whether `push_to_hub` uploads a PEFT student as a whole model, with its adapter merged, rather than the
            adapter.
    """

    dataset_name: str | None = None
    dataset_config: str | None = None
    dataset_revision: str | None = None
    dataset_train_split: str = "train"
    dataset_test_split: str = "test"
    test_size: float | None = None
    dry_run: bool = False
    hub_merge_adapter: bool = False

    def __post_init__(self) -> None:
        if self.test_size is not None and (self.test_size <= 0 or (self.test_size > 1 and self.test_size % 1)):
            raise ValueError(
                f"`test_size` is {self.test_size}; give a whole number of rows, or a fraction between 0 and 1."
            )


@dataclass
class BenchmarkArguments:
    """
    Arguments of the training commands about the benchmark that is run at every evaluation.

    Args:
        eval_benchmark (`str`, *optional*):
            Benchmark to run at every evaluation, as in `trl-akd evaluate`. Its score is logged as `eval_pass@1`, a
            possible value of `metric_for_best_model`.
        eval_benchmark_path (`str`, *optional*):
            Local copy of a named benchmark.
        eval_benchmark_limit (`int`, *optional*):
            Evaluate only the first N problems.
        eval_prompt_style (`str`, *optional*, defaults to `"template"`):
            Prompt format of problems: `"template"` (`prompt_template`, as in training), `"completion"` or `"chat"`.
        eval_max_new_tokens (`int`, *optional*):
            Maximum number of tokens per program. By default 512, or half of the student's positions if that is less.
        eval_log_completions (`bool`, *optional*, defaults to `False`):
            Whether to report the programs of every evaluation, with their outcomes, as a table to `wandb`, `trackio`
            and `tensorboard` if they are in `report_to`.
        allow_code_execution (`bool`, *optional*, defaults to `False`):
            Whether to run the programs, in a sandbox. `HF_ALLOW_CODE_EVAL=1` in the environment also allows it.
    """

    eval_benchmark: str | None = None
    eval_benchmark_path: str | None = None
    eval_benchmark_limit: int | None = None
    eval_prompt_style: Literal["template", "completion", "chat"] = "template"
    eval_max_new_tokens: int | None = None
    eval_log_completions: bool = False
    allow_code_execution: bool = False
