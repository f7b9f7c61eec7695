r"""`trl-akd doctor`: estimate the memory and time of a recipe before it runs, and check its models and data.

```bash
trl-akd doctor --config recipes/qwen2.5-coder-7b-to-0.5b/akd/config_full.yaml --gpu a100-40
trl-akd doctor --config recipes/qwen2.5-coder-7b-to-0.5b/akd/config_full.yaml \
    --accelerate_config zero3 --num_gpus 8 --gpu a100-80
trl-akd doctor --config recipes/starcoder-7b-to-1b/akd/config_lora.yaml --gpu rtx4090 --json true
```

No GPU and no weights are needed, only the models' configurations. All fields of the recipe can be given as flags.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from .command import Action
from .errors import run as run_command
from .errors import user_errors
from .help import description, examples
from .launching import read_accelerate_config
from .methods import Method, find_methods, load_method
from .parsing import RecipeParser, read_options
from .recipes import Recipe, find_accelerate_config, read_recipe

if TYPE_CHECKING:
    from ..akd.akd_config import AKDConfig
    from ..doctor.report import Report
    from ..doctor.settings import RunSettings

__all__ = ["ACTIONS", "DoctorArguments", "main"]

_OF_A_GPU = {"use_cpu": True, "fp16": False, "tf32": None, "deepspeed": None, "dry_run": False}
"""Values with which the arguments of a run on GPUs are valid on any machine."""


@dataclass
class DoctorArguments:
    """
    Arguments of `trl-akd doctor`, in addition to those of a training command.

    Args:
        method (`str`, *optional*):
            Training method of the recipe. Defaults to the first that has all fields of the recipe.
        gpu (`str`, *optional*):
            Kind of GPU: b200, h200, h100, a100-80, a100-40, l40s, l4, a10g, rtx4090, rtx3090, v100-32, t4 or mi300x.
            Defaults to the GPU of this machine, or to an H100 if there is none.
        num_gpus (`int`, *optional*):
            Number of GPUs. Defaults to that of the configuration of accelerate, or to 1 without one.
        gpu_memory_gb (`float`, *optional*):
            Memory of a GPU in GiB, in place of that of its kind.
        gpu_tflops (`float`, *optional*):
            Throughput of matrix products in TFLOP/s, in place of that of its kind.
        gpu_bandwidth (`float`, *optional*):
            Bandwidth of the memory of a GPU in GB/s, in place of that of its kind.
        utilization (`float`, *optional*, defaults to `0.4`):
            Fraction of this throughput that matrix products reach.
        num_rows (`int`, *optional*):
            Number of training rows, if the dataset cannot be read.
        json (`bool`, *optional*, defaults to `False`):
            Whether to print JSON, with bytes and seconds.
    """

    method: str | None = None
    gpu: str | None = None
    num_gpus: int | None = None
    gpu_memory_gb: float | None = None
    gpu_tflops: float | None = None
    gpu_bandwidth: float | None = None
    utilization: float = 0.4
    num_rows: int | None = None
    json: bool = False

    def __post_init__(self) -> None:
        if self.num_rows is not None and self.num_rows < 1:
            raise ValueError(f"`num_rows` is {self.num_rows}; give at least 1.")


def main(argv: list[str] | None = None) -> None:
    """Run the command with `argv`, by default the arguments of the process.

    Raises:
        UserError: If a value, a file or a model's configuration is wrong or cannot be read.
    """
    with user_errors():
        options, flags = read_options(sys.argv[1:] if argv is None else argv)
        if "help" in options:
            text = str(__doc__)
            parser = _parser(description=description(text), epilog=examples(text))
            print(parser.format_help(every_field=options.help == "all"), end="")
            return
        recipe = read_recipe(options.config)
        method = _find_method(recipe, flags)
        parser = _parser(method)
        values = parser.values(recipe, flags)
        accelerate = None
        if options.accelerate_config is not None:
            accelerate = read_accelerate_config(find_accelerate_config(options.accelerate_config))
        report = _estimate(method, parser, values, accelerate)
        print(json.dumps(report.as_json(), indent=2) if values.json else report)


def _argument_types(method: Method | None = None) -> tuple[type, ...]:
    """Return the dataclasses of a recipe's fields; without a method, those of a recipe of AKD."""
    return DoctorArguments, *(method or load_method("akd")).argument_types()


def _parser(method: Method | None = None, *, description: str = "", epilog: str = "") -> RecipeParser:
    return RecipeParser(_argument_types(method), "trl-akd doctor", description=description, epilog=epilog)


def _find_method(recipe: Recipe, flags: list[str]) -> Method:
    """Return the method of a recipe: the one that `--method` names, or the first with fewest unknown fields."""
    words = [word for flag in flags for word in flag.split("=", 1)]
    given = dict(pairwise(words)).get("--method", recipe.values.get("method"))
    if given is not None:
        if given not in find_methods():
            raise ValueError(f"`method` is {given!r}; choose one of {', '.join(find_methods())}.")
        return load_method(given)
    methods = [load_method(name) for name in find_methods()]
    return min(methods, key=lambda method: _unknown_fields(method, recipe.values, flags))


def _unknown_fields(method: Method, values: Mapping[str, Any], flags: list[str]) -> int:
    known = {action.dest for action in _parser(method)._actions}
    names = [*values, *(flag[2:].partition("=")[0].replace("-", "_") for flag in flags if flag.startswith("--"))]
    return sum(name not in known for name in names)


