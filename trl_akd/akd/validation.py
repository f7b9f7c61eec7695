"""Checks of models, data and arguments that need no forward pass."""

import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.schema import detect_format
from ..generation.loading import path_in_repository, source_arguments
from ..heads import without_adapter
from ..teachers import CachedTeacher, Teacher
from .akd_config import AKDConfig
from .model_utils import adapters_of, has_vocabulary


def check_arguments(trainer: type, args: Any, expected: type[AKDConfig]) -> None:
    """Refuse a configuration of another trainer, whose fields may be missing or mean something else."""
    if args is not None and not isinstance(args, expected):
        raise TypeError(
            f"`args` is a {type(args).__name__}, but {trainer.__name__} takes {_with_article(expected.__name__)}; "
            f"create {_with_article(expected.__name__)} with the same settings."
        )


def _with_article(name: str) -> str:
    return f"an {name}" if name[0] in "AEIOU" else f"a {name}"


# Methods of TRL's and transformers' trainers that this package never calls -> the method to override instead.
_NEVER_CALLED = {
    "generalized_jsd_loss": "`compute_loss`",
    "generate_on_policy_outputs": "`get_batch_samples`, which returns the micro-batches of a step with their text",
    "_get_num_items_in_batch": "`get_batch_samples`, which counts what the loss is divided by",
}


def check_overrides(trainer: type, base: type) -> None:
    """Refuse a subclass of `base` that overrides an inherited method which is never called."""
    for owner in trainer.__mro__[: trainer.__mro__.index(base)]:
        for name, remedy in _NEVER_CALLED.items():
            if name in vars(owner):
                raise TypeError(
                    f"{owner.__name__} overrides `{name}`, which {base.__name__} never calls, because its loss needs "
                    f"no full logits and its text is sampled for a whole step at a time; override {remedy}."
                )


def check_parallelism(config: Any) -> None:
    """Refuse context, sequence and tensor parallelism, under which a process sees part of a row or of the logits."""
    for name, method in (("cp", "context"), ("sp", "sequence"), ("tp", "tensor")):
        size = getattr(config, f"{name}_size", 1)
        if size > 1:
            raise ValueError(
                f"`parallelism_config` has {name}_size={size}, but the divergence needs whole rows and whole LM heads "
                f"on each process, so {method} parallelism is not supported; set {name}_size=1, and use ZeRO-3 or a "
                "smaller `per_device_train_batch_size` where memory is short."
            )


def check_adapter(*configs: Any) -> None:
    """Refuse prompt tuning, prefix tuning and similar methods.

    Their virtual tokens are prepended by the forward of the PEFT model, which the fused loss does not use.
    """
    for config in configs:
        if getattr(config, "is_prompt_learning", False):
            raise ValueError(
                f"`peft_config` is a {type(config).__name__}, which learns virtual tokens in front of the prompt, and "
                "the fused loss would leave them out; choose an adapter of the weights, such as LoraConfig."
            )


def check_experts(config: Any) -> None:
    """Refuse a mixture of experts whose load-balancing loss cannot be computed."""
    if config.is_encoder_decoder or not (hasattr(config, "num_experts") and hasattr(config, "output_router_logits")):
        raise ValueError(
            f"the student is a mixture of experts ({type(config).__name__}) whose load-balancing loss is not "
            "supported; set router_aux_loss_coef=0 to train without it."
        )


