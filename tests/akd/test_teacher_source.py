"""A teacher given by name: where its files are, and whether their code may run, is read from one place."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests import tiny
from trl_akd import AKDTrainer
from trl_akd.akd import model_utils
from trl_akd.akd.cache_creation import create_cache
from trl_akd.akd.model_card import provenance
from trl_akd.akd.validation import check_models
from trl_akd.generation import loading
from trl_akd.generation.loading import find_base_model, path_in_repository, source_arguments
from trl_akd.teachers import load_teacher
from trl_akd.teachers.cache_files import read_manifest


@pytest.fixture
def train(pair, config):
    """Train for two steps with a teacher and its `teacher_model_init_kwargs`, and return the trainer."""

    def trained(teacher: Any, init_kwargs: dict[str, Any] | None = None, **settings: Any) -> AKDTrainer:
        args = config(teacher_model_init_kwargs=init_kwargs, **settings)
        made = AKDTrainer(pair[0], teacher, args, train_dataset=tiny.rows(8), processing_class=tiny.tokenizer())
        made.train()
        return made

    return trained


def losses(trainer: AKDTrainer) -> list[float]:
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


def with_own_code(folder: Path, source: str) -> str:
    """A copy of a Qwen2 whose classes are in its own folder."""
    shutil.copytree(source, folder)
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnForLM"}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "own.py").write_text(
        "from transformers import Qwen2Config, Qwen2ForCausalLM\n\n\n"
        "class Own(Qwen2Config):\n    model_type = 'own'\n\n\n"
        "class OwnForLM(Qwen2ForCausalLM):\n    config_class = Own\n"
    )
    return str(folder)


def with_subfolder(folder: Path, source: str) -> str:
    shutil.copytree(source, folder / "step-100")
    return str(folder)


def save_adapter(folder: Path, base: str, **options: Any) -> str:
    model = AutoModelForCausalLM.from_pretrained(base)
    options = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, **options}
    get_peft_model(model, LoraConfig(**options)).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("place", "init_kwargs"),
    [
        (lambda folder, teacher: teacher, {"local_files_only": True, "subfolder": "", "token": None}),
        (with_subfolder, {"subfolder": "step-100"}),
        (with_own_code, {"trust_remote_code": True}),
    ],
    ids=["in place", "in a subfolder", "with its own code"],
)
def test_the_same_teacher_in_other_places(pair, train, tmp_path, place, init_kwargs):
    given = place(tmp_path / "teacher", pair[1])
    assert losses(train(given, init_kwargs)) == losses(train(pair[1]))


def test_code_of_a_teacher_needs_consent(pair, train, tmp_path):
    with pytest.raises(ValueError, match="trust_remote_code"):
        train(with_own_code(tmp_path / "teacher", pair[1]))


@pytest.mark.parametrize("subfolder", [None, "step-100"])
@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["lm_head"]}], ids=str)
def test_the_folder_of_an_adapter(pair, train, tmp_path, subfolder, options):
    folder = save_adapter(tmp_path / "adapter" / (subfolder or ""), pair[1], **options)
    loaded = load_teacher(folder)
    made = train(str(tmp_path / "adapter"), None if subfolder is None else {"subfolder": subfolder})
    assert losses(made) == losses(train(loaded)) != losses(train(pair[1]))
    expected = path_in_repository(str(tmp_path / "adapter"), {"subfolder": subfolder})
    assert made.provenance.teacher == expected


def test_an_adapter_without_its_base_model_or_of_virtual_tokens(pair, train, tmp_path):
    folder = Path(save_adapter(tmp_path / "nameless", pair[1]))
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="is an adapter that does not name its base model"):
        train(str(folder))
    model = AutoModelForCausalLM.from_pretrained(pair[1])
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(model, prompt).save_pretrained(tmp_path / "prompt")
    with pytest.raises(ValueError, match="PromptTuningConfig, which learns virtual tokens"):
        train(str(tmp_path / "prompt"))


def test_an_adapter_without_a_tokenizer(pair, train, tmp_path):
    folder = Path(save_adapter(tmp_path / "adapter", pair[1]))
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"no tokenizer could be loaded .*adapter'.*`teacher_tokenizer`"):
        train(str(folder))


def test_a_model_that_was_saved_with_its_adapter_is_not_an_adapter(pair, tmp_path):
    folder = save_adapter(tmp_path / "both", pair[1])
    assert find_base_model(folder, {})[0] == pair[1]
    AutoConfig.from_pretrained(pair[1]).save_pretrained(folder)
    assert find_base_model(folder, {}) is None


def test_arguments_of_the_base_model(pair, tmp_path):
    folder = Path(save_adapter(tmp_path / "adapter", pair[1]))
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "revision": "v2"}))
    source = {"revision": "v1", "code_revision": "c", "token": "t", "trust_remote_code": True}
    assert find_base_model(str(folder), source) == (
        pair[1],
        {"revision": "v2", "token": "t", "trust_remote_code": True},
    )


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Record the arguments with which configuration, model and tokenizer of a teacher on the Hub are loaded."""
    calls: list[tuple[str, dict[str, Any]]] = []

    class Recorded:
        is_encoder_decoder = False

        @classmethod
        def from_pretrained(cls, name, **kwargs):
            calls.append((name, kwargs))
            return cls()

        def get_vocab(self):
            return {"a": 0, "b": 1}

        def get_added_vocab(self):
            return {}

    for name in ("transformers.AutoConfig", "transformers.AutoModelForCausalLM"):
        monkeypatch.setattr(name, Recorded)
    monkeypatch.setattr(model_utils, "AutoTokenizer", Recorded)
    monkeypatch.setattr(
        "transformers.utils.find_adapter_config_file", lambda name, **kwargs: calls.append((name, kwargs))
    )
    return calls


