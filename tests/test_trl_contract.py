"""All parts of TRL, transformers and accelerate that this package relies on without a documented guarantee.

A failure names the part that changed, before other tests fail for that reason.
"""

import dataclasses
import inspect

import pytest
import transformers
from packaging.version import Version
from transformers import PreTrainedModel, Trainer
from trl import SFTTrainer
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration

from trl_akd import AKDConfig, AKDTrainer
from trl_akd.akd.gkd import GKDConfig, GKDTrainer


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_types():
    assert issubclass(AKDTrainer, GKDTrainer)
    assert issubclass(AKDConfig, GKDConfig)
    assert GKDTrainer.__mro__[1] is SFTTrainer, "AKDTrainer calls GKDTrainer's parent's constructor"


def test_arguments_of_gkd_are_accepted():
    kept = {"lmbda", "seq_kd", "temperature", "max_new_tokens", "teacher_model_name_or_path", "disable_dropout"}
    assert kept | {"teacher_model_init_kwargs", "beta"} <= set(GKDConfig.__dataclass_fields__)
    new = set(parameters(AKDTrainer.__init__))
    through_kwargs = {"compute_metrics", "callbacks", "optimizers", "preprocess_logits_for_metrics", "formatting_func"}
    assert set(parameters(GKDTrainer.__init__)) <= new | through_kwargs
    assert through_kwargs <= set(parameters(SFTTrainer.__init__))


@pytest.mark.parametrize(
    ("owner", "method", "expected"),
    [
        (SFTTrainer, "_prepare_dataset",
         ["self", "dataset", "processing_class", "args", "packing", "formatting_func", "dataset_name"]),
        (SFTTrainer, "training_step", ["self", "args", "kwargs"]),
        (SFTTrainer, "log", ["self", "logs", "start_time"]),
        (SFTTrainer, "create_model_card", ["self", "model_name", "dataset_name", "tags"]),
        (Trainer, "get_batch_samples", ["self", "epoch_iterator", "num_batches", "device"]),
        (Trainer, "compute_loss", ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]),
        (Trainer, "_get_dataloader",
         ["self", "dataset", "description", "batch_size", "sampler_fn", "is_training", "dataloader_key"]),
        (SFTTrainer, "prediction_step", ["self", "model", "inputs", "prediction_loss_only", "ignore_keys"]),
        (Trainer, "_init_training_state",
         ["self", "max_steps", "num_update_steps_per_epoch", "num_train_epochs", "resume_from_checkpoint", "trial"]),
        (Trainer, "_save_optimizer_and_scheduler", ["self", "output_dir"]),
        (Trainer, "_load_optimizer_and_scheduler", ["self", "checkpoint"]),
        (Trainer, "train", ["self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"]),
        (Trainer, "_save", ["self", "output_dir", "state_dict"]),
        (Trainer, "_load_from_checkpoint", ["self", "resume_from_checkpoint", "model"]),
        (Trainer, "_load_best_model", ["self"]),
        (Trainer, "_issue_warnings_after_load", ["self", "load_result"]),
        (Trainer, "save_model", ["self", "output_dir", "_internal_call"]),
        (Trainer, "_push_from_checkpoint", ["self", "checkpoint_folder"]),
    ],
)  # fmt: skip
def test_signatures_of_overridden_methods(owner, method, expected):
    assert parameters(getattr(owner, method)) == expected


def test_push_to_hub_has_the_arguments_of_transformers():
    private = ["private"] if Version(transformers.__version__) >= Version("5.23") else []
    assert parameters(Trainer.push_to_hub) == [
        *("self", "commit_message", "blocking", "token", "revision", *private, "kwargs")
    ]
    assert set(parameters(Trainer.push_to_hub)) <= set(parameters(AKDTrainer.push_to_hub))


def test_loss_is_not_divided_again():
    assert Trainer.loss_is_scaled_for_ga is None
    assert AKDTrainer.loss_is_scaled_for_ga is True


