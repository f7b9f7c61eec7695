"""`trl-akd push` and `push_to_hub` in a recipe, with the real client and a local server in place of the Hub."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import load_dataset
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests import tiny
from tests.hub.fixtures import TOKEN, hub
from tests.hub.loopback import DROP, Hub
from trl_akd.cli import main
from trl_akd.codeplan.plan_head import PLAN_HEAD_FILE, add_plan_head, adopt_plan_head, load_plan_head, plan_head_of
from trl_akd.hub.model_card import ModelCardContent, Provenance, model_card

__all__ = ["hub"]

TOKENIZER = {"special_tokens_map.json", "chat_template.jinja"}  # which versions save or not
STUDENT = {"README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
           "tokenizer_config.json"}  # fmt: skip
PROMPT = {"input_ids": torch.arange(6)[None]}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def write_card(folder: Path, student: str, *, adapter: bool = False) -> None:
    content = ModelCardContent("AKD", {}, folder.name, str(folder), ["akd"], adapter=adapter)
    model_card(Provenance(student=student, teacher="/models/teacher"), content).save(folder / "README.md")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Output folder of a training, with all that a training may leave there."""
    folder = tmp_path / "run"
    tiny.model().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    write_card(folder, "org/base")
    for name in ("training_args.bin", "checkpoint-2/optimizer.pt", "checkpoint-2/model.safetensors", ".env"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(TOKEN)
    (folder / "recipe.yaml").write_text("max_steps: 2\n")
    return folder


def adapted(folder: Path, base: Path, *, plan_head: bool = False) -> Any:
    """Save an adapter of a model in `base`, and return the model with the adapter."""
    tiny.model().save_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    if plan_head:
        with torch.no_grad():
            add_plan_head(model).weight.mul_(2.0)
    lora = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
    model = get_peft_model(model, lora)
    if plan_head:
        adopt_plan_head(model)
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    write_card(folder, str(base), adapter=True)
    return model


def pushed_card(hub: Hub, name: str) -> ModelCard:
    return ModelCard(hub.files(name)["README.md"].decode())


def download(hub: Hub, name: str, folder: Path) -> Path:
    folder.mkdir()
    for file, content in hub.files(name).items():
        (folder / file).write_bytes(content)
    return folder


def test_the_student_and_nothing_else(hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]):
    card = b"---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\n---\n"
    hub.add("org/base", {"README.md": card})
    assert main(["push", str(run), "--hub_model_id", "me/student", "--private"]) == 0
    assert capsys.readouterr().out.startswith(f"Student uploaded: {hub.endpoint}/me/student/commit/")
    assert set(hub.files("me/student")) - TOKENIZER == STUDENT | {"recipe.yaml"}
    assert hub.repositories["model", "me/student"].private
    data = pushed_card(hub, "me/student").data.to_dict()
    assert (data["base_model"], data["base_model_relation"], data["library_name"], data["pipeline_tag"]) == (
        "org/base",
        "finetune",
        "transformers",
        "text-generation",
    )
    assert (data["license"], data["license_name"]) == ("other", "mine")
    assert data["license_link"] == "https://huggingface.co/org/base/blob/main/LICENSE"
    text = pushed_card(hub, "me/student").text
    assert "# student\n" in text and text.count('from_pretrained("me/student")') == 2
    assert TOKEN.encode() not in hub.received and str(run.parent).encode() not in hub.received
    assert "outputs" not in text and b"/models/teacher" not in hub.received


