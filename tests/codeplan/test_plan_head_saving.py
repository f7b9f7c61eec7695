"""Saving, pushing, adapting and merging a model keep its plan head."""

import copy
import pickle
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import AutoPeftModel, AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.utils import cached_file

from tests import tiny
from tests.hub.fixtures import hub
from tests.hub.loopback import Hub
from trl_akd.codeplan.plan_head import (
    PLAN_HEAD_FILE,
    add_plan_head,
    find_plan_head,
    load_plan_head,
    plan_head_of,
    writing_plans,
)
from trl_akd.evaluation.evaluation_config import EvaluationConfig
from trl_akd.generation.loading import load_generator

from .test_plan_head import separate_plan_head

__all__ = ["hub"]

PROMPT = {"input_ids": torch.arange(6)[None]}


def lora(**settings):
    return LoraConfig(**{"r": 2, "task_type": "CAUSAL_LM", "target_modules": ["q_proj"], **settings})


def plan_logits(model):
    with torch.no_grad(), writing_plans(model):
        return model.eval()(**PROMPT).logits


def saved_head(folder: Path):
    return load_file(folder / PLAN_HEAD_FILE)["weight"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tiny.model("llama_tied").save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def pushed(monkeypatch):
    """Names of the files of each push to the Hub, which is mocked."""
    from transformers.utils import hub

    pushes = []

    class Api:
        def create_repo(self, repo_id, **kwargs):
            self.repo_id = repo_id
            return self

        def create_commit(self, operations, **kwargs):
            pushes.append((kwargs["repo_id"], sorted(operation.path_in_repo for operation in operations)))

    monkeypatch.setattr(hub, "hf_api", Api)
    monkeypatch.setattr(hub, "create_and_tag_model_card", lambda *args, **kwargs: ModelCard("A model."))
    return pushes


# The model's own methods


@pytest.mark.parametrize("settings", [{}, {"max_shard_size": "20KB"}])
def test_save_pretrained(tmp_path: Path, settings):
    model = tiny.model("llama_tied")
    head = separate_plan_head(model)
    model.save_pretrained(tmp_path, **settings)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    load_plan_head(again, str(tmp_path))
    assert torch.equal(plan_head_of(again).weight, head.weight)
    assert torch.equal(plan_logits(again), plan_logits(model))
    weights = {key for path in tmp_path.glob("model*.safetensors") for key in load_file(path)}
    assert weights == set(tiny.model("llama_tied").state_dict()) - {"lm_head.weight"}
    assert (len(list(tmp_path.glob("model*.safetensors"))) > 1) == bool(settings)


def test_save_pretrained_of_a_state_dict(tmp_path: Path):
    """The gathered state dict is used; without a plan head in it, that of the model is used."""
    model = tiny.model("llama_tied")
    head = separate_plan_head(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["plan_head.weight"] += 1
    model.save_pretrained(tmp_path / "whole", state_dict=dict(state))
    assert torch.equal(saved_head(tmp_path / "whole"), head.weight + 1)
    assert "plan_head.weight" not in load_file(tmp_path / "whole" / "model.safetensors")
    del state["plan_head.weight"]
    model.save_pretrained(tmp_path / "part", state_dict=state)
    assert torch.equal(saved_head(tmp_path / "part"), head.weight)


def test_one_process_saves(tmp_path: Path):
    model = tiny.model("llama_tied")
    add_plan_head(model)
    model.save_pretrained(tmp_path, is_main_process=False)
    assert list(tmp_path.iterdir()) == []


def test_sharded_plan_head_is_not_saved(tmp_path: Path):
    model = tiny.model("llama_tied")
    add_plan_head(model).weight.data = torch.empty(0)
    with pytest.raises(ValueError, match=r"sharded by ZeRO-3.*`trainer.save_model`"):
        model.save_pretrained(tmp_path)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copied_model_saves_its_own_plan_head(tmp_path: Path, duplicate):
    model = tiny.model("llama_tied")
    separate_plan_head(model)
    other = duplicate(model)
    with torch.no_grad():
        plan_head_of(other).weight.zero_()
    other.save_pretrained(tmp_path)
    assert not saved_head(tmp_path).any()
    model.save_pretrained(tmp_path)
    assert torch.equal(saved_head(tmp_path), plan_head_of(model).weight)


@pytest.mark.parametrize("adapted", [False, True])
def test_push_to_hub(pushed, base: Path, tmp_path: Path, adapted):
    model = AutoModelForCausalLM.from_pretrained(base)
    model = get_peft_model(model, lora()) if adapted else model
    separate_plan_head(model)
    weights = "adapter_model.safetensors" if adapted else "model.safetensors"
    model.push_to_hub("me/mine")
    model.save_pretrained(tmp_path / "pushed", push_to_hub=True, repo_id="me/other", commit_message="Both")
    model.save_pretrained(tmp_path / "named", push_to_hub=True)
    assert [name for name, _ in pushed] == ["me/mine", "me/other", "named"]
    for _, files in pushed:
        assert {weights, PLAN_HEAD_FILE} <= set(files)
    assert torch.equal(saved_head(tmp_path / "pushed"), plan_head_of(model).weight)


# Adapters


def test_adapter_is_saved_with_its_plan_head(trainer, base: Path, tmp_path: Path):
    """The plan head is trained, saved, and found by every way of loading the adapter's folder."""
    made = trainer(str(base), peft_config=lora())
    made.train()
    folder = tmp_path / "adapter"
    made.save_model(str(folder))
    expected = plan_logits(made.model)
    assert not torch.equal(expected, made.model(**PROMPT).logits)

    config = EvaluationConfig(model_name_or_path=str(folder), benchmark="humaneval", allow_code_execution=True)
    evaluated = load_generator(config, chat=False).model
    load_plan_head(evaluated, str(folder))
    torch.testing.assert_close(plan_logits(evaluated), expected)

    further = trainer(str(folder))
    torch.testing.assert_close(plan_logits(further.model), expected)
    trained = {name for name, value in further.model.named_parameters() if value.requires_grad}
    assert any("lora_A" in name for name in trained) and any("plan_head" in name for name in trained)
    assert trained == {name for name, value in made.model.named_parameters() if value.requires_grad}
    further.train()
    further.save_model(str(tmp_path / "further"))
    assert torch.equal(saved_head(tmp_path / "further"), plan_head_of(further.model).weight)
    assert not torch.equal(plan_logits(further.model), expected)


def test_merged_model_keeps_the_plan_head(trainer, base: Path, tmp_path: Path):
    made = trainer(str(base), peft_config=lora())
    made.train()
    expected = plan_logits(made.model)
    merged = made.model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    load_plan_head(again, str(tmp_path / "merged"))
    torch.testing.assert_close(plan_logits(again), expected)
    tiny.tokenizer().save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(plan_logits(trainer(str(tmp_path / "merged")).model), expected)


def test_adapter_without_a_plan_head_uses_that_of_its_base_model(trainer, base: Path, tmp_path: Path):
    model = AutoModelForCausalLM.from_pretrained(base)
    head = separate_plan_head(model)
    model.save_pretrained(base)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora()).save_pretrained(tmp_path / "adapter")
    assert find_plan_head(str(tmp_path / "adapter")) == base / PLAN_HEAD_FILE
    assert torch.equal(plan_head_of(trainer(str(tmp_path / "adapter")).model).weight, head.weight)
    with pytest.raises(ValueError, match="`plan_head` is 'shared', but"):
        trainer(str(tmp_path / "adapter"), plan_head="shared")


def test_training_of_an_adapter_in_a_subfolder_continues(trainer, base: Path, tmp_path: Path):
    made = trainer(str(base), peft_config=lora())
    made.train()
    made.save_model(str(tmp_path / "student" / "step-100"))
    shutil.copy(base / "tokenizer.json", tmp_path / "student")
    shutil.copy(base / "tokenizer_config.json", tmp_path / "student")
    source = {"subfolder": "step-100"}
    assert find_plan_head(str(tmp_path / "student"), **source) == tmp_path / "student/step-100" / PLAN_HEAD_FILE
    further = trainer(str(tmp_path / "student"), model_init_kwargs=source)
    torch.testing.assert_close(plan_logits(further.model), plan_logits(made.model))
    (tmp_path / "student/step-100" / PLAN_HEAD_FILE).unlink()
    with pytest.raises(ValueError, match="step-100' was trained with a plan head"):
        trainer(str(tmp_path / "student"), model_init_kwargs=source)


def test_a_model_saved_with_an_adapter_does_not_use_the_plan_head_of_the_base_model(base: Path, tmp_path: Path):
    model = AutoModelForCausalLM.from_pretrained(base)
    separate_plan_head(model)
    model.save_pretrained(base)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora()).save_pretrained(tmp_path / "both")
    assert find_plan_head(str(tmp_path / "both")) is not None
    tiny.model("llama_tied").save_pretrained(tmp_path / "both")
    assert find_plan_head(str(tmp_path / "both")) is None


