import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from trl_akd.cli import main
from trl_akd.cli.akd import METHOD
from trl_akd.cli.dry_run import dry_run
from trl_akd.cli.parsing import RecipeParser, read_options
from trl_akd.cli.recipes import Recipe, read_recipe
from trl_akd.cli.tiny_models import KNOWN_MODELS, build

QWEN = {"Qwen/Qwen2.5-Coder-0.5B": "main", "Qwen/Qwen2.5-Coder-7B": "main"}


@pytest.fixture
def values(parser: RecipeParser, settings: dict[str, Any]):
    def make(**replaced: Any) -> Namespace:
        merged = {key: value for key, value in {**settings, **replaced}.items() if value is not None}
        return parser.values(Recipe(Path("recipe.yaml"), merged))

    return make


def sizes(path: str) -> tuple[int, int]:
    config = AutoConfig.from_pretrained(path)
    return config.vocab_size, len(AutoTokenizer.from_pretrained(path))


@pytest.mark.parametrize("name", KNOWN_MODELS)
def test_tiny_model_keeps_the_architecture(name: str, tmp_path: Path):
    (built,) = build({name: "main"}, tmp_path, own_tokenizers=False).values()
    known = KNOWN_MODELS[name]
    family = AutoModelForSeq2SeqLM if known.model_type == "t5" else AutoModelForCausalLM
    model = family.from_pretrained(built.path)
    assert model.config.model_type == known.model_type
    assert known.model_type in built.description
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == known.tie_word_embeddings
    assert sum(parameter.numel() for parameter in model.parameters()) < 200_000


def test_vocabularies_differ_by_the_real_padding(tmp_path: Path):
    student, teacher = build(QWEN, tmp_path, own_tokenizers=False).values()
    (student_rows, student_tokens), (teacher_rows, teacher_tokens) = sizes(student.path), sizes(teacher.path)
    assert student_tokens == teacher_tokens == student_rows
    assert teacher_rows - student_rows == 152_064 - 151_936


def test_every_process_builds_the_same_models(tmp_path: Path):
    one, two = (build(QWEN, tmp_path / name, own_tokenizers=False)["Qwen/Qwen2.5-Coder-7B"] for name in "ab")
    ours, theirs = (AutoModelForCausalLM.from_pretrained(built.path) for built in (one, two))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


def test_local_models_keep_tokenizer_and_vocabulary(pair: tuple[str, str], tmp_path: Path):
    built = build(dict.fromkeys(pair, "main"), tmp_path, own_tokenizers=True)
    for path in pair:
        assert sizes(built[path].path) == sizes(path)
        assert AutoConfig.from_pretrained(built[path].path).model_type == AutoConfig.from_pretrained(path).model_type


def test_unknown_model_without_the_hub(tmp_path: Path):
    with pytest.raises(OSError, match=r"needs the architecture of 'nowhere/at-all', .*give a local folder"):
        build({"nowhere/at-all": "main"}, tmp_path, own_tokenizers=False)


def test_arguments_equal_the_values(values, parser: RecipeParser):
    given = values(teacher_model_init_kwargs={"dtype": "bfloat16"}, lora_target_modules=["q_proj"])
    with dry_run(METHOD, given) as (replaced, arguments):
        options, flags = read_options(arguments)
        assert flags == []
        assert vars(parser.values(read_recipe(options.config))) == vars(replaced)


def test_replaced_settings(values):
    given = values(
        model_name_or_path="Qwen/Qwen2.5-Coder-0.5B",
        teacher_model_name_or_path="Qwen/Qwen2.5-Coder-7B",
        dataset_name="nobody/nothing",
        eval_strategy="epoch",
        test_size=1000,
        push_to_hub=True,
        report_to="wandb",
        resume_from_checkpoint=True,
        dry_run=True,
    )
    before = dict(vars(given))
    with dry_run(METHOD, given) as (replaced, _):
        changed = {name for name, value in vars(replaced).items() if value != before[name]}
        assert changed == {
            *("model_name_or_path", "teacher_model_name_or_path", "dataset_name", "test_size", "max_length"),
            *("output_dir", "push_to_hub", "report_to", "resume_from_checkpoint", "dry_run"),
            "max_new_tokens",
        }
        assert (replaced.max_steps, replaced.use_cpu) == (2, True)
    assert vars(given) == before


def test_local_rows_are_used(values, settings: dict[str, Any]):
    with dry_run(METHOD, values()) as (replaced, _):
        rows = [json.loads(line) for line in Path(replaced.dataset_name).read_text().splitlines()]
    assert rows == json.loads(Path(settings["dataset_name"]).read_text())


@pytest.mark.skipif(torch.accelerator.is_available(), reason="the machine has an accelerator")
def test_gpu_settings_are_removed_with_a_message(values, capsys: pytest.CaptureFixture[str]):
    kwargs = {"dtype": "float32", "attn_implementation": "flash_attention_2"}
    given = values(load_in_4bit=True, attn_implementation="flash_attention_2", teacher_model_init_kwargs=kwargs)
    with dry_run(METHOD, given) as (replaced, _):
        assert (replaced.load_in_4bit, replaced.attn_implementation) == (False, None)
        assert replaced.teacher_model_init_kwargs == {"dtype": "float32"}
    out = capsys.readouterr().out
    assert "load_in_4bit" in out and "attn_implementation" in out


def test_vllm_is_replaced_with_a_message(values, capsys: pytest.CaptureFixture[str]):
    server = {"vllm_mode": "server", "vllm_server_base_url": "http://localhost:8000"}
    with dry_run(METHOD, values(lmbda=1.0, use_vllm=True, **server)) as (replaced, _):
        found = (replaced.use_vllm, replaced.vllm_mode, replaced.vllm_server_base_url)
        assert found == (False, "colocate", None)
    printed = capsys.readouterr().out
    assert "use_vllm = True: False, so that" in printed
    assert "vLLM and its options" in printed


@pytest.mark.parametrize("known", [True, False])
def test_a_server_is_replaced(
    values, pair: tuple[str, str], recipe, settings: dict[str, Any], capsys: pytest.CaptureFixture[str], known: bool
):
    served = settings | {
        "teacher_base_url": "http://nowhere.invalid/v1",
        "teacher_api_key_env": "NO_SUCH_KEY",
        "teacher_model_name_or_path": pair[1] if known else "alias-on-the-server",
        "teacher_max_requests": 1,
    }
    assert main(["akd", "--config", recipe(served), "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "http://nowhere.invalid/v1: a mock server with the tiny teacher" in out
    assert f"{served['teacher_model_name_or_path']}: {'qwen2' if known else 'llama'} of 2 layers" in out
    assert "requests to the teacher's server" in out


def test_no_files_remain(settings: dict[str, Any], recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    before = set(tmp_path.rglob("*"))
    path = recipe(settings)
    assert main(["akd", "--config", path, "--dry_run"]) == 0
    assert set(tmp_path.rglob("*")) - before == {Path(path)}
    out = capsys.readouterr().out
    for name in ("model_name_or_path", "teacher_model_name_or_path", "dataset_name"):
        assert settings[name] in out


def test_failed_dry_run_does_not_report_success(settings: dict[str, Any], recipe, capsys: pytest.CaptureFixture[str]):
    settings |= {"use_peft": True, "lora_target_modules": ["c_attn"]}
    assert main(["akd", "--config", recipe(settings), "--dry_run"]) == 2
    out, err = capsys.readouterr()
    assert "c_attn" in err and "Dry run passed" not in out