def test_default_names(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(run)
    assert main(["push", "."]) == 0
    assert ("model", "me/run") in hub.repositories


@pytest.mark.parametrize("flags", [[], ["--hub_model_id", "run"]])
def test_the_card_names_the_namespace_of_the_user(hub: Hub, run: Path, flags: list[str]):
    assert main(["push", str(run), *flags]) == 0
    text = pushed_card(hub, "me/run").text
    assert text.count('from_pretrained("me/run")') == 2 and '"run"' not in text


def test_an_adapter_of_a_local_base_model(hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    adapted(tmp_path / "run", tmp_path / "base")
    assert main(["push", str(tmp_path / "run"), "--hub_model_id", "me/adapter"]) == 0
    assert "others cannot load the adapter" in caplog.text
    files = hub.files("me/adapter")
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "base"
    assert str(tmp_path).encode() not in hub.received and "config.json" not in files
    assert "base model was a local folder" in pushed_card(hub, "me/adapter").text


def test_a_base_model_that_is_on_the_hub_as_well(hub: Hub, tmp_path: Path):
    hub.add("org/base", {"README.md": b"---\nlicense: mit\n---\n"})
    adapted(tmp_path / "run", tmp_path / "base")
    assert main(["push", str(tmp_path / "run"), "--hub_model_id", "me/adapter", "--base_model", "org/base"]) == 0
    assert json.loads(hub.files("me/adapter")["adapter_config.json"])["base_model_name_or_path"] == "org/base"
    data = pushed_card(hub, "me/adapter").data.to_dict()
    assert (data["base_model"], data["base_model_relation"], data["license"]) == ("org/base", "adapter", "mit")
    assert data["library_name"] == "peft"


@pytest.mark.parametrize("plan_head", [False, True])
def test_a_merged_adapter(hub: Hub, tmp_path: Path, plan_head: bool):
    model = adapted(tmp_path / "run", tmp_path / "base", plan_head=plan_head)
    hub.add("me/student", {"adapter_config.json": b"{}", "adapter_model.safetensors": b""})
    assert main(["push", str(tmp_path / "run"), "--hub_model_id", "me/student", "--merge_adapter"]) == 0
    assert set(hub.files("me/student")) - TOKENIZER == STUDENT | ({PLAN_HEAD_FILE} if plan_head else set())
    again = AutoModelForCausalLM.from_pretrained(folder := download(hub, "me/student", tmp_path / "again"))
    with torch.no_grad():
        assert torch.allclose(again.eval()(**PROMPT).logits, model.eval()(**PROMPT).logits, atol=1e-5)
    if plan_head:
        load_plan_head(again, str(folder))
        assert torch.equal(plan_head_of(again).weight, plan_head_of(model).weight)
    card = pushed_card(hub, "me/student")
    assert card.data.library_name == "transformers" and "AutoPeftModel" not in card.text
    assert 'AutoModelForCausalLM.from_pretrained("me/student")' in card.text and "peft" not in card.text
    assert str(tmp_path).encode() not in hub.received


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "`run_dir` is missing; give the folder to upload"),
        (["nowhere"], "`run_dir` is 'nowhere', but there is no such folder; check the path."),
        (["empty"], "has neither config.json nor adapter_config.json"),
        (["empty", "--hub_dataset_id", "me/x"], "has nothing to upload as a dataset: neither plans.jsonl, nor"),
        (["run", "--merge_adapter"], "`merge_adapter` is on, but 'run' has a whole model; leave it out."),
        (["run", "--hub_dataset_id", "me/x", "--merge_adapter"], "are for a student; give `hub_model_id`"),
        (["without_card"], "'without_card' has no README.md, the model card"),
        (["run", "--hub_modelid", "me/x"], "did you mean `--hub_model_id`"),
        (["run", "--hub_model_id", "a/b/c"], "'a/b/c' is not a name on the Hub; give one such as 'me/student'"),
        (["run", "--hub_model_id", "my model"], "and `trl-akd push run --hub_model_id me/student` uploads them."),
    ],
)
def test_mistakes(hub: Hub, run: Path, flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    monkeypatch.chdir(run.parent)
    Path("empty").mkdir()
    tiny.model().save_pretrained("without_card")
    assert main(["push", *flags]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert message in err and err.startswith("trl-akd: ")
    assert not hub.repositories


def test_plans(hub: Hub, tmp_path: Path):
    rows = [{"id": "1", "problem": "Add.", "solutions": ["x"], "plans": ["1. <b>Add</b>."], "plan_solutions": [0]}]
    (tmp_path / "plans.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "answers.settings.json").write_text('{"model": "/models/teacher", "temperature": 0.2}')
    (tmp_path / "answers.jsonl").write_text("{}\n")
    assert main(["push", str(tmp_path), "--hub_dataset_id", "me/plans"]) == 0
    files = hub.files("me/plans", kind="dataset")
    assert set(files) == {"README.md", "plans.parquet"} and b"| Teacher" in files["README.md"]
    assert main(["push", str(tmp_path), "--hub_dataset_id", "short"]) == 0
    assert b'load_dataset("me/short", ' in hub.files("me/short", kind="dataset")["README.md"]
    assert b"/models" not in files["README.md"]
    folder = tmp_path / "again"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    assert list(load_dataset(str(folder), split="train")) == rows


# In a recipe


@pytest.mark.lengthy
def test_a_recipe_that_pushes(hub: Hub, settings: dict[str, Any], recipe, tmp_path: Path):
    pushes = {"push_to_hub": True, "hub_model_id": "me/student"}
    settings |= {"eval_strategy": "no", "save_strategy": "steps", "save_steps": 1, **pushes}
    assert main(["akd", "--config", recipe(settings)]) == 0
    files = hub.files("me/student")
    assert set(files) - TOKENIZER == STUDENT | {"recipe.yaml", "beta.svg"}
    as_run = yaml.safe_load(files["recipe.yaml"])
    assert as_run["max_steps"] == 2 and not any("hub" in key for key in as_run)
    assert TOKEN.encode() not in hub.received and str(tmp_path).encode() not in hub.received
    assert pushed_card(hub, "me/student").text.count('from_pretrained("me/student")') == 2


@pytest.mark.lengthy
def test_a_recipe_that_pushes_a_merged_adapter(hub: Hub, settings: dict[str, Any], recipe, tmp_path: Path):
    settings |= {"push_to_hub": True, "hub_model_id": "me/student", "use_peft": True, "hub_merge_adapter": True}
    assert main(["akd", "--config", recipe({**settings, "lora_target_modules": ["q_proj"]})]) == 0
    assert set(hub.files("me/student")) - TOKENIZER == STUDENT | {"recipe.yaml", "beta.svg"}
    assert AutoModelForCausalLM.from_pretrained(download(hub, "me/student", tmp_path / "again"))


@pytest.mark.lengthy
def test_a_connection_that_is_lost_after_training(hub: Hub, settings: dict[str, Any], recipe, tmp_path: Path, capsys):
    hub.fail("POST .*/commit/", *[DROP] * 5)
    settings |= {"push_to_hub": True, "hub_model_id": "me/student"}
    assert main(["akd", "--config", recipe(settings)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    again = f"`trl-akd push {tmp_path / 'run'} --hub_model_id me/student`"
    assert (
        "5 times in a row" in error and f"Nothing is lost: the files are in '{tmp_path / 'run'}', and {again}" in error
    )
    assert not hub.files("me/student")
    assert main(["push", str(tmp_path / "run"), "--hub_model_id", "me/student"]) == 0
    assert set(hub.files("me/student")) - TOKENIZER == STUDENT | {"recipe.yaml", "beta.svg"}


def test_a_token_without_write_access_is_reported_before_training(
    hub: Hub, settings: dict[str, Any], recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    hub.fail("POST /api/repos/create", 403)
    assert main(["akd", "--config", recipe({**settings, "push_to_hub": True, "hub_model_id": "me/student"})]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("trl-akd: The token may not write to 'me/student'; create one with write access at")
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_merging_without_an_adapter_is_refused(settings: dict[str, Any], recipe, capsys: pytest.CaptureFixture[str]):
    assert main(["akd", "--config", recipe({**settings, "hub_merge_adapter": True})]) == 2
    assert "`hub_merge_adapter` is on, which merges the adapter of `use_peft`" in capsys.readouterr().err


def test_the_command_that_repeats_a_push_is_whole(hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]):
    flags = ["--hub_model_id", "me/student", "--private", "true", "--base_model", "org/base", "--revision", "v2"]
    hub.fail("POST .*/commit/", 403)
    assert main(["push", str(run), *flags, "--commit_message", "my student"]) == 2
    whole = f"`trl-akd push {run} --hub_model_id me/student --private --base_model org/base --revision v2 "
    assert f"{whole}--commit_message 'my student'` uploads them" in capsys.readouterr().err