def test_new_adapter_of_a_model_with_a_plan_head(trainer, base: Path, tmp_path: Path):
    """The plan head is fully trained and saved although the adapter freezes the model."""
    model = AutoModelForCausalLM.from_pretrained(base)
    before = separate_plan_head(model).weight.detach().clone()
    made = trainer(model, peft_config=lora())
    assert torch.equal(plan_head_of(made.model).weight, before)
    made.train()
    assert not torch.equal(plan_head_of(made.model).weight, before)
    made.model.save_pretrained(tmp_path / "adapter")
    assert torch.equal(saved_head(tmp_path / "adapter"), plan_head_of(made.model).weight)


def test_loading_into_a_frozen_plan_head(base: Path, tmp_path: Path):
    model = AutoModelForCausalLM.from_pretrained(base)
    before = separate_plan_head(model).weight.detach().clone()
    model.save_pretrained(tmp_path / "model")
    adapted = get_peft_model(model, lora())
    with torch.no_grad():
        plan_head_of(adapted).weight.zero_()
    load_plan_head(adapted, str(tmp_path / "model"))
    assert plan_head_of(adapted).weight.requires_grad
    adapted.save_pretrained(tmp_path / "adapter")
    assert torch.equal(saved_head(tmp_path / "adapter"), before)


