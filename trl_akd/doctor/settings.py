"""Settings of a run that its memory and time depend on, from the arguments of a training command."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PretrainedConfig

from ..akd.akd_config import AKDConfig
from ..akd.positions import check_length
from ..codeplan.codeplan_config import CodePLANConfig
from ..codeplan.objective import task_groups
from ..iterkd.iterkd_config import IterKDConfig
from ..losses import divergences

__all__ = ["ModelSettings", "Output", "Parallelism", "Quantization", "RunSettings"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Quantization:
    """Quantization of the linear layers of a model, except its LM head.

    Args:
        bits (`int`):
            Bits per weight.
        nested (`bool`, *optional*, defaults to `False`):
            Whether the scales of 4-bit weights are quantized as well.
    """

    bits: int
    nested: bool = False

    @classmethod
    def read(cls, config: Any) -> "Quantization | None":
        """Return the quantization of a `quantization_config`, a mapping or an object of transformers."""
        values = config if isinstance(config, Mapping) else vars(config) if config is not None else {}
        values = {name.removeprefix("_"): value for name, value in values.items()}
        if values.get("load_in_4bit"):
            return cls(4, bool(values.get("bnb_4bit_use_double_quant")))
        if values.get("load_in_8bit") or values.get("quant_method") == "fp8":
            return cls(8)
        return cls(int(values["bits"])) if values.get("bits") else None

    def bytes_of(self, weights: int) -> int:
        """Return the bytes of linear layers with that many weights, with one scale per 64 weights of 4 bits."""
        scales = (weights / 64 + weights / 4096 if self.nested else weights / 16) if self.bits == 4 else 0
        return int(weights * self.bits / 8 + scales)


@dataclass(frozen=True)
class ModelSettings:
    """A model: its architecture and its format in memory.

    Args:
        name (`str`):
            Name or path.
        config (`PretrainedConfig`):
            Configuration.
        dtype (`torch.dtype`):
            Dtype of its weights.
        attention (`str`, *optional*):
            Implementation of attention, as in `attn_implementation`.
        quantization (`Quantization`, *optional*):
            Quantization of its linear layers.
        adapter (`PeftConfig`, *optional*):
            Adapter that is trained in place of the weights.
    """

    name: str
    config: PretrainedConfig = field(hash=False)
    dtype: torch.dtype
    attention: str | None = None
    quantization: Quantization | None = None
    adapter: Any = field(default=None, hash=False)

    @property
    def text_config(self) -> Any:
        """Configuration of the language model."""
        return self.config.get_text_config()

    def check_length(self, length: int, option: str) -> None:
        """Raise a ValueError if rows of `length` tokens have more tokens than the model has positions."""
        if not self.config.is_encoder_decoder:
            check_length(length, option, getattr(self.text_config, "max_position_embeddings", None), self.name)


@dataclass(frozen=True)
class Parallelism:
    """Distribution of a run over GPUs.

    Args:
        gpus (`int`, *optional*, defaults to `1`):
            Number of GPUs.
        kind (`str`, *optional*, defaults to `"none"`):
            `"none"`, `"ddp"`, `"zero"` or `"fsdp"`.
        stage (`int`, *optional*, defaults to `0`):
            Stage of ZeRO.
        offload_optimizer (`bool`, *optional*, defaults to `False`):
            Whether ZeRO keeps optimizer states in the memory of the CPU.
        offload_parameters (`bool`, *optional*, defaults to `False`):
            Whether ZeRO-3 keeps parameters in the memory of the CPU.
    """

    gpus: int = 1
    kind: Literal["none", "ddp", "zero", "fsdp"] = "none"
    stage: int = 0
    offload_optimizer: bool = False
    offload_parameters: bool = False

    @property
    def shards_models(self) -> bool:
        """Whether each GPU has only a part of the models."""
        return self.kind == "fsdp" or self.stage == 3

    @property
    def name(self) -> str:
        """Name for messages."""
        if self.kind == "zero":
            return f"ZeRO-{self.stage}{' with offloading' if self.offload_optimizer else ''}"
        return {"none": "one process", "ddp": "DDP", "fsdp": "FSDP2"}[self.kind]

    @classmethod
    def read(cls, values: Mapping[str, Any] | None, deepspeed: Any, gpus: int | None) -> "Parallelism":
        """Return the distribution of a configuration of accelerate, or of a recipe's `deepspeed`.

        Args:
            values (`Mapping`, *optional*):
                Configuration of accelerate.
            deepspeed (`dict` or `str`, *optional*):
                Configuration of DeepSpeed or its path, as in [`transformers.TrainingArguments`].
            gpus (`int`, *optional*):
                Number of GPUs. Defaults to that of the configuration.

        Raises:
            ValueError: If the number of GPUs is not known or not positive, or several GPUs have no configuration.
        """
        values = values or {}
        kind = str(values.get("distributed_type", "NO"))
        gpus = values.get("num_processes") if gpus is None else gpus
        if gpus is None and kind != "NO":
            raise ValueError(
                "`accelerate_config` distributes the run, but does not give the number of GPUs; give `--num_gpus`."
            )
        gpus = 1 if gpus is None else gpus
        if gpus < 1:
            raise ValueError(f"`num_gpus` is {gpus}; give at least 1.")
        settings = _zero_settings(deepspeed) or (values.get("deepspeed_config") if kind == "DEEPSPEED" else None)
        if settings:
            return cls(
                gpus,
                "zero",
                int(settings.get("zero_stage", settings.get("stage", 0))),
                _is_offloaded(settings, "optimizer"),
                _is_offloaded(settings, "param"),
            )
        if kind == "FSDP":
            return cls(
                gpus, "fsdp", offload_optimizer=bool((values.get("fsdp_config") or {}).get("fsdp_offload_params"))
            )
        if gpus > 1 and kind == "NO":
            raise ValueError(
                f"`num_gpus` is {gpus}, but nothing distributes the run; give `--accelerate_config`, such as ddp, "
                "zero2 or zero3."
            )
        return cls(gpus, "ddp" if gpus > 1 else "none")


def _zero_settings(deepspeed: Any) -> Mapping[str, Any] | None:
    if deepspeed is None:
        return None
    if isinstance(deepspeed, str) and not deepspeed.lstrip().startswith("{"):
        path = Path(deepspeed).expanduser()
        if not path.is_file():
            raise ValueError(f"`deepspeed` is {deepspeed!r}, but there is no such file; check the path.")
        deepspeed = path.read_text(encoding="utf-8")
    settings = json.loads(deepspeed) if isinstance(deepspeed, str) else deepspeed
    found: Mapping[str, Any] = settings.get("zero_optimization") or {}
    return found


def _is_offloaded(settings: Mapping[str, Any], part: str) -> bool:
    nested = settings.get(f"offload_{part}") or {}
    return str(settings.get(f"offload_{part}_device", nested.get("device", "none"))) != "none"


@dataclass(frozen=True)
class Output:
    """A term of the loss: an output layer and the teacher's signal.

    Args:
        signal (`str`, *optional*):
            `"dense"`, `"sparse"`, or `None` for cross-entropy.
        plan_head (`bool`, *optional*, defaults to `False`):
            Whether the output layer is CodePLAN's separate one.
        projections (`int`, *optional*, defaults to `1`):
            Number of times that the student's logits are computed.
    """

    signal: Literal["dense", "sparse"] | None
    plan_head: bool = False
    projections: int = 1


@dataclass(frozen=True)
class RunSettings:
    """Settings of a run that its memory and time depend on.

    Args:
        student (`ModelSettings`):
            The student.
        teacher (`ModelSettings`, *optional*):
            The teacher.
        rows (`int`):
            Rows per micro-batch and GPU.
        length (`int`):
            Tokens per row, prompt and completion.
        target_length (`int`):
            Tokens per row of the decoder; equal to `length` for a causal model.
        accumulation (`int`, *optional*, defaults to `1`):
            Micro-batches per optimizer step.
        parallelism (`Parallelism`, *optional*):
            Distribution over GPUs.
        checkpointing (`bool`, *optional*, defaults to `True`):
            Whether activations are recomputed in the backward pass.
        padded (`bool`, *optional*, defaults to `True`):
            Whether rows are padded, so that attention has a mask.
        autocast (`torch.dtype`, *optional*):
            Dtype of mixed precision.
        optimizer (`str`, *optional*, defaults to `"adamw_torch_fused"`):
            Name of the optimizer, as in [`transformers.TrainingArguments`].
        outputs (`tuple[Output, ...]`, *optional*):
            Terms of the loss.
        divergence (`str`, *optional*, defaults to `"akd"`):
            Rule of the divergence.
        knobs (`tuple[tuple[str, Any], ...]`, *optional*):
            Arguments of that rule at the first step.
        chunk_size (`int`, *optional*):
            Tokens per chunk of the loss.
        teacher_on_cpu (`bool`, *optional*, defaults to `False`):
            Whether the teacher is in the memory of the CPU.
        cached_head (`tuple[int, int]`, *optional*):
            Shape of the LM head in a cache of the teacher's hidden states, which takes the teacher's place.
        own_teacher (`bool`, *optional*, defaults to `False`):
            Whether the student without its adapter is the teacher.
        on_policy (`float`, *optional*, defaults to `0.0`):
            Fraction of micro-batches whose text is generated.
        generated_by_teacher (`bool`, *optional*, defaults to `False`):
            Whether the teacher generates text, too.
        new_tokens (`int`, *optional*, defaults to `0`):
            Maximum number of tokens of a generated completion.
        on_cpu (`bool`, *optional*, defaults to `False`):
            Whether the run is on a CPU, whose kernels have other buffers.
    """

    student: ModelSettings
    teacher: ModelSettings | None
    rows: int
    length: int
    target_length: int
    accumulation: int = 1
    parallelism: Parallelism = field(default_factory=Parallelism)
    checkpointing: bool = True
    padded: bool = True
    autocast: torch.dtype | None = None
    optimizer: str = "adamw_torch_fused"
    outputs: tuple[Output, ...] = (Output("dense"),)
    divergence: str = "akd"
    knobs: tuple[tuple[str, Any], ...] = (("beta", 0.5),)
    chunk_size: int | None = None
    teacher_on_cpu: bool = False
    cached_head: tuple[int, int] | None = None
    own_teacher: bool = False
    on_policy: float = 0.0
    generated_by_teacher: bool = False
    new_tokens: int = 0
    on_cpu: bool = False

    @property
    def tokens(self) -> int:
        """Tokens per micro-batch of the sequence whose tokens are targets."""
        return self.rows * self.target_length

    @property
    def rows_per_step(self) -> int:
        """Rows per optimizer step on all GPUs."""
        return self.rows * self.accumulation * self.parallelism.gpus

    @property
    def has_float32_masters(self) -> bool:
        """Whether DeepSpeed keeps float32 copies of half-precision weights."""
        return self.parallelism.kind == "zero" and self.autocast is not None

    @classmethod
    def read(
        cls,
        args: AKDConfig,
        student: ModelSettings,
        teacher: ModelSettings | None,
        parallelism: Parallelism,
        *,
        autocast: torch.dtype | None,
        on_cpu: bool = False,
        signal: Literal["dense", "sparse"] = "dense",
        cached_head: tuple[int, int] | None = None,
    ) -> "RunSettings":
        """Return the settings of a run with these training arguments.

        The dtype of mixed precision and the device are given separately, since they depend on the machine of the run,
        and the teacher's signal, since it may come from a cache or a server.

        Raises:
            ValueError: If a row is longer than the models' positions.
        """
        length = args.max_length
        if length is None:
            length = getattr(student.text_config, "max_position_embeddings", None) or 2048
        for model in filter(None, (student, teacher)):
            model.check_length(length, "max_length")
        encoder_decoder = student.config.is_encoder_decoder
        target = getattr(args, "max_target_length", None) if encoder_decoder else None
        return cls(
            student,
            teacher,
            rows=1
            if args.packing or args.padding_free
            else args.per_device_train_batch_size * _rows_per_example(args),
            length=length * args.per_device_train_batch_size if args.packing or args.padding_free else length,
            target_length=(target or length)
            * (args.per_device_train_batch_size if args.packing or args.padding_free else 1),
            accumulation=args.gradient_accumulation_steps,
            parallelism=parallelism,
            checkpointing=args.gradient_checkpointing,
            padded=not (args.packing or args.padding_free),
            autocast=autocast,
            optimizer=str(getattr(args.optim, "value", args.optim)),
            outputs=_outputs(args, signal),
            divergence=args.divergence,
            knobs=_knobs(args),
            chunk_size=args.loss_chunk_size,
            teacher_on_cpu=str(args.teacher_device).startswith("cpu"),
            cached_head=cached_head,
            own_teacher=args.uses_teacher and teacher is None and cached_head is None and signal == "dense",
            on_policy=1.0 if args.seq_kd else args.lmbda,
            generated_by_teacher=args.seq_kd,
            new_tokens=args.max_new_tokens if args.generates else 0,
            on_cpu=on_cpu,
        )


def _knobs(args: AKDConfig) -> tuple[tuple[str, Any], ...]:
    schedule = args.make_schedule(args.make_beta())
    moving = {} if schedule is None else {schedule.knob: schedule.value}
    return tuple({**args.divergence_knobs, **moving}.items())


def _rows_per_example(args: AKDConfig) -> int:
    """Return the number of rows that an example of the dataset adds to a batch."""
    if isinstance(args, CodePLANConfig):
        return 1 if args.schedule == "alternate" else 2 + (args.guided_weight > 0.0)
    return 2 if isinstance(args, IterKDConfig) and args.contrastive_weight > 0.0 else 1


def _outputs(args: AKDConfig, signal: Literal["dense", "sparse"]) -> tuple[Output, ...]:
    if isinstance(args, CodePLANConfig):
        groups = task_groups(args.code_objective, args.plan_objective, plan_head=args.plan_head == "separate")
        return tuple(Output(signal if group.objective == "akd" else None, group.plan_head) for group in groups)
    supervised = Output(signal if args.uses_teacher else None)
    if isinstance(args, IterKDConfig) and args.contrastive_weight > 0.0:
        contrastive = Output(None, projections=2)
        return (supervised, contrastive) if args.uses_teacher else (contrastive,)  # one cross-entropy for both losses
    if divergences.get(args.divergence).policy_gradient is not None:
        return supervised, Output(None)
    return (supervised,)


def dtype_of(name: Any, config: PretrainedConfig) -> torch.dtype:
    """Return the dtype that `from_pretrained` would load weights in.

    Args:
        name (`str` or `torch.dtype`, *optional*):
            The argument `dtype`; `"auto"` and `None` stand for that of the configuration.
        config (`PretrainedConfig`):
            Configuration of the model.

    Raises:
        ValueError: If there is no such dtype.
    """
    if isinstance(name, torch.dtype):
        return name
    if name in (None, "auto"):
        found = getattr(config, "dtype", None)
        return found if isinstance(found, torch.dtype) else _DTYPES.get(str(found), torch.float32)
    if name not in _DTYPES:
        raise ValueError(f"`dtype` is {name!r}; choose one of auto, {', '.join(_DTYPES)}.")
    return _DTYPES[name]
