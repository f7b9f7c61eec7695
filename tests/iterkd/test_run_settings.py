"""Settings that may change between two starts of a run, and the loading of complete students."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from tests import tiny
from tests.iterkd import cycle_world
from trl_akd.iterkd.cycle.config import CYCLE_MAY_CHANGE, CycleConfig
from trl_akd.iterkd.cycle.run_settings import MAY_CHANGE, model_settings, training_settings
from trl_akd.iterkd.cycle.teaching_config import MAY_CHANGE as TEACHING_MAY_CHANGE
from trl_akd.iterkd.cycle.teaching_config import TeachingConfig
from trl_akd.iterkd.iterkd_config import IterKDConfig
from trl_akd.iterkd.iterkd_trainer import IterKDTrainer
from trl_akd.iterkd.pair_trainer import PairTrainer

pytestmark = pytest.mark.lengthy

# Every field that a run may not change. A field that is neither here nor among those that may change was added by a
# new version of this package, TRL or transformers: say which it is.
SHAPES_WEIGHTS = {
    *("per_device_train_batch_size", "num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type"),
    *("lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2"),
    *("adam_epsilon", "optim_target_modules", "gradient_accumulation_steps", "average_tokens_across_devices"),
    *("max_grad_norm", "label_smoothing_factor", "bf16", "fp16", "tf32", "torch_compile", "torch_compile_backend"),
    *("torch_compile_mode", "use_liger_kernel", "liger_kernel_config", "use_cache", "neftune_noise_alpha"),
    *("divergence", "divergence_kwargs"),
    *("auto_find_batch_size", "load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    *("ignore_data_skip", "full_determinism", "seed", "data_seed", "accelerator_config", "parallelism_config"),
    *("dataloader_drop_last", "dataloader_in_order", "remove_unused_columns", "label_names"),
    *("train_sampling_strategy", "length_column_name", "model_init_kwargs", "trust_remote_code"),
    *("router_aux_loss_coef", "chat_template_path", "dataset_text_field", "dataset_kwargs", "eos_token"),
    *("max_length", "truncation_mode", "shuffle_dataset", "packing", "packing_strategy", "padding_free"),
    *("pad_to_multiple_of", "completion_only_loss", "assistant_only_loss", "loss_type", "pad_token"),
    *("temperature", "lmbda", "beta", "max_new_tokens", "teacher_model_name_or_path", "teacher_model_init_kwargs"),
    *("disable_dropout", "seq_kd", "beta_strategy", "beta_initial_values", "beta_learning_rate"),
    *("beta_regularization", "beta_regularizer", "kd_temperature", "normalization", "ce_weight", "prompt_template"),
    *("teacher_model_revision", "objective", "contrastive_weight", "contrastive_loss", "contrastive_beta"),
    *("teacher_cache", "teacher_cache_revision", "teacher_tail_samples"),
    *("simpo_margin", "max_faults", "teacher_top_k", "use_vllm", "vllm_mode", "vllm_model_impl"),
    *("vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout", "vllm_group_port"),
    *("vllm_enable_sleep_mode", "vllm_gpu_memory_utilization", "vllm_max_model_length", "vllm_tensor_parallel_size"),
}
SHAPES_CYCLES = {
    *("faults_per_question", "fault_kinds", "own_faults", "min_gap", "keep_unverified", "judge_retries"),
    *("judge_weight", "unknown_execution", "hard_at_most", "easy_at_least", "new_easy", "new_medium", "new_hard"),
    *("min_question_chars", "max_question_chars", "questions_per_cycle", "old_share", "mix_easy", "mix_medium"),
    *("mix_hard", "novelty_threshold", "overlap_words", "prompts_file", "judge_prompt_file"),
    *("teacher_temperature", "teacher_top_p", "teacher_max_new_tokens", "answer_max_new_tokens"),
}
SHAPES_TEXTS = {
    *("text_teacher_model_name_or_path", "text_teacher_model_revision", "text_teacher_dtype"),
    *("backend", "extra_body", "prompt_style", "judge", "judge_model_name_or_path", "judge_model_revision"),
    *("judge_backend", "judge_prompt_style"),
    *("judge_extra_body", "eval_benchmark", "eval_benchmark_limit", "decontaminate", "program_timeout"),
}


def names(config: type) -> set[str]:
    return {entry.name for entry in dataclasses.fields(config)}


@pytest.mark.parametrize(
    ("fields", "shapes", "may_change"),
    [
        (names(IterKDConfig) - names(CycleConfig), SHAPES_WEIGHTS, MAY_CHANGE),
        (names(CycleConfig), SHAPES_CYCLES, CYCLE_MAY_CHANGE),
        (names(TeachingConfig), SHAPES_TEXTS, TEACHING_MAY_CHANGE),
    ],
)
def test_every_field_is_classified(fields: set[str], shapes: set[str], may_change: set[str]):
    # a version of TRL or transformers may lack some
    assert fields - shapes - may_change == set() and not shapes & may_change


def test_ledgers_of_earlier_versions_have_the_defaults_of_new_fields(tmp_path):
    kept = training_settings(made(tmp_path))
    changed = training_settings(made(tmp_path, divergence="jsd", divergence_kwargs={"beta": 0.5}))
    assert not {"divergence", "divergence_kwargs"} & set(kept)
    assert (changed["divergence"], changed["divergence_kwargs"]) == ("jsd", {"beta": 0.5})


def made(tmp_path: Path, **changed: Any) -> IterKDConfig:
    cycle_world.prepare(tmp_path)
    return IterKDConfig(**cycle_world.settings(tmp_path, tmp_path / "run", **changed))


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"adam_beta2": 0.95}, "adam_beta2"),
        ({"adam_epsilon": 1e-6}, "adam_epsilon"),
        ({"lr_scheduler_type": "cosine"}, "lr_scheduler_type"),
        ({"lr_scheduler_kwargs": {"num_cycles": 2}}, "lr_scheduler_kwargs"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps"),
        ({"model_init_kwargs": {"revision": "other"}}, "model_init_kwargs"),
        ({"model_init_kwargs": {"dtype": "bfloat16"}}, "model_init_kwargs"),
        ({"dataloader_drop_last": True}, "dataloader_drop_last"),
        ({"accelerator_config": {"even_batches": False}}, "accelerator_config"),
        ({"warmup_steps": 3}, "warmup_steps"),
        ({"judge_retries": 2}, "judge_retries"),
        ({"logging_steps": 3}, None),
        ({"save_steps": 3}, None),
        ({"eval_steps": 3}, None),
        ({"hub_model_id": "me/mine"}, None),
        ({"gradient_checkpointing": True}, None),
        ({"max_requests": 3, "keep_students": 1, "cycles": 9}, None),
    ],
)
def test_compared_settings(tmp_path: Path, changed: dict[str, Any], name: str | None):
    before, after = training_settings(made(tmp_path)), training_settings(made(tmp_path, **changed))
    assert {key for key in before if before[key] != after[key]} == ({name} if name else set())


def test_settings_of_the_best_model_are_compared_if_used(tmp_path: Path):
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "loss"}
    before, after = (training_settings(made(tmp_path, **best, eval_delay=delay)) for delay in (0, 5))
    assert {key for key in before if before[key] != after[key]} == {"eval_delay"}


class OneProcess:
    num_processes, mixed_precision = 1, "no"


def test_models_are_distinguished():
    def lora(**settings: Any) -> Any:
        return get_peft_model(tiny.model(), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], **settings))

    models = [
        tiny.model(),
        tiny.model().to(torch.bfloat16),
        lora(r=4),
        lora(r=8),
        lora(r=4, lora_alpha=32),
        lora(r=4, use_rslora=True),
        lora(r=4, modules_to_save=["lm_head"]),
    ]
    settings = [model_settings(model, OneProcess) for model in models]
    assert all(one != other for index, one in enumerate(settings) for other in settings[:index])
    assert model_settings(lora(r=4), OneProcess) == settings[2]


def run(tmp_path: Path, model: str = "model", **changed: Any) -> IterKDTrainer:
    """Run in a folder, with PEFT's configuration as one of the settings."""
    beside = {name: changed.pop(name) for name in ("peft_config",) if name in changed}
    trainer = IterKDTrainer(
        str(tmp_path / model),
        args=IterKDConfig(**cycle_world.settings(tmp_path, tmp_path / "run", keep_unverified=True, **changed)),
        train_dataset=Dataset.from_list(cycle_world.questions(3)),
        text_teacher=cycle_world.RuleTeacher(),
        **beside,
    )
    trainer.train()
    return trainer