@pytest.mark.parametrize("settings", [{"target_modules": "all-linear"}, {"modules_to_save": ["plan_head"]}])
def test_adapter_of_the_plan_head_is_refused(trainer, base: Path, settings):
    model = AutoModelForCausalLM.from_pretrained(base)
    add_plan_head(model)
    with pytest.raises(ValueError, match="the plan head has a PEFT adapter"):
        trainer(model, peft_config=lora(**settings))


def test_adapter_without_its_folder_is_a_warning(trainer, base: Path, tmp_path: Path, caplog):
    made = trainer(str(base), peft_config=lora())
    made.save_model(str(tmp_path / "adapter"))

    def load():
        return PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter", is_trainable=True
        )

    trainer(load())
    assert "adapter has no plan head" in caplog.text
    caplog.clear()
    student = load()
    load_plan_head(student, str(tmp_path / "adapter"))
    trainer(student)
    assert "adapter has no plan head" not in caplog.text


def test_adapter_with_a_name_is_saved_with_its_plan_head(trainer, base: Path, tmp_path: Path):
    """PEFT writes it to a folder of its own."""
    student = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora(), adapter_name="student")
    made = trainer(student, save_strategy="steps", save_steps=1, output_dir=str(tmp_path / "run"))
    made.train()
    made.save_model(str(tmp_path / "saved"))
    expected = plan_logits(made.model)
    folder = tmp_path / "saved" / "student"
    torch.testing.assert_close(plan_logits(trainer(str(folder)).model), expected)
    made.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    torch.testing.assert_close(plan_logits(made.model), expected)
    (folder / PLAN_HEAD_FILE).unlink()
    with pytest.raises(ValueError, match="was trained with a plan head"):
        find_plan_head(str(folder))


def test_an_adapter_inside_an_adapter(trainer, base: Path, tmp_path: Path):
    trainer(str(base), peft_config=lora()).save_model(str(tmp_path / "adapter"))
    with pytest.raises(ValueError, match=r"`model` is the folder of an adapter, .* `peft_config` describes another"):
        trainer(str(tmp_path / "adapter"), peft_config=lora())


def test_an_adapter_of_nothing(trainer, tmp_path: Path):
    get_peft_model(tiny.model(), lora()).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="does not name its base model"):
        trainer(str(tmp_path / "adapter"))


# The declaration in the configuration


def saved(folder: Path, kind: str, base: Path) -> Path:
    """Save a student with a plan head as `kind` and return its folder."""
    model = AutoModelForCausalLM.from_pretrained(base)
    if kind != "model":
        task = None if kind == "untyped adapter" else "CAUSAL_LM"
        model = get_peft_model(model, lora(task_type=task))
    separate_plan_head(model)
    if kind == "merged":
        model = model.merge_and_unload()
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["model", "adapter", "untyped adapter", "merged"])
def test_missing_plan_head_file_is_an_error(trainer, base: Path, tmp_path: Path, kind: str):
    folder = saved(tmp_path / "saved", kind, base)
    assert find_plan_head(str(folder)) == folder / PLAN_HEAD_FILE
    (folder / PLAN_HEAD_FILE).unlink()
    for use in (find_plan_head, lambda name: trainer(name), lambda name: trainer(name, plan_head="shared")):
        with pytest.raises(
            ValueError, match=r"was trained with a plan head .* but its plan_head.safetensors is missing"
        ):
            use(str(folder))
    if "adapter" not in kind:
        with pytest.raises(ValueError, match="declares a plan head, but the model has none; call `load_plan_head"):
            model = AutoModelForCausalLM.from_pretrained(folder)
            model.config._name_or_path = ""
            trainer(model)