@pytest.mark.parametrize(
    "init_kwargs",
    [
        {"revision": "step-100"},
        {"subfolder": "step-100", "token": "t", "cache_dir": "/c"},
        {"trust_remote_code": True, "code_revision": "c", "local_files_only": True},
    ],
    ids=str,
)
def test_each_part_of_a_teacher_is_loaded_from_the_same_place(config, seen, init_kwargs):
    args = config(teacher_model_name_or_path="me/x", teacher_model_init_kwargs={**init_kwargs, "dtype": "float32"})
    load_teacher("me/x", init_kwargs=args.teacher_model_init_kwargs)
    model_utils.tokenizer_of("me/x", args, tiny.tokenizer())
    expected = {"revision": "main", "trust_remote_code": False, **init_kwargs}
    adapter, settings, model, tokenizer = seen
    found_by = {k: v for k, v in expected.items() if k not in ("trust_remote_code", "code_revision")}
    assert adapter == ("me/x", found_by)
    assert settings == tokenizer == ("me/x", expected) == ("me/x", args.teacher_source)
    assert model == ("me/x", {**expected, "dtype": "float32", "adapter_kwargs": found_by})


@pytest.mark.parametrize(
    ("student", "teacher", "same"),
    [
        ({}, {}, True),
        ({}, {"revision": "main"}, True),
        ({"revision": "a"}, {"revision": "a"}, True),
        ({}, {"revision": "step-100"}, False),
        ({"revision": "a"}, {}, False),
        ({}, {"subfolder": "step-100"}, False),
        ({"subfolder": "step-100"}, {"subfolder": "step-100"}, True),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["me/x", "folder"])
def test_identity_of_student_and_teacher(config, tmp_path, name, student, teacher, same):
    if name == "folder":
        name = str(tmp_path)
        (tmp_path / "step-100").mkdir()
        same = student.get("subfolder") == teacher.get("subfolder")  # revisions are of the Hub
    args = config(model_init_kwargs=student or None, teacher_model_init_kwargs=teacher or None)
    if same:
        with pytest.raises(ValueError, match="student and teacher are the same model"):
            check_models(name, name, args, trains_adapter=False)
    else:
        check_models(name, name, args, trains_adapter=False)


@pytest.mark.parametrize("init_kwargs", [{"revision": "v2"}, {"subfolder": "a"}, {"revision": "v2", "subfolder": "a"}])
def test_provenance_and_cache_of_a_teacher_on_the_hub(pair, config, train, tmp_path, monkeypatch, init_kwargs):
    """The teacher's name is that of a folder here, relative to the current one, whose files cannot be compared."""
    monkeypatch.chdir(tmp_path)
    for folder in ("me/x", "me/x/a"):
        shutil.copytree(pair[1], folder, dirs_exist_ok=True)
    made = train("me/x", init_kwargs, teacher_model_name_or_path="me/x", max_steps=1)
    path, revision = f"me/x{'/a' if 'subfolder' in init_kwargs else ''}", init_kwargs.get("revision", "main")
    assert (made.provenance.teacher, made.provenance.teacher_revision) == (path, revision)
    for module in ("cache_creation", "teacher_cache"):
        monkeypatch.setattr(f"trl_akd.akd.{module}.weights_fingerprint", lambda name: None)
    create_cache(made, tmp_path / "cache")
    manifest = read_manifest(tmp_path / "cache")
    assert (manifest.teacher, manifest.teacher_revision) == (path, revision)
    named = {"teacher_model_name_or_path": "me/x", "teacher_cache": str(tmp_path / "cache")}
    train(None, init_kwargs, **named)
    for other in ({}, {"revision": "v3"}, {"subfolder": "b"}, {**init_kwargs, "revision": "v1"}):
        with pytest.raises(ValueError, match="create the cache again, or name the same teacher"):
            train(None, other, **named)


def test_a_cache_of_a_local_subfolder(pair, train, tmp_path):
    folder = Path(with_subfolder(tmp_path / "teacher", pair[1]))
    made = train(str(folder), {"subfolder": "step-100"}, max_steps=1)
    create_cache(made, tmp_path / "cache")
    assert read_manifest(tmp_path / "cache").teacher_weights == loading.weights_fingerprint(pair[1])
    named = {"teacher_model_name_or_path": str(folder), "teacher_cache": str(tmp_path / "cache")}
    train(None, {"subfolder": "step-100"}, **named)
    with pytest.raises(ValueError, match="or its files have changed"):
        train(None, None, **named)


def test_commit_of_an_adapter_is_not_that_of_its_base_model(config):
    args = config(teacher_model_init_kwargs={"revision": "v2"})
    student, teacher = tiny.model(), tiny.model("qwen2")
    teacher.config._commit_hash = "abc"
    assert provenance("s", "me/x", args, student, teacher).teacher_revision == "abc"
    adapted = get_peft_model(teacher, LoraConfig(target_modules=["q_proj"]))
    assert provenance("s", "me/x", args, student, adapted).teacher_revision == "v2"
    assert provenance("s", adapted, config(), student, adapted).teacher_revision == "abc"


def test_text_is_no_source():
    assert source_arguments("{}", revision="main") == source_arguments(None, revision="main") == {"revision": "main"}


def test_tokenizer_of_a_subfolder(pair, config, tmp_path):
    folder = with_subfolder(tmp_path / "teacher", pair[1])
    args = config(teacher_model_init_kwargs={"subfolder": "step-100"})
    expected = AutoTokenizer.from_pretrained(pair[1]).get_vocab()
    assert model_utils.tokenizer_of(folder, args, None).get_vocab() == expected
