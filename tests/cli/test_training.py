import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset, DatasetDict

from tests import tiny
from trl_akd.akd.akd_trainer import AKDTrainer
from trl_akd.cli import main
from trl_akd.cli.akd import METHOD
from trl_akd.cli.parsing import RecipeParser
from trl_akd.cli.recipes import Recipe
from trl_akd.cli.training import find_checkpoint, load_datasets, load_tokenizers, warn_about_model


@pytest.fixture
def parse(parser: RecipeParser, settings: dict[str, Any]):
    """Dataclasses of the tiny recipe with some values replaced; `None` removes a key."""

    def make(**replaced: Any) -> Any:
        values = {key: value for key, value in {**settings, **replaced}.items() if value is not None}
        return parser.dataclasses(parser.values(Recipe(Path("recipe.yaml"), values)))

    return make


def test_new_run_has_no_checkpoint(parse):
    assert find_checkpoint(parse()[1]) is None
    assert find_checkpoint(parse(resume_from_checkpoint="false")[1]) is None


@pytest.mark.parametrize("file", ["config.json", "adapter_config.json", "trainer_state.json", None])
def test_a_run_that_replaces_a_student_is_a_warning(file: str | None, parse, caplog: pytest.LogCaptureFixture):
    args = parse()[1]
    if file is not None:
        Path(args.output_dir).mkdir()
        (Path(args.output_dir) / file).touch()
    warn_about_model(args)
    expected = f"`output_dir` {args.output_dir!r} has a trained model, which this run replaces at its end"
    assert [message.partition(";")[0] for message in caplog.messages] == [expected] * ("config" in str(file))


def test_nothing_to_resume(parse):
    with pytest.raises(ValueError, match=r"`resume_from_checkpoint` is true, but `output_dir` .* has no checkpoint"):
        find_checkpoint(parse(resume_from_checkpoint=True)[1])


def test_incomplete_checkpoint_is_skipped(parse, tmp_path: Path):
    """A checkpoint without its last file, after a full disk or a kill, is skipped; 10 comes after 9."""
    args = parse(resume_from_checkpoint=True)[1]
    args.check_checkpoint = lambda path: None
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-11", "checkpoint-best"):
        (Path(args.output_dir) / name).mkdir(parents=True)
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-best"):
        (Path(args.output_dir) / name / "trainer_state.json").touch()
    assert Path(find_checkpoint(args)).name == "checkpoint-10"


def test_path_without_a_checkpoint(parse, tmp_path: Path):
    with pytest.raises(ValueError, match="which is not a checkpoint folder"):
        find_checkpoint(parse(resume_from_checkpoint=str(tmp_path))[1])


def test_checkpoint_of_another_trainer(parse, tmp_path: Path):
    (tmp_path / "trainer_state.json").touch()
    with pytest.raises(ValueError, match=r"which has no akd_state.pt: another trainer wrote it"):
        find_checkpoint(parse(resume_from_checkpoint=str(tmp_path))[1])


def test_rows_held_out(parse):
    train, test = load_datasets(*parse(eval_strategy="epoch")[:2])
    assert (len(train), len(test)) == (6, 2)
    assert not set(train["output"]) & set(test["output"])


def test_rows_are_held_out_even_without_evaluation(parse):
    train, test = load_datasets(*parse(test_size=0.25)[:2])
    assert (len(train), test) == (6, None)


def test_all_rows_without_evaluation(parse):
    train, test = load_datasets(*parse(test_size=None)[:2])
    assert (len(train), test) == (8, None)


def test_explicit_test_split(parse, tmp_path: Path):
    splits = {name: Dataset.from_list([{"prompt": name, "completion": "y"}] * 3) for name in ("train", "valid")}
    DatasetDict(splits).save_to_disk(tmp_path / "saved")
    given = {"dataset_name": str(tmp_path / "saved"), "test_size": None, "eval_strategy": "epoch"}
    _, test = load_datasets(*parse(**given, dataset_test_split="valid")[:2])
    assert test["prompt"][:] == ["valid"] * 3
    with pytest.raises(ValueError, match=r"`eval_strategy` is 'epoch'.*no split 'test'.*set `test_size`"):
        load_datasets(*parse(**given)[:2])


@pytest.mark.parametrize("size", [0, -1, 1.5])
def test_test_size_out_of_range(size: float, parse):
    with pytest.raises(ValueError, match=f"`test_size` is {float(size)}"):
        parse(test_size=size)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (None, ValueError, "`dataset_name` is not set"),
        ("missing.json", FileNotFoundError, "no file or folder 'missing.json'"),
    ],
)
def test_missing_dataset(name: str | None, error: type[Exception], message: str, parse):
    with pytest.raises(error, match=message):
        load_datasets(*parse(dataset_name=name)[:2])


def test_tokenizers_of_both_models(parse):
    _, training_args, model_args, _ = parse()
    student, teacher = load_tokenizers(METHOD, model_args, training_args)
    assert student.get_vocab() == teacher.get_vocab() == tiny.tokenizer().get_vocab()


