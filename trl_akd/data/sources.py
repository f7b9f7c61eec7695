"""Where rows come from: a local file, a saved folder or the Hub."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias, cast

from datasets import Dataset, DatasetDict, IterableDataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError

__all__ = ["COLUMN_NAMES", "load", "split_off"]

_Rows: TypeAlias = Dataset | IterableDataset

# Hub datasets whose columns have other names than `trl_akd.data.schema` knows. Of those the papers train on,
# sahil2801/CodeAlpaca-20k needs no entry.
COLUMN_NAMES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {"ise-uiuc/Magicoder-OSS-Instruct-75K": {"problem": "instruction", "solution": "output"}}
)

_BUILDERS: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        ".json": ("json", {}),
        ".jsonl": ("json", {}),
        ".parquet": ("parquet", {}),
        # By default an empty input, and an answer such as "NA" or "null", would be read as a missing value.
        ".csv": ("csv", {"keep_default_na": False}),
    }
)


def load(
    name_or_path: str | Path,
    *,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    streaming: bool = False,
) -> Dataset | IterableDataset:
    """Load rows from a local file, a folder or the Hub.

    Args:
        name_or_path (`str` or `Path`): a .json, .jsonl, .parquet or .csv file (its only split is `train`), a folder
            written by `save_to_disk`, a folder of data files, or a name on the Hub.
        config (`str`, *optional*): configuration of a dataset on the Hub.
        split (`str`, *optional*, defaults to `"train"`): split, or a slice of one such as `"train[:1000]"`.
        revision (`str`, *optional*): branch, tag or commit of a dataset on the Hub.
        streaming (`bool`, *optional*, defaults to `False`): return an `IterableDataset` that reads as it goes.

    Raises:
        FileNotFoundError: If there is neither such a file or folder nor such a dataset on the Hub.
        ValueError: If the file is of another kind, cannot be read, or has no rows, or if the folder lacks the split.
    """
    path = Path(name_or_path).expanduser()
    if path.is_file():
        dataset = _load_file(path, split, streaming)
    elif (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        dataset = _load_saved(path, split, streaming)
    elif any(path.glob("*/question.txt")):
        raise ValueError(
            f"The folder {str(name_or_path)!r} holds APPS's problems in folders of their own, not rows; write rows "
            "with plans from it by `trl-akd plans --dataset_name`, and give the file plans.jsonl that it makes."
        )
    elif path.is_dir() or not _is_spelled_as_path(name_or_path):
        dataset = _load_named(str(path), config, split, revision, streaming)
    else:
        raise FileNotFoundError(f"There is no file or folder {str(name_or_path)!r}; check the path.")
    if isinstance(dataset, Dataset) and len(dataset) == 0:
        raise ValueError(
            f"The dataset {str(name_or_path)!r} has no rows in split {split!r}; choose another file or split."
        )
    return dataset


def split_off(dataset: Dataset, size: int | float, seed: int) -> tuple[Dataset, Dataset]:
    """Hold out a random part of a dataset, as the paper holds out 1,000 rows of CodeAlpaca.

    Args:
        dataset (`Dataset`): rows.
        size (`int` or `float`): rows to hold out, or the fraction of all rows, strictly between 0 and 1.
        seed (`int`): seed of the shuffle; the same seed and rows give the same parts.

    Returns:
        `tuple[Dataset, Dataset]`: the rest, to train on, and the rows held out, both shuffled.

    Raises:
        ValueError: If `size` would leave one of the parts empty.
    """
    held_out = round(size * len(dataset)) if 0 < size < 1 else size
    if not isinstance(held_out, int) or not 0 < held_out < len(dataset):
        raise ValueError(
            f"size={size} splits {len(dataset)} rows into no two parts; choose a number of rows from 1 to "
            f"{len(dataset) - 1}, or a fraction between 0 and 1 that amounts to one."
        )
    parts = dataset.train_test_split(test_size=held_out, seed=seed)
    return parts["train"], parts["test"]


def _load_file(path: Path, split: str, streaming: bool) -> _Rows:
    if path.suffix not in _BUILDERS:
        raise ValueError(f"The file {str(path)!r} has the ending {path.suffix!r}; use one of {', '.join(_BUILDERS)}.")
    if path.stat().st_size == 0:
        raise ValueError(f"The file {str(path)!r} is empty; choose another one.")
    builder, options = _BUILDERS[path.suffix]
    try:
        return cast(_Rows, load_dataset(builder, data_files=str(path), split=split, streaming=streaming, **options))
    except (DatasetGenerationError, ValueError) as error:
        raise ValueError(
            f"The file {str(path)!r} gives no rows of split {split!r} when read as {builder}; check its content "
            f"({error.__cause__ or error})."
        ) from error


def _load_saved(path: Path, split: str, streaming: bool) -> _Rows:
    try:
        saved = load_from_disk(str(path))
    except IndexError as error:  # what a folder saved without rows raises
        raise ValueError(f"The folder {str(path)!r} was saved without rows; save it anew.") from error
    if isinstance(saved, DatasetDict):
        if split not in saved:
            raise ValueError(f"The folder {str(path)!r} has no split {split!r}; choose one of {', '.join(saved)}.")
        saved = saved[split]
    return saved.to_iterable_dataset() if streaming else saved


def _load_named(name: str, config: str | None, split: str, revision: str | None, streaming: bool) -> _Rows:
    try:
        dataset = load_dataset(name, config, split=split, revision=revision, streaming=streaming)
    except (FileNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"The dataset {name!r} is neither a local file or folder nor one that the Hub gives out; check its name, "
            f"the connection and, if it is private, `hf auth login` ({error})."
        ) from error
    except (DatasetGenerationError, ValueError) as error:
        raise ValueError(
            f"The dataset {name!r} cannot be read as rows of split {split!r}; check its files, or give one of them "
            f"({error.__cause__ or error})."
        ) from error
    return cast(_Rows, dataset.rename_columns(dict(COLUMN_NAMES.get(name, {}))))


def _is_spelled_as_path(name: str | Path) -> bool:
    return isinstance(name, Path) or name.startswith((".", "/", "~")) or Path(name).suffix in _BUILDERS
