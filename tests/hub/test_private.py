"""Settings and files without absolute paths and secrets."""

import json
from pathlib import Path

import pytest

from trl_akd.hub.files import student_files
from trl_akd.hub.private import public_path, public_settings


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("/home/me/models/student", "student"),
        ("/home/me/models/student/", "student"),
        ("~/rows.jsonl", "rows.jsonl"),
        (r"C:\models\student", "student"),
        ("C:/models/student", "student"),
        ("org/student", "org/student"),
        ("outputs/student", "outputs/student"),
        ("../data/rows.jsonl", "../data/rows.jsonl"),
        ("/", "/"),
        ("", ""),
    ],
)
def test_public_paths(name: str, public: str):
    assert public_path(name) == public


def test_public_settings():
    given = {
        "hub_token": "hf_x",
        "api_key": "x",
        "api_key_env": "OPENAI_API_KEY",
        "extra_body": {"authorization": "Bearer x", "seed": 1},
        "base_url": "https://me:password@host:8000/v1?key=x",
        "max_new_tokens": 5,
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "dataset_name": "/data/rows.jsonl",
        "stop": ["/tmp/x", "\n\n"],
        "learning_rate": 1e-5,
        "bf16": None,
    }
    assert public_settings(given) == {
        "api_key_env": "OPENAI_API_KEY",
        "extra_body": {"seed": 1},
        "base_url": "https://host:8000/v1",
        "max_new_tokens": 5,
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "dataset_name": "rows.jsonl",
        "stop": ["x", "\n\n"],
        "learning_rate": 1e-5,
        "bf16": None,
    }


BELONGS = {
    *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    *("tokenizer.model", "chat_template.jinja", "additional_chat_templates/tools.jinja", "plan_head.safetensors"),
    *("README.md", "recipe.yaml", "beta.svg"),
}
OTHERS = {
    *("training_args.bin", "optimizer.pt", "scheduler.pt", "trainer_state.json", "all_results.json", "notes.txt"),
    *("checkpoint-5/model.safetensors", "checkpoint-5/config.json", "runs/events.out", "curves.png", "akd_state.pt"),
    *("teacher/model.safetensors", "ledger/items.jsonl", "cycle-0/student/model.safetensors", "eval_results.json"),
    *(
        ".env",
        "secrets.json",
        "evil.py",
        "completions/completions_00001.parquet",
        "rng_state.pth",
        "wandb/config.json",
    ),
}


def test_only_files_of_the_student_belong(tmp_path: Path):
    for name in BELONGS | OTHERS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert set(student_files(tmp_path)) == BELONGS


def test_code_that_the_model_needs_belongs(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": {"AutoConfig": "mine.Config"}}))
    for name in ("model.safetensors", "mine.py"):
        (tmp_path / name).write_text("")
    assert "mine.py" in student_files(tmp_path)


@pytest.mark.parametrize(
    ("recipe", "public"),
    [
        ("# a\n\nseed: 1\nallow_code_execution: true\nmax_steps: 2\n", "# a\n\nseed: 1\nmax_steps: 2\n"),
        ('"allow_code_execution" : yes\nseed: 1\n', "seed: 1\n"),
        ("allow_code_execution:\n  true\nseed: 1", "seed: 1\n"),
        ("{allow_code_execution: true, seed: 1}\n", "seed: 1\n"),
        ("# run --allow_code_execution\nseed:   1  # kept\n", None),
        ("run: --allow_code_execution\nnested: {allow_code_execution: x}\n", None),
        ("seed: [", None),
        ("", None),
    ],
)
def test_recipes_have_no_consent(recipe: str, public: str | None, tmp_path: Path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "recipe.yaml").write_text(recipe)
    expected = tmp_path / "recipe.yaml" if public is None else public.encode()
    assert student_files(tmp_path)["recipe.yaml"] == expected


def test_configurations_have_no_absolute_paths(tmp_path: Path):
    config = {
        "_name_or_path": str(tmp_path / "student"),
        "base_model_name_or_path": "/gone/base",
        "nested": [{"vocab_file": "/data/vocab.json"}],
        "added": str(tmp_path),
        "content": "/think",
        "model_type": "llama",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_text("")
    content = student_files(tmp_path)["config.json"]
    assert isinstance(content, bytes)
    assert json.loads(content) == {
        "_name_or_path": "student",
        "base_model_name_or_path": "base",
        "nested": [{"vocab_file": "vocab.json"}],
        "added": tmp_path.name,
        "content": "/think",
        "model_type": "llama",
    }
    assert json.loads((tmp_path / "config.json").read_text()) == config, "the folder is not changed"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "has neither config.json nor adapter_config.json; give the folder of a trained student"),
        (["config.json"], "has no weights; save the model"),
        (["config.json", "pytorch_model.bin"], "has pytorch_model.bin, a pickle, which is not uploaded"),
    ],
)
def test_folders_without_a_student(names: list[str], message: str, tmp_path: Path):
    for name in names:
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=message):
        student_files(tmp_path)