def test_no_teacher_tokenizer_without_a_teacher(parse):
    _, training_args, model_args, _ = parse(teacher_model_name_or_path=None)
    assert load_tokenizers(METHOD, model_args, training_args)[1] is None


@pytest.mark.parametrize("field", ["model_name_or_path", "teacher_model_name_or_path"])
def test_missing_model(field: str, parse, tmp_path: Path):
    _, training_args, model_args, _ = parse(**{field: str(tmp_path / "nowhere")})
    with pytest.raises(ValueError, match=f"`{field}` is '.*nowhere', which is neither a folder nor a name on the Hub"):
        load_tokenizers(METHOD, model_args, training_args)


def test_missing_student_name(parse):
    _, training_args, model_args, _ = parse(model_name_or_path=None)
    with pytest.raises(ValueError, match="`model_name_or_path` is not set"):
        load_tokenizers(METHOD, model_args, training_args)


def test_different_vocabulary(parse, pair: tuple[str, str], tmp_path: Path):
    other = tmp_path / "other"
    shutil.copytree(pair[1], other)
    content = json.loads((other / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(content))
    _, training_args, model_args, _ = parse(teacher_model_name_or_path=str(other))
    with pytest.raises(ValueError, match=r"id .* is 'a' for the student but 'b' for the teacher"):
        load_tokenizers(METHOD, model_args, training_args)


WRONG = {
    "learning_rate: -1": "`learning_rate` is -1.0; give a number of at least 0",
    "learning_rate: .nan": "`learning_rate` is nan; give a number of at least 0",
    "adam_beta1: 1.5": "`adam_beta1` is 1.5; give a number of at least 0 and below 1",
    "adam_beta2: -0.1": "`adam_beta2` is -0.1",
    "weight_decay: .inf": "`weight_decay` is inf",
    "gradient_accumulation_steps: 0": "`gradient_accumulation_steps` is 0; give a number of at least 1",
    "per_device_train_batch_size: 0": "`per_device_train_batch_size` is 0",
    "per_device_eval_batch_size: -1": "`per_device_eval_batch_size` is -1",
    "dataloader_num_workers: -1": "`dataloader_num_workers` is -1; give a number of at least 0",
    "accelerator_config: {foo: 1}": "`accelerator_config` is {'foo': 1}, with the unknown key `foo`",
    "eval_benchmark_limit: 5": "`eval_benchmark_limit` is 5, which has no effect without `eval_benchmark`; set that",
    "eval_prompt_style: chat": "`eval_prompt_style` is 'chat', which has no effect without `eval_benchmark`",
    "eval_on_start: true": "`eval_on_start` is on, but `eval_strategy` is 'no'",
    "model_init_kwargs: {foo: 1}": "unexpected keyword argument 'foo'; check the names in the fields `*_kwargs` and",
    "teacher_model_init_kwargs: {foo: 1}": "unexpected keyword argument 'foo'; check the names in the fields",
    "optim: schedule_free_adamw": "training cannot start: You need to install `schedulefree`",
    "lr_scheduler_type: cosine_with_min_lr": "training cannot start: One of min_lr or min_lr_rate should be set",
    "lr_scheduler_type: warmup_stable_decay": "training cannot start: get_wsd_schedule() missing 1 required",
    "lr_scheduler_kwargs: {foo: 1}": "does not take (get_linear_schedule_with_warmup() got an unexpected",
    "dataloader_persistent_workers: true": "training cannot start: persistent_workers option needs num_workers > 0",
    "eval_strategy: steps\neval_steps: 1\nsave_strategy: best\nmetric_for_best_model: foo": "is set to 'eval_foo'",
}


@pytest.mark.parametrize("lines", WRONG)
def test_wrong_settings_have_one_sentence(
    lines: str, settings: dict[str, Any], recipe, capsys: pytest.CaptureFixture[str]
):
    assert main(["akd", "--config", recipe({**settings, **yaml.safe_load(lines)})]) == 2
    assert WRONG[lines] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "warning"),
    [
        ({"lora_r": 8, "use_dora": True}, "`lora_r`, `use_dora`: no effect, since `use_peft` is off"),
        ({"lora_target_modules": ["q_proj"]}, "`lora_target_modules`: no effect"),
        ({"dataset_revision": "abc"}, "is on this machine; its revision, 'abc', is ignored"),
        ({"dataset_config": "abc"}, "is on this machine; its configuration, 'abc', is ignored"),
    ],
)
def test_settings_without_effect_that_a_flag_may_cause(
    setting: dict[str, Any], warning: str, settings: dict[str, Any], recipe, caplog: pytest.LogCaptureFixture
):
    assert main(["akd", "--config", recipe({**settings, **setting, "max_steps": 1})]) == 0
    assert warning in caplog.text


def test_bugs_in_training_have_a_traceback(settings: dict[str, Any], recipe, monkeypatch: pytest.MonkeyPatch):
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(AKDTrainer, "compute_loss", fail)
    with pytest.raises(ValueError, match="a bug"):
        main(["akd", "--config", recipe(settings)])
