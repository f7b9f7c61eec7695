"""Load rows from a local file, a saved folder or the Hub."""

import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias, cast

from datasets import Dataset, DatasetDict, IterableDataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError

__all__ = ["COLUMN_NAMES", "load", "split_off"]

logger = logging.getLogger(__name__)

_Rows: TypeAlias = Dataset | IterableDataset

# Renamed columns of datasets on the Hub that are not in a format of `trl_akd.data.schema`.
COLUMN_NAMES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {"ise-uiuc/Magicoder-OSS-Instruct-75K": {"problem": "instruction", "solution": "output"}}
)

_BUILDERS: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        ".json": ("json", {}),
        ".jsonl": ("json", {}),
        ".parquet": ("parquet", {}),
        # By default an empty input, or an answer such as "NA" or "null", is read as a missing value.
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
        name_or_path (`str` or `Path`):
            A .json, .jsonl, .parquet or .csv file (with the single split `train`), a folder written by `save_to_disk`,
            a folder of data files, or a name on the Hub.
        config (`str`, *optional*):
            Configuration of a dataset on the Hub.
        split (`str`, *optional*, defaults to `"train"`):
            Split, or a slice of one such as `"train[:1000]"`.
        revision (`str`, *optional*):
            Branch, tag or commit of a dataset on the Hub.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether to return an `IterableDataset`.

    Raises:
        FileNotFoundError: If neither a file or folder nor a dataset on the Hub has that name.
        ValueError: If the file has another format, cannot be read, or has no rows, or if the folder lacks the split.
    """
    path = Path(name_or_path).expanduser()
    for option, value in (("revision", revision), ("configuration", config if path.is_file() else None)):
        if value is not None and path.exists():
            logger.warning("The dataset %r is on this machine; its %s, %r, is ignored.", str(path), option, value)
    if path.is_file():
        dataset = _load_file(path, split, streaming)
    elif (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        dataset = _load_saved(path, split, streaming)
    elif any(path.glob("*/question.txt")):
        raise ValueError(
            f"The folder {str(name_or_path)!r} contains the problems of APPS, one per folder, not rows; write rows "
            "with plans by `trl-akd plans --dataset_name`, and give the file plans.jsonl that it writes."
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
    """Split a dataset into random training and held-out parts, as AKD holds out 1,000 rows of CodeAlpaca.

    Args:
        dataset (`Dataset`):
            Rows.
        size (`int` or `float`):
            Number of rows to hold out, or their fraction, strictly between 0 and 1.
        seed (`int`):
            Seed of the shuffle.

    Returns:
        `tuple[Dataset, Dataset]`: The rows to train on and the rows held out, both shuffled.

    Raises:
        ValueError: If `size` would leave one of the parts empty.
    """
    held_out = round(size * len(dataset)) if 0 < size < 1 else size
    if not isinstance(held_out, int) or not 0 < held_out < len(dataset):
        raise ValueError(
            f"size={size} does not split {len(dataset)} rows into two parts; choose a number of rows from 1 to "
            f"{len(dataset) - 1}, or the corresponding fraction."
        )
    parts = dataset.train_test_split(test_size=held_out, seed=seed)
    return parts["train"], parts["test"]


def _load_file(path: Path, split: str, streaming: bool) -> _Rows:
    if path.suffix not in _BUILDERS:
        raise ValueError(f"The file {str(path)!r} has the suffix {path.suffix!r}; use one of {', '.join(_BUILDERS)}.")
    if path.stat().st_size == 0:
        raise ValueError(f"The file {str(path)!r} is empty; choose another one.")
    builder, options = _BUILDERS[path.suffix]
    try:
        return cast(_Rows, load_dataset(builder, data_files=str(path), split=split, streaming=streaming, **options))
    except (DatasetGenerationError, ValueError) as error:
        raise ValueError(
            f"The file {str(path)!r} cannot be read as {builder} with the split {split!r}; check its content "
            f"({error.__cause__ or error})."
        ) from error


def _load_saved(path: Path, split: str, streaming: bool) -> _Rows:
    try:
        saved = load_from_disk(str(path))
    except IndexError as error:  # raised for a folder saved without rows
        raise ValueError(f"The folder {str(path)!r} was saved without rows; save it again.") from error
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
            f"The dataset {name!r} is neither a local file or folder nor available on the Hub; check its name, the "
            f"connection and, if it is private, `hf auth login` ({error})."
        ) from error
    except (DatasetGenerationError, ValueError) as error:
        raise ValueError(
            f"The dataset {name!r} cannot be read as rows of split {split!r}; check its files, or give one of them "
            f"({error.__cause__ or error})."
        ) from error
    return cast(_Rows, dataset.rename_columns(dict(COLUMN_NAMES.get(name, {}))))


def _is_spelled_as_path(name: str | Path) -> bool:
    return isinstance(name, Path) or name.startswith((".", "/", "~")) or Path(name).suffix in _BUILDERS
