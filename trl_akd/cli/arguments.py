"""What a training command needs to know beyond models and training."""

from dataclasses import dataclass, field

__all__ = ["AKDScriptArguments"]


@dataclass
class AKDScriptArguments:
    """
    Arguments of the training commands about data, with the names of [`trl.ScriptArguments`] where it has them.

    Args:
        dataset_name (`str`, *optional*):
            Dataset on the Hub, or path of a .json, .jsonl, .parquet or .csv file or of a saved dataset.
        dataset_config (`str`, *optional*):
            Configuration of a dataset on the Hub.
        dataset_revision (`str`, *optional*):
            Branch, tag or commit of a dataset on the Hub.
        dataset_train_split (`str`, *optional*, defaults to `"train"`):
            Split to train on, or a slice of one such as `"train[:1000]"`.
        dataset_test_split (`str`, *optional*, defaults to `"test"`):
            Split to evaluate on where `eval_strategy` asks for it and `test_size` is not set.
        test_size (`float`, *optional*):
            Rows of the train split to hold out for evaluation: a number of rows, or a fraction below 1.
        dry_run (`bool`, *optional*, defaults to `False`):
            Try the recipe offline for two steps, on tiny models of the same architectures, and keep nothing.
    """

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Dataset on the Hub, or path of a .json, .jsonl, .parquet or .csv file or of a saved dataset."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a dataset on the Hub."})
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a dataset on the Hub."}
    )
    dataset_train_split: str = field(
        default="train", metadata={"help": "Split to train on, or a slice of one such as `train[:1000]`."}
    )
    dataset_test_split: str = field(
        default="test",
        metadata={"help": "Split to evaluate on where `eval_strategy` asks for it and `test_size` is not set."},
    )
    test_size: float | None = field(
        default=None,
        metadata={"help": "Rows of the train split to hold out for evaluation: a number, or a fraction below 1."},
    )
    dry_run: bool = field(
        default=False,
        metadata={
            "help": "Try the recipe offline for two steps, on tiny models of the same architectures, and keep nothing."
        },
    )

    def __post_init__(self) -> None:
        if self.test_size is not None and (self.test_size <= 0 or (self.test_size > 1 and self.test_size % 1)):
            raise ValueError(
                f"`test_size` is {self.test_size}; give a whole number of rows, or a fraction between 0 and 1."
            )