def check_models(student: Any, teacher: Any, args: AKDConfig, *, trains_adapter: bool) -> None:
    """Refuse objects that are not language models, a missing teacher, and settings that it does not support."""
    if not isinstance(student, str):
        check_language_model(student, role="model")
    if not args.uses_teacher:
        if teacher is not None:
            raise ValueError(
                "`teacher_model` is given, but no objective uses a teacher; leave it out, or choose one that does."
            )
    elif teacher is None:
        if not trains_adapter:
            raise ValueError(
                "`teacher_model_name_or_path` is not set and no `teacher_model` was given; name a teacher, or train "
                "an adapter (`use_peft: true`) to use the student without the adapter as the teacher."
            )
        if args.seq_kd:
            raise ValueError(
                "`seq_kd` is on, but there is no teacher to generate text; set `teacher_model_name_or_path`."
            )
    elif _is_same_model(student, teacher, args, trains_adapter=trains_adapter):
        raise ValueError(
            f"student and teacher are the same model ({teacher if isinstance(teacher, str) else 'one object'}), so "
            "the divergence is zero; give another `teacher_model_name_or_path`, or leave it out and set "
            "`use_peft: true`."
        )
    if args.teacher_base_url is not None and teacher != args.teacher_model_name_or_path:
        raise ValueError(
            "`teacher_model` is given and `teacher_base_url` is set; leave out one of them: the teacher is either in "
            "this process or on the server."
        )
    if not (teacher is None or isinstance(teacher, str | Teacher)):
        check_language_model(teacher, role="teacher_model")
        if not isinstance(student, str):
            _check_shared_parameters(student, teacher)
    if args.teacher_device is not None:
        _check_device(args.teacher_device)
    if isinstance(teacher, Teacher) and (args.seq_kd or args.teacher_device is not None):
        name, reason = ("seq_kd", "generates no text") if args.seq_kd else ("teacher_device", "chooses its own device")
        raise ValueError(f"`{name}` is set, but a custom `Teacher` {reason}; leave it out.")
    zero3 = args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3
    if args.teacher_device is not None and zero3:
        raise ValueError(
            f"`teacher_device` is {args.teacher_device!r}, but ZeRO-3 shards the teacher over the processes; leave "
            "`teacher_device` out."
        )
    if args.teacher_model_init_kwargs and not isinstance(teacher, str | CachedTeacher):
        raise ValueError(
            "`teacher_model_init_kwargs` is set, but the teacher is already loaded; pass its name or path instead."
        )


def _check_shared_parameters(student: Any, teacher: Any) -> None:
    """Refuse a student and a teacher that share parameters to be trained, which would be frozen with the teacher.

    An adapter is added to the base model in place, so both then share all of them.
    """
    of_student = list(student.parameters())
    is_frozen = not any(parameter.requires_grad for parameter in of_student)
    trained = {id(parameter) for parameter in of_student if parameter.requires_grad or is_frozen}
    shared = [name for name, parameter in teacher.named_parameters() if id(parameter) in trained]
    if shared:
        raise ValueError(
            f"`model` and `teacher_model` share {len(shared)} parameters, such as {shared[0]!r}, and those of the "
            "teacher are frozen; load the teacher separately, or leave it out to use a student with an adapter "
            "without that adapter as the teacher."
        )


def check_self_teacher(student: Any, additional: nn.Module | None) -> None:
    """Refuse to use a student without its adapter as the teacher if that is not the frozen base model.

    `additional` is a part of the student that the teacher does not use.
    """
    if not hasattr(student, "disable_adapter"):
        raise ValueError(
            f"no `teacher_model` is given and the student is a {type(student).__name__}, whose adapter cannot be "
            "disabled for a forward pass; create the adapter with `peft.get_peft_model`, or give the base model as "
            "`teacher_model`."
        )
    for reason, remedy in _changes_of_base(student, additional):
        raise ValueError(
            "no `teacher_model` is given, so the student without its adapter is the teacher, but it is not the base "
            f"model: {reason}; {remedy}, or give the base model as `teacher_model`."
        )


def _changes_of_base(student: Any, additional: nn.Module | None) -> Iterator[tuple[str, str]]:
    """Yield what makes a student without its adapter differ from its base model, each with a remedy."""
    for config in adapters_of(student):
        initialization = getattr(config, "init_lora_weights", None)
        if str(initialization).lower().startswith(_INITIALIZATIONS_OF_BASE):
            yield f"`init_lora_weights` is {initialization!r}, which rewrites its weights", "leave it out"
        if replication := getattr(config, "layer_replication", None):
            yield f"`layer_replication` is {replication!r}, which repeats its layers", "leave it out"
    if names := _trained_without_adapter(student, additional):
        biases = {getattr(config, "bias", "none") for config in adapters_of(student)} - {"none"}
        reason = f"{len(names)} of its parameters are trained, such as {names[0]!r}"
        if biases and all(name.endswith("bias") for name in names):
            yield f"`bias` is {biases.pop()!r}, so {reason}", "set bias='none'"
        else:
            yield reason, "freeze them, or train copies by `modules_to_save`"


# Initializations of LoRA that change the base weights, so that they and the initial adapter have the original sum.
_INITIALIZATIONS_OF_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def _trained_without_adapter(student: Any, additional: nn.Module | None) -> list[str]:
    """Return the names of the trainable parameters that PEFT does not freeze while the adapter is disabled."""
    trainable = [(name, parameter) for name, parameter in student.named_parameters() if parameter.requires_grad]
    others = [parameter for parameter in student.parameters() if not parameter.requires_grad]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which PEFT emits if `bias` is not 'none'
        with student.disable_adapter():
            ignored = {id(parameter) for parameter in additional.parameters()} if additional is not None else set()
            names = [name for name, parameter in trainable if parameter.requires_grad and id(parameter) not in ignored]
    for parameter in others:
        parameter.requires_grad_(False)
    for _, parameter in trainable:
        parameter.requires_grad_(True)
    return names


