"""`trl-akd cache` from its arguments to training from the cache."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trl_akd.akd import akd_trainer
from trl_akd.cli import main

Recipe = Callable[[dict[str, Any]], str]


def losses(run: Path) -> list[float]:
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return [log["loss"] for log in history if "loss" in log]


def test_cache_is_written_inspected_and_trained_from(
    settings: dict[str, Any],
    recipe: Recipe,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    folder, run = tmp_path / "cache", tmp_path / "run"
    path = recipe({**settings, "eval_strategy": "steps", "eval_steps": 2})
    assert main(["akd", "--config", path]) == 0
    expected = losses(run)
    cached = recipe({**settings, "eval_strategy": "steps", "eval_steps": 2, "teacher_cache": str(folder)})
    assert main(["cache", "--config", cached]) == 2
    assert f"`output_dir` is {str(run)!r}, which has other files" in capsys.readouterr().err
    assert main(["cache", "--config", cached, "--output_dir", str(folder)]) == 0
    created = capsys.readouterr().out
    assert main(["cache", "inspect", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert printed in created
    assert settings["teacher_model_name_or_path"] in printed and "hidden states, float32, 48 elements" in printed
    assert "8 distinct rows" in printed and "bytes per target" in printed and "gradient 0.00%" in printed

    monkeypatch.setattr(akd_trainer, "load_teacher", lambda *args, **kwargs: pytest.fail("a teacher was loaded"))
    assert main(["akd", "--config", cached, "--output_dir", str(tmp_path / "from_cache")]) == 0
    assert losses(tmp_path / "from_cache") == pytest.approx(expected, rel=1e-5)
    assert "| Teacher | `teacher` |" in (tmp_path / "from_cache" / "README.md").read_text()
    monkeypatch.undo()

    assert main(["akd", "--config", cached, "--dry_run"]) == 0
    assert "whether the cache has the data" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--method", "iterkd"], "`--method` is 'iterkd', whose cycles train on new answers"),
        (["--cache_kind", "sparse", "--cache_dtype", "int8"], "`cache_dtype` is 'int8', which has no effect with"),
        (["--cache_top_k", "0"], "`cache_top_k` is 0; give at least 1"),
        (["--cache_shard_mb", "0"], "`cache_shard_mb` is 0; give at least 1"),
        (["--cache_dtype", "int4"], "int4"),
        (["--lmbda", "0.5"], "`lmbda` is 0.5 and `seq_kd` is False, but a cache has signals for the data alone"),
        (["--seq_kd", "true"], "`seq_kd` is True, but a cache has signals for the data alone"),
        (["--dry_run"], "`dry_run` is on, which `trl-akd cache` does not have"),
        (["inspect"], "`cache_dir` is missing"),
        (["inspect", "nowhere"], "`teacher_cache` is 'nowhere', which is not a folder"),
    ],
    ids=" ".join,
)
def test_wrong_arguments(
    arguments: list[str],
    complaint: str,
    settings: dict[str, Any],
    recipe: Recipe,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    given = (
        [] if arguments[0] == "inspect" else ["--config", recipe(settings), "--output_dir", str(tmp_path / "cache")]
    )
    assert main(["cache", *arguments, *given]) == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1
    assert not (tmp_path / "cache").exists()