def _estimate(
    method: Method, parser: RecipeParser, values: Namespace, accelerate: Mapping[str, Any] | None
) -> "Report":
    """Return the estimates of a recipe with these values."""

    from ..doctor.cache import cache_sizes
    from ..doctor.duration import estimate_duration
    from ..doctor.hardware import find_gpu
    from ..doctor.memory import estimate_memory, student_trace, teacher_trace
    from ..doctor.remedies import find_remedies
    from ..doctor.report import Report, usable_memory

    _check_counts(values)
    on_any_machine = Namespace(**{**vars(values), **_OF_A_GPU})
    doctor, script_args, args, model_args, *others = parser.dataclasses(on_any_machine)
    method.check(script_args, args, model_args, *others)
    gpu = find_gpu(
        doctor.gpu,
        memory_gib=doctor.gpu_memory_gb,
        tflops=doctor.gpu_tflops,
        bandwidth=doctor.gpu_bandwidth,
        on_cpu=bool(values.use_cpu),
    )
    settings = _settings(method, values, args, model_args, accelerate)
    teacher = teacher_trace(settings)
    phases = estimate_memory(settings)
    duration = estimate_duration(settings, gpu, utilization=doctor.utilization, tf32=bool(values.tf32))
    fits = max(phase.total for phase in phases) <= usable_memory(gpu)
    steps = epochs = None
    cache: list[Any] = []
    if args.max_steps > 0:
        steps = args.max_steps
    elif doctor.num_rows is not None:
        steps = max(1, round(args.num_train_epochs * doctor.num_rows / settings.rows_per_step))
    if doctor.num_rows is not None and steps is not None:
        epochs = steps * settings.rows_per_step / doctor.num_rows
        if teacher is not None and settings.on_policy == 0.0 and not settings.own_teacher:
            cache = cache_sizes(
                teacher,
                duration,
                target_tokens=doctor.num_rows * settings.target_length,
                steps=steps,
                epochs=max(1.0, epochs),
            )
    return Report(
        settings,
        gpu,
        phases,
        duration,
        doctor.utilization,
        student_trace(settings).model,
        teacher,
        steps,
        [] if fits else find_remedies(settings, usable_memory(gpu)),
        cache,
        _notes(settings, values, cache=bool(cache)),
    )


def _check_counts(values: Namespace) -> None:
    """Refuse batches without rows, which the training arguments accept."""
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        if getattr(values, name) < 1:
            raise ValueError(f"`{name}` is {getattr(values, name)}; give at least 1.")


def _settings(
    method: Method, values: Namespace, args: "AKDConfig", model_args: Any, accelerate: Mapping[str, Any] | None
) -> "RunSettings":
    from trl import get_peft_config, get_quantization_config

    from ..doctor.settings import ModelSettings, Parallelism, Quantization, RunSettings, dtype_of
    from .tiny_models import read_config

    if model_args.model_name_or_path is None:
        raise ValueError("`model_name_or_path` is not set; set the student in a recipe (`--config`) or by a flag.")
    name, revision = method.base_model(model_args.model_name_or_path, model_args.model_revision)
    config = read_config(name, revision, args.trust_remote_code)
    student = ModelSettings(
        model_args.model_name_or_path,
        config,
        dtype_of(model_args.dtype, config),
        model_args.attn_implementation,
        Quantization.read(get_quantization_config(model_args) or getattr(config, "quantization_config", None)),
        get_peft_config(model_args),
    )
    teacher = None
    if args.uses_teacher and args.teacher_model_name_or_path is not None:
        config = read_config(args.teacher_model_name_or_path, args.teacher_model_revision, args.trust_remote_code)
        kwargs = args.teacher_model_init_kwargs if isinstance(args.teacher_model_init_kwargs, dict) else {}
        teacher = ModelSettings(
            args.teacher_model_name_or_path,
            config,
            dtype_of(kwargs.get("dtype", kwargs.get("torch_dtype")), config),
            kwargs.get("attn_implementation"),
            Quantization.read(kwargs.get("quantization_config") or getattr(config, "quantization_config", None)),
        )
    parallelism = Parallelism.read(accelerate, values.deepspeed, values.num_gpus)
    return RunSettings.read(
        args, student, teacher, parallelism, autocast=_autocast(values), on_cpu=bool(values.use_cpu)
    )


def _autocast(values: Namespace) -> Any:
    """Return the dtype of mixed precision; on a GPU, `bf16` is on by default."""
    import torch

    if values.fp16:
        return torch.float16
    return torch.bfloat16 if values.bf16 or (values.bf16 is None and not values.use_cpu) else None


def _notes(settings: "RunSettings", values: Namespace, *, cache: bool) -> list[str]:
    """Return what the estimates assume or leave out."""
    notes = [
        f"Every row has {settings.length:,} tokens, the maximum, and all of them are targets: upper limits.",
        "Time excludes loading, data, evaluation and checkpoints; communication is not overlapped.",
    ]
    if settings.parallelism.kind == "zero":
        notes.append("DeepSpeed's buckets have their default sizes, 500 million elements.")
    if values.torch_compile:
        notes.append("torch.compile is not taken into account.")
    if _has_cycles(values):
        notes.append("The cycle's answers, judgements and feedback are not included, only the training.")
    if values.teacher_cache is not None:
        notes.append("The teacher is counted as if it were in memory; with `teacher_cache`, only its LM head is.")
    if cache:
        notes.append("The time saved by a cache is that of the teacher's forward passes after the first epoch.")
    return notes


def _has_cycles(values: Namespace) -> bool:
    """Return whether the recipe trains in cycles."""
    return hasattr(values, "questions_per_cycle")


# Not run by `start`: the options of the launcher describe the run that is estimated.
ACTIONS: Mapping[str, Action] = {"": Action(_argument_types, main)}

if __name__ == "__main__":
    raise SystemExit(run_command(main))
