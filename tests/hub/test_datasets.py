"""Datasets of generated texts: they load with equal rows, and their cards show texts as they are."""

from pathlib import Path

import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard

from tests.hub.loopback import Hub
from trl_akd.hub.datasets import DatasetContent, dataset_files, upload_dataset

HOSTILE = "```\n<script>alert(1)</script>\n<!-- x -->\n| a | b |\n````\n# not a heading"


def content(rows: list[dict], **more) -> DatasetContent:
    return DatasetContent("Plans | for <b>2</b> problems", "Plans.", {"plans": rows, "empty": []}, **more)


def load(folder: Path, files: dict[str, bytes], name: str = "plans") -> list[dict]:
    for file, data in files.items():
        (folder / file).write_bytes(data)
    return list(load_dataset(str(folder), name, split="train", cache_dir=str(folder / "cache")))


@pytest.mark.parametrize(
    ("values", "loaded"),
    [
        (["a", "é\n`"], ["a", "é\n`"]),
        ([1, 2.5], [1.0, 2.5]),
        ([1, None], [1, None]),
        ([None, None], [None, None]),
        ([["a"], []], [["a"], []]),
        ([{"x": 1}, {"x": 2}], [{"x": 1}, {"x": 2}]),
        ([{"x": 1}, {"y": 2}], ['{"x": 1}', '{"y": 2}']),
        (["assert f(1)", {"inputs": ["1"]}], ["assert f(1)", '{"inputs": ["1"]}']),
        ([["1"], [1]], ['["1"]', "[1]"]),
        ([True, "x"], ["true", "x"]),
        ([2**70, 1], [str(2**70), "1"]),
        (["\ud800", "b"], ["?", "b"]),
        ([{"x": "1"}, None], [{"x": "1"}, None]),
    ],
    ids=repr,
)
def test_rows_of_all_types_load(values: list, loaded: list, tmp_path: Path):
    rows = [{"id": str(number), "value": value} for number, value in enumerate(values)]
    assert [row["value"] for row in load(tmp_path, dataset_files("me/plans", content(rows)))] == loaded


def test_rows_may_lack_columns(tmp_path: Path):
    files = dataset_files("me/plans", content([{"id": "1"}, {"id": "2", "plan": "x"}]))
    assert load(tmp_path, files) == [{"id": "1", "plan": None}, {"id": "2", "plan": "x"}]


def test_card_shows_texts_as_they_are():
    rows = [{"id": "1", "plan": HOSTILE}]
    facts = {"Teacher": "a|b <img src=x>", "Revision": None}
    files = dataset_files("me/plans", content(rows, facts=facts, sources=["openai/openai_humaneval"]))
    card = DatasetCard(files["README.md"].decode())
    data = card.data.to_dict()
    assert data["configs"] == [{"config_name": "plans", "data_files": "plans.parquet", "default": True}]
    assert data["source_datasets"] == ["openai/openai_humaneval"] and data["size_categories"] == "n<1K"
    assert "# Plans \\| for &lt;b&gt;2&lt;/b&gt; problems" in card.text
    assert r"`a\|b <img src=x>`" in card.text and "Revision" not in card.text
    fence = next(line for line in card.text.splitlines() if line.endswith("json") and line.startswith("`"))
    assert fence == "`````json" and "<script>" not in card.text.partition(fence)[0]
    assert 'load_dataset("me/plans", "plans", split="train")' in card.text


def test_upload(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    hub.add("me/plans", {"old.parquet": b"", "LICENSE": b"MIT"}, kind="dataset")
    upload_dataset("me/plans", content([{"id": "1"}]), kept="")
    assert set(hub.files("me/plans", kind="dataset")) == {"README.md", "plans.parquet", "LICENSE"}
    monkeypatch.setenv("TEACHER_API_KEY", "sk-0123456789")
    with pytest.raises(ValueError, match="plans contains the value of the environment variable TEACHER_API_KEY"):
        upload_dataset("me/plans", content([{"id": "sk-0123456789"}]), kept="")
    with pytest.raises(ValueError, match="there are no rows of plans, empty to upload"):
        upload_dataset("me/plans", content([]), kept="")
