"""Local files of each format, saved folders, and errors for missing data."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from trl_akd.data import sources
from trl_akd.data.sources import load, split_off

ROWS = [
    {"instruction": "Sort.", "input": "", "output": "sorted(x)"},
    {"instruction": "Say it.", "input": "x", "output": "NA"},
    {"instruction": "Größe?", "input": "null", "output": 'print("ö, é")\nprint()'},
]
CODE_ALPACA = Path(__file__).parents[3] / "shared" / "data" / "code_alpaca" / "code_alpaca_2k.json"


def write(folder: Path, suffix: str, rows: list[dict[str, str]] = ROWS) -> Path:
    path = folder / f"rows{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif suffix == ".csv":
        Dataset.from_list(rows).to_csv(path, index=False)
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet", ".csv"])
@pytest.mark.parametrize("streaming", [False, True])
def test_file(tmp_path: Path, suffix: str, streaming: bool) -> None:
    dataset = load(write(tmp_path, suffix), streaming=streaming)
    assert isinstance(dataset, IterableDataset if streaming else Dataset)
    assert list(dataset) == ROWS


def test_slice_of_a_file(tmp_path: Path) -> None:
    assert list(load(str(write(tmp_path, ".jsonl")), split="train[1:]")) == ROWS[1:]


@pytest.mark.parametrize("streaming", [False, True])
def test_saved_folder(tmp_path: Path, streaming: bool) -> None:
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:1])).save_to_disk(tmp_path / "two")
    assert list(load(tmp_path / "one", streaming=streaming)) == ROWS
    assert list(load(tmp_path / "two", split="test", streaming=streaming)) == ROWS[:1]
    with pytest.raises(ValueError, match="no split 'dev'; choose one of train, test"):
        load(tmp_path / "two", split="dev")


def test_folder_of_data_files(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", ".jsonl")
    assert list(load(tmp_path / "data")) == ROWS
    assert list(load(f"{tmp_path}/data")) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("rows.txt", "a", r"has the suffix '\.txt'; use one of \.json, \.jsonl, \.parquet, \.csv"),
        ("rows", "a", "has the suffix ''"),
        ("rows.json", "", "is empty"),
        ("rows.parquet", "a", "cannot be read as parquet with the split 'train'"),
        ("rows.json", "[]", "cannot be read as json with the split 'train'"),
        ("rows.jsonl", "{]", "cannot be read as json with the split 'train'"),
        ("rows.csv", "instruction,output\n", "cannot be read as csv with the split 'train'"),
    ],
)
def test_file_without_rows(tmp_path: Path, name: str, content: str, complaint: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=complaint) as caught:
        load(tmp_path / name)
    assert name in str(caught.value)


def test_missing_split(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read as json with the split 'test'"):
        load(write(tmp_path, ".jsonl"), split="test")


def test_saved_folder_without_rows(tmp_path: Path) -> None:
    Dataset.from_dict({"prompt": [], "completion": []}).save_to_disk(tmp_path / "none")
    with pytest.raises(ValueError, match="none' was saved without rows"):
        load(tmp_path / "none")


@pytest.mark.parametrize("name", ["rows.jsonl", "./rows", "~/no/such/rows", "/no/such/rows"])
def test_missing_path_is_not_requested_from_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "load_dataset", lambda *args, **kwargs: pytest.fail("asked the Hub"))
    with pytest.raises(FileNotFoundError, match=f"no file or folder '{name}'"):
        load(name)


@pytest.mark.parametrize("error", [FileNotFoundError("gone"), ConnectionError("offline")])
def test_unreachable_hub(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(sources, "load_dataset", refuse)
    with pytest.raises(FileNotFoundError, match=rf"'some/data' is neither a local file.*\({error}\)"):
        load("some/data")


def test_columns_of_a_hub_dataset_are_renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(*args: Any, **kwargs: Any) -> Dataset:
        asked.append((args, kwargs))
        return Dataset.from_list([{"problem": "Sort.", "solution": "sorted(x)", "lang": "python"}])

    monkeypatch.setattr(sources, "load_dataset", answer)
    dataset = load("ise-uiuc/Magicoder-OSS-Instruct-75K", config="c", split="train[:9]", revision="main")
    assert list(dataset) == [{"instruction": "Sort.", "output": "sorted(x)", "lang": "python"}]
    expected = {"split": "train[:9]", "revision": "main", "streaming": False}
    assert asked == [(("ise-uiuc/Magicoder-OSS-Instruct-75K", "c"), expected)]
    assert load("other/data").column_names == ["problem", "solution", "lang"]


@pytest.mark.parametrize(("size", "held_out"), [(1, 1), (19, 19), (0.25, 5), (0.96, 19)])
def test_split_off(size: int | float, held_out: int) -> None:
    dataset = Dataset.from_dict({"x": list(range(20))})
    rest, test = split_off(dataset, size, seed=1)
    assert len(test) == held_out
    assert sorted([*rest["x"], *test["x"]]) == list(range(20))
    assert split_off(dataset, size, seed=1)[1]["x"][:] == test["x"][:]


def test_split_off_depends_on_the_seed() -> None:
    dataset = Dataset.from_dict({"x": list(range(200))})
    assert split_off(dataset, 20, seed=1)[1]["x"][:] != split_off(dataset, 20, seed=2)[1]["x"][:]


@pytest.mark.parametrize("size", [0, -1, 20, 21, 0.0, 1.0, 1.5, -0.5, 0.01, float("nan")])
def test_split_off_refuses_an_empty_part(size: int | float) -> None:
    with pytest.raises(ValueError, match=rf"size={size} .*from 1 to 19"):
        split_off(Dataset.from_dict({"x": list(range(20))}), size, seed=1)


def test_code_alpaca() -> None:
    if not CODE_ALPACA.is_file():
        pytest.skip("the optional ../shared/data/code_alpaca/code_alpaca_2k.json is absent")
    dataset = load(CODE_ALPACA)
    assert isinstance(dataset, Dataset)
    assert list(dataset) == json.loads(CODE_ALPACA.read_text())
    rest, test = split_off(dataset, 1000, seed=0)
    assert (len(rest), len(test)) == (1017, 1000)