def check_language_model(model: Any, *, role: str) -> None:
    """Refuse an object that is not a language model of transformers, with or without an adapter."""
    bare = without_adapter(model)
    if isinstance(bare, PreTrainedModel) and hasattr(bare.get_output_embeddings(), "weight"):
        return
    if hasattr(model, "_orig_mod"):
        raise ValueError(f"`{role}` is already compiled; pass the original model and set torch_compile=True.")
    own = ", or an object with the methods of `trl_akd.teachers.Teacher`" if role == "teacher_model" else ""
    raise ValueError(
        f"`{role}` is a {type(model).__name__}, which is not a language model of transformers; give one with an LM "
        f"head, such as `AutoModelForCausalLM` loads, or its name or path{own}."
    )


def check_architectures(student: Any, teacher: Any, *, encoder_decoders: bool) -> None:
    """Refuse an encoder-decoder that the trainer does not support, or one that is paired with a causal model."""
    kinds = {True: "an encoder-decoder", False: "a causal model"}
    if student.config.is_encoder_decoder and not encoder_decoders:
        raise ValueError(
            f"`model` is an encoder-decoder ({student.config.model_type}), but prompt and completion are read as one "
            "text here; give a causal model, or use CodePLANTrainer."
        )
    if teacher is not None and bool(teacher.config.is_encoder_decoder) != bool(student.config.is_encoder_decoder):
        raise ValueError(
            f"`teacher_model` is {kinds[bool(teacher.config.is_encoder_decoder)]} ({teacher.config.model_type}) but "
            f"the student {kinds[bool(student.config.is_encoder_decoder)]} ({student.config.model_type}), and both "
            "must read the same tokens; give two models of the same kind."
        )


def _check_device(device: Any) -> None:
    """Refuse a device that this machine does not have."""
    try:
        torch.empty(0, device=device)
    except (AssertionError, NotImplementedError, RuntimeError, TypeError) as error:
        reason = str(error).split("\n", 1)[0].rstrip(".")
        raise ValueError(
            f"`teacher_device` is {device!r}, which cannot be used ({reason}); give a device of this machine, such as "
            "'cpu', or leave it out."
        ) from None


def check_rows(datasets: Mapping[str, Any]) -> None:
    """Refuse datasets without rows; a stream is read later."""
    for name, dataset in datasets.items():
        if isinstance(dataset, Dataset) and len(dataset) == 0:
            raise ValueError(f"the {name} dataset is empty; give at least one row.")


def check_data(datasets: Mapping[str, Any], args: AKDConfig) -> None:
    """Refuse datasets whose columns fit no supported format.

    Prompts without completions are enough for training only, since evaluation reads completions.
    """
    for name, dataset in datasets.items():
        if isinstance(dataset, Dataset):
            suffices = args.prompts_suffice and name == "train"
            detect_format(dataset.column_names, text_field=args.dataset_text_field, allow_prompt_only=suffices)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a student's tokenizer without a vocabulary."""
    if not has_vocabulary(tokenizer):
        raise ValueError(
            "no tokenizer could be loaded for the student, whose folder has no tokenizer files; save one there, or "
            "pass `processing_class`."
        )


def check_unused(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of TRL's trainers that would have no effect here."""
    remedies = {
        "formatting_func": "map the dataset to `prompt` and `completion` columns beforehand",
        "compute_loss_func": "extend `AKDTrainer` and override `compute_loss`",
    }
    for name, remedy in remedies.items():
        if arguments.get(name) is not None:
            raise ValueError(f"`{name}` is given, but AKD does not use it; {remedy}.")


def _is_same_model(student: Any, teacher: Any, args: AKDConfig, *, trains_adapter: bool) -> bool:
    if not (isinstance(student, str) and isinstance(teacher, str)):
        return teacher is student
    if trains_adapter:
        return False  # the teacher is a second copy of the base model
    return _identity(teacher, args.teacher_source) == _identity(
        student, source_arguments(args.model_init_kwargs, revision="main")
    )


def _identity(name: str, source: Mapping[str, Any]) -> tuple[str, str]:
    """Return a value that is equal for two names of the same model."""
    path = path_in_repository(name, source)
    return (os.path.realpath(path), "") if os.path.isdir(path) else (path, source["revision"])
