"""Trainings without a step, which end with an error and save nothing."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, IterableDataset

from tests import tiny
from tests.codeplan import world
from trl_akd.cli import main
from trl_akd.distributed import require_batch

TOO_LARGE = ["--dataloader_drop_last", "true", "--per_device_train_batch_size", "64"]


@pytest.mark.parametrize("length", [{}, {"max_steps": -1, "num_train_epochs": 1}])
@pytest.mark.parametrize("method", ["akd", "codeplan"])
def test_a_batch_with_more_rows_than_the_data(
    method: str, length: dict[str, Any], settings: dict[str, Any], recipe, tmp_path: Path, capsys: Any
):
    if method == "codeplan":
        (tmp_path / "rows.json").write_text(json.dumps(world.problems(8).to_list()))
        del settings["teacher_model_name_or_path"]
    assert main([method, "--config", recipe({**settings, **length}), *TOO_LARGE]) == 2
    message = "the training data has 6 rows, which fill no batch of `per_device_train_batch_size` 64 on each of 1"
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_no_epoch(settings: dict[str, Any], recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["akd", "--config", recipe({**settings, "max_steps": -1, "num_train_epochs": 0})]) == 2
    assert "no step was trained with `max_steps` -1 and `num_train_epochs` 0.0" in capsys.readouterr().err
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_dry_run_has_whole_batches(settings: dict[str, Any], recipe, capsys: pytest.CaptureFixture[str]):
    assert main(["akd", "--config", recipe(settings), *TOO_LARGE, "--dry_run"]) == 0
    assert "Dry run passed" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["ranker", "judge", "generative judge"])
def test_classifiers_and_judges(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tiny.model().save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    labels = ["correct", "SyntaxError"]
    rows = [
        {"id": str(number), "problem": "Add.", "program": str(number), "label": labels[number % 2]}
        | {"instruction": "Add.", "answer": str(number), "scores": [0, 0, 0, 0, number % 2]}
        for number in range(4)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    flags = ["--model_name_or_path", str(tmp_path / "model"), "--train_file", str(tmp_path / "rows.jsonl")]
    flags += ["--output_dir", str(tmp_path / "out"), "--use_cpu", "true", "--bf16", "false", "--report_to", "none"]
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("{instruction}\n{answer}\n")
    if command.startswith("generative"):
        flags += ["--kind", "generative", "--max_length", "250", "--prompt_file", str(prompt)]
    assert main([command.split()[-1], "train", *flags, *TOO_LARGE]) == 2
    assert "the training data has 4 rows, which fill no batch" in capsys.readouterr().err
    assert not (tmp_path / "out" / "model.safetensors").exists()


class _Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter(range(3))


@pytest.mark.parametrize(
    ("rows", "processes", "drop_last", "is_refused"),
    [(7, 2, True, True), (8, 2, True, False), (7, 1, True, False), (7, 2, False, False), (None, 1, True, False)],
)
def test_rows_of_all_processes(rows: int | None, processes: int, drop_last: bool, is_refused: bool):
    dataset: Any = _Stream() if rows is None else list(range(rows))
    loader = prepare_data_loader(
        DataLoader(dataset, batch_size=4, drop_last=drop_last), num_processes=processes, process_index=0
    )
    args = SimpleNamespace(dataloader_drop_last=drop_last, per_device_train_batch_size=4, world_size=processes)
    if is_refused:
        with pytest.raises(ValueError, match=f"has 7 rows, which fill no batch .* 4 on each of {processes} processes"):
            require_batch(loader, args)
    else:
        require_batch(loader, args)
