"""`trl-akd akd` with a teacher behind a server that fails."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from tests import tiny
from tests.generation.server import Fault, Server, serving
from trl_akd.cli import main
from trl_akd.cli.mock_teacher import score


@pytest.fixture
def server(pair: tuple[str, str]) -> Iterator[Server]:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(pair[1]).eval(), tiny.tokenizer()
    with serving() as server:
        server.answer = lambda path, body: score(model, tokenizer, body)  # type: ignore[method-assign]
        yield server


def test_training_ends_with_one_sentence_and_continues(
    server: Server, settings: dict[str, Any], recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = recipe(
        settings
        | {
            "teacher_base_url": server.url,
            "teacher_model_name_or_path": "teacher",
            "teacher_top_k": 8,
            "save_strategy": "steps",
            "save_steps": 1,
        }
    )
    server.refuses = lambda body: Fault(403, "no credit") if len(server.bodies) > 3 else None
    assert main(["akd", "--config", path]) == 2
    [message] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("trl-akd: ")]
    assert "refused with status 403: 'no credit'; check `teacher_api_key_env`" in message
    assert (tmp_path / "run" / "checkpoint-1").is_dir()
    server.refuses = lambda body: None
    assert main(["akd", "--config", path, "--resume_from_checkpoint", "true"]) == 0
    card = (tmp_path / "run" / "README.md").read_text()
    assert "teacher_top_k" in card


def test_a_wrong_address_is_found_before_training(
    server: Server, settings: dict[str, Any], recipe, capsys: pytest.CaptureFixture[str]
):
    served = {"teacher_base_url": server.url, "teacher_model_name_or_path": "teacher"}
    server.refuses = lambda body: Fault(404, "The model `teacher` does not exist.")
    assert main(["akd", "--config", recipe(settings | served)]) == 2
    assert "check `teacher_base_url`, which usually ends in /v1" in capsys.readouterr().err
    assert len(server.bodies) == 1