@pytest.mark.parametrize("kind", ["model", "adapter", "untyped adapter"])
def test_other_libraries_load_the_model(base: Path, tmp_path: Path, kind: str, recwarn):
    folder = str(saved(tmp_path / "saved", kind, base))
    recwarn.clear()
    if kind == "model":
        AutoModelForCausalLM.from_pretrained(folder)
    else:
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
        AutoPeftModelForCausalLM.from_pretrained(folder) if kind == "adapter" else AutoPeftModel.from_pretrained(
            folder
        )
    assert [str(warning.message) for warning in recwarn if "Unexpected" in str(warning.message)] == []


def test_adapter_of_a_model_with_a_missing_plan_head(base: Path, tmp_path: Path):
    saved(base, "model", base)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora()).save_pretrained(tmp_path / "adapter")
    (base / PLAN_HEAD_FILE).unlink()
    with pytest.raises(ValueError, match=r"base' was trained with a plan head"):
        find_plan_head(str(tmp_path / "adapter"))


def test_cached_model_without_its_plan_head(base: Path, tmp_path: Path, monkeypatch):
    """Offline after `from_pretrained` alone, the missing plan head is an error."""
    cache = tmp_path / "cache"
    snapshot = cache / "models--me--student" / "snapshots" / ("0" * 40)
    saved(snapshot, "model", base)
    (snapshot / PLAN_HEAD_FILE).unlink()
    (cache / "models--me--student" / "refs").mkdir()
    (cache / "models--me--student" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("transformers.utils.hub.HF_HUB_CACHE", str(cache), raising=False)
    found = partial(cached_file, cache_dir=str(cache))
    monkeypatch.setattr("trl_akd.codeplan.plan_head.cached_file", found)
    with pytest.raises(ValueError, match="'me/student' was trained with a plan head"):
        find_plan_head("me/student")


def test_models_without_a_plan_head(base: Path):
    assert find_plan_head(str(base)) is None
    assert find_plan_head("nobody/nothing") is None


# The trainer's pushes, and heads of earlier runs


def test_pushed_checkpoint_has_the_plan_head(trainer, hub: Hub, tmp_path: Path):
    made = trainer(save_strategy="steps", save_steps=1, hub_strategy="every_save", output_dir=str(tmp_path))
    made.train()
    shutil.rmtree(tmp_path / "checkpoint-1")
    made.push_in_progress, made.hub_model_id = None, "me/mine"
    made._push_from_checkpoint(str(tmp_path / "checkpoint-2"))
    made._finish_current_push()
    assert {PLAN_HEAD_FILE, "model.safetensors"} <= set(hub.files("me/mine"))
    assert not {"optimizer.pt", "training_args.bin", "trainer_state.json"} & set(hub.files("me/mine"))


def test_a_push_is_the_student_with_its_plan_head_and_its_card(trainer, hub: Hub, tmp_path: Path):
    made = trainer(save_strategy="steps", save_steps=1, output_dir=str(tmp_path / "run"), hub_model_id="me/mine")
    made.train()
    made.push_to_hub()
    files = hub.files("me/mine")
    expected = {PLAN_HEAD_FILE, "model.safetensors", "config.json", "README.md", "tokenizer.json"}
    assert expected <= set(files)
    assert not [file for file in files if file.startswith("checkpoint") or file.endswith((".bin", ".pt"))]


def test_plan_head_of_an_earlier_run_is_removed(trainer, hub: Hub, tmp_path: Path):
    earlier = tiny.model()
    add_plan_head(earlier)
    for folder in ("saved", "run"):
        earlier.save_pretrained(tmp_path / folder)
    made = trainer(
        plan_head="shared",
        save_strategy="steps",
        save_steps=2,
        hub_strategy="every_save",
        output_dir=str(tmp_path / "run"),
    )
    made.train()
    made.save_model(str(tmp_path / "saved"))
    assert find_plan_head(str(tmp_path / "saved")) is None
    made.push_in_progress, made.hub_model_id = None, "me/mine"
    hub.add("me/mine", {PLAN_HEAD_FILE: b"", "README.md": b"# Mine"})
    made._push_from_checkpoint(str(tmp_path / "run" / "checkpoint-2"))
    made._finish_current_push()
    assert PLAN_HEAD_FILE not in hub.files("me/mine") and "README.md" in hub.files("me/mine")


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\x10\x00"])
def test_error_names_a_damaged_file(tmp_path: Path, content: bytes):
    model = tiny.model()
    (tmp_path / PLAN_HEAD_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{PLAN_HEAD_FILE} is not a safetensors file .*; copy or download it again"):
        load_plan_head(model, str(tmp_path))
    assert plan_head_of(model) is None


def test_error_names_a_damaged_configuration(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"codeplan_plan')
    with pytest.raises(ValueError, match=r"config.json is not JSON .*; copy or download it again"):
        find_plan_head(str(tmp_path))