def test_attributes_of_sft_trainer():
    source = inspect.getsource(SFTTrainer.__init__)
    for attribute in ("self._tokenizer", "self.padding_free", "self._metrics", "self._total_train_tokens"):
        assert f"{attribute} =" in source, attribute


def test_epoch_begins_before_its_first_batch():
    """`DataCollatorForCodePLAN` must be told the epoch before workers start."""
    source = inspect.getsource(Trainer._inner_training_loop)
    assert 0 < source.index("on_epoch_begin") < source.index("self._run_epoch(")
    assert "iter(train_dataloader)" in inspect.getsource(Trainer._run_epoch)


def test_models_can_exclude_tensors_from_saving():
    """The plan head is saved beside the model, not in it."""
    assert "_keys_to_ignore_on_save" in inspect.getsource(PreTrainedModel.save_pretrained)


def test_private_helpers():
    from trl.models import prepare_deepspeed
    from trl.models.utils import _ForwardRedirection, prepare_fsdp
    from trl.trainer.utils import maybe_gather_lm_head_ctx

    assert parameters(_ForwardRedirection.__call__)[1:4] == ["wrapper_module", "original_module", "method"]
    assert parameters(prepare_deepspeed) == parameters(prepare_fsdp) == ["model", "accelerator"]
    assert parameters(maybe_gather_lm_head_ctx) == ["params"]


def test_router_loss():
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    assert parameters(load_balancing_loss_func) == ["gate_logits", "num_experts", "top_k", "attention_mask"]
    source = inspect.getsource(SFTTrainer.__init__)
    assert "self.aux_loss_enabled =" in source
    assert "self.router_aux_loss_coef =" in source or "self.args.router_aux_loss_coef" in source


def test_packing_helpers():
    from trl.data_utils import pack_dataset
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    assert parameters(pack_dataset)[:3] == ["dataset", "seq_length", "strategy"]
    assert "padding_free" in DataCollatorForLanguageModeling.__dataclass_fields__


def test_hooks_of_deepspeed():
    """`release_engine` removes by name what DeepSpeed's `destroy` leaves on the model."""
    engine = pytest.importorskip("deepspeed.runtime.engine")
    source = inspect.getsource(engine.DeepSpeedEngine)
    assert "self.module_forward_pre_hook =" in source and "self.module_forward_post_hook =" in source
    stage3 = pytest.importorskip("deepspeed.runtime.zero.stage3")
    assert "_z3_optimizer" in inspect.getsource(stage3)
    assert "self.model_wrapped" in inspect.getsource(Trainer._prepare_for_training)


def test_vllm():
    constructor = parameters(VLLMGeneration.__init__)
    given = {
        *("model", "accelerator", "processing_class", "mode", "server_base_url", "server_host", "server_port"),
        *("server_timeout", "group_port", "tensor_parallel_size", "gpu_memory_utilization", "max_model_length"),
        *("max_num_seqs", "enable_sleep_mode", "model_impl", "trust_remote_code", "logprobs"),
    }
    assert given <= set(constructor)
    set_later = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_completion_length"}
    assert set_later | {"generation_kwargs"} <= set(constructor)
    assert parameters(VLLMGeneration.generate)[:4] == ["self", "prompts", "images", "num_generations"]
    assert parameters(VLLMGeneration.sync_weights) == ["self"]
    assert {"prompts", "generation_kwargs"} <= set(parameters(VLLMClient.generate))


def test_vllm_options_are_those_of_the_distillation_trainer():
    theirs = pytest.importorskip("trl.trainer.distillation_config", reason="TRL 1.9 has none").DistillationConfig
    options = {field.name: field.default for field in dataclasses.fields(theirs) if "vllm" in field.name}
    del options["vllm_structured_outputs_regex"]  # such text is not sampled from the student's distribution
    assert {name: AKDConfig.__dataclass_fields__[name].default for name in options} == options
    assert {name for name in AKDConfig.__dataclass_fields__ if "vllm" in name} == set(options)