def lora(**settings: Any) -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], **settings)


def test_run_does_not_continue_with_another_model(tmp_path: Path):
    cycle_world.prepare(tmp_path)
    small = {"max_steps": 1, "new_easy": 0, "new_medium": 1, "new_hard": 1, "save_strategy": "no"}
    run(tmp_path, cycles=1, **small)
    weights = (tmp_path / "run/cycle-0/student/model.safetensors").read_bytes()
    for changed, message in (
        ({"peft_config": lora()}, r"generated with peft=None, not \['LORA'\]; give another output_dir"),
        ({"adam_beta1": 0.5}, r"adam_beta1=0\.9, not 0\.5"),
        ({"model_init_kwargs": {"dtype": "bfloat16"}}, "model_init_kwargs=None, not"),
    ):
        with pytest.raises(ValueError, match=message):
            run(tmp_path, cycles=2, **small, **changed)
    assert not (tmp_path / "run/cycle-1").exists()
    assert len(run(tmp_path, cycles=2, **small).reports) == 2
    assert (tmp_path / "run/cycle-0/student/model.safetensors").read_bytes() == weights


# Students that are loaded


@pytest.fixture
def student(tmp_path: Path):
    cycle_world.prepare(tmp_path)

    def make(**settings: Any) -> PairTrainer:
        args = IterKDConfig(**cycle_world.settings(tmp_path, tmp_path / "run"))
        return PairTrainer(str(tmp_path / "model"), args=args, **settings)

    return make


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("change", ["missing", "unexpected", "none"])
def test_only_a_complete_student_is_loaded(student, tmp_path: Path, adapted: bool, change: str):
    settings = {"peft_config": lora()} if adapted else {}
    saved = tmp_path / "saved"
    student(**settings).save_model(str(saved))
    file = saved / ("adapter_model.safetensors" if adapted else "model.safetensors")
    tensors = load_file(file)
    dropped = sorted(tensors)[0]
    if change == "missing":
        del tensors[dropped]
    elif change == "unexpected":
        tensors["another.weight"] = torch.zeros(1)
    save_file(tensors, file, metadata={"format": "pt"})
    loading = student(**settings)
    if change == "none":
        loading.load_student(saved)
        return
    with pytest.raises(ValueError, match=f"1 tensors .*'{dropped if change == 'missing' else 'another.weight'}'"):
        loading.load_student(saved)


@pytest.mark.parametrize("adapted", [False, True])
def test_a_student_is_not_loaded_into_an_adapter_or_the_other_way_round(student, tmp_path: Path, adapted: bool):
    kinds = [{"peft_config": lora()}, {}]
    student(**kinds[adapted]).save_model(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match=r"was saved as .* but .* is trained now; give the PEFT settings"):
        student(**kinds[not adapted]).load_student(tmp_path / "saved")


def test_tied_weights_are_saved_once(tmp_path: Path):
    model = tiny.model()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    args = IterKDConfig(**cycle_world.settings(tmp_path, tmp_path / "run", prompts_file=None, judge_prompt_file=None))
    trainer = PairTrainer(str(tmp_path / "model"), args=args)
    trainer.save_model(str(tmp_path / "saved"))
    trainer.load_student(tmp_path / "saved")
