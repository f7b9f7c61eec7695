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
import warnings
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

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
    from ..doctor.hardware import Gpu
    from ..doctor.preflight import Preflight
    from ..doctor.report import Report
    from ..doctor.settings import RunSettings
    from ..doctor.tracing import ModelTrace

__all__ = ["ACTIONS", "DoctorArguments", "main"]

_OF_A_GPU = {"use_cpu": True, "fp16": False, "tf32": None, "deepspeed": None, "dry_run": False}
"""Values with which the arguments of a run on GPUs are valid on any machine."""

_WITHOUT_TEACHER_SERVICE = {"teacher_cache": None, "teacher_device": None}
_ROWS = 1000
"""Number of rows that are checked."""
_SMALL = 2 * 10**9
"""Bytes of weights that are loaded without being asked for."""


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
        preflight (`bool`, *optional*, defaults to `True`):
            Whether to check the tokenizers and the first 1,000 rows, if they can be read.
        with_weights (`bool`, *optional*):
            Whether to load both models, to compare their likelihoods of a batch. By default only models in local
            folders of at most 2 GB are loaded.
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
    preflight: bool = True
    with_weights: bool | None = None
    json: bool = False

    def __post_init__(self) -> None:
        if self.num_rows is not None and self.num_rows < 1:
            raise ValueError(f"`num_rows` is {self.num_rows}; give at least 1.")
        if not 0.0 < self.utilization <= 1.0:
            raise ValueError(f"`utilization` is {self.utilization}; give a fraction above 0 and at most 1.")


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
    from ..doctor.preflight import Preflight
    from ..doctor.remedies import find_remedies
    from ..doctor.report import Report, usable_memory

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
    preflight = _preflight(method, parser, on_any_machine) if doctor.preflight else Preflight()
    if preflight.longest is not None and settings.padded:
        longest = min(settings.length, preflight.longest)
        settings = replace(settings, length=longest, target_length=min(settings.target_length, longest))
    teacher = teacher_trace(settings)
    phases = estimate_memory(settings)
    duration = estimate_duration(
        settings,
        gpu,
        utilization=doctor.utilization,
        tf32=bool(values.tf32),
        **_shares(settings, preflight),
    )
    fits = max(phase.total for phase in phases) <= usable_memory(gpu)
    rows = preflight.num_rows * preflight.kept if preflight.num_rows is not None else doctor.num_rows
    steps = args.max_steps if args.max_steps > 0 else None
    if steps is None and rows is not None:
        steps = max(1, round(args.num_train_epochs * rows / settings.rows_per_step))
    cache: list[Any] = []
    if rows is not None and steps is not None and _can_cache(settings, teacher):
        cache = cache_sizes(
            cast("ModelTrace", teacher),
            duration,
            target_tokens=round(rows * (preflight.mean_targets or settings.target_length)),
            steps=steps,
            epochs=max(1.0, steps * settings.rows_per_step / rows),
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
        _notes(settings, gpu, values, preflight, cache=bool(cache)),
        preflight if doctor.preflight else None,
    )


def _shares(settings: "RunSettings", preflight: "Preflight") -> dict[str, float]:
    """Return the fractions of a batch's tokens that are not padding, and that are targets."""
    if preflight.mean_length is None or preflight.mean_targets is None or not settings.padded:
        return {}
    return {
        "filled": min(1.0, preflight.mean_length / settings.length),
        "targets": min(1.0, preflight.mean_targets / settings.target_length),
    }


def _can_cache(settings: "RunSettings", teacher: "ModelTrace | None") -> bool:
    return teacher is not None and settings.on_policy == 0.0 and not settings.own_teacher


def _preflight(method: Method, parser: RecipeParser, values: Namespace) -> "Preflight":
    """Check tokenizers and data, as far as they can be read."""
    from ..doctor.preflight import Preflight, inspect_trainer
    from ..generation.loading import find_base_model
    from .tiny_models import build
    from .training import load_datasets, load_tokenizers, make_trainer

    values = Namespace(**{**vars(values), "eval_strategy": "no", "test_size": None, **_WITHOUT_TEACHER_SERVICE})
    if _has_cycles(values):
        return Preflight(skipped=["the rows of a batch, which are written in each cycle."])
    _, script_args, args, model_args, *_ = parser.dataclasses(values)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            load_tokenizers(method, model_args, args)
        rows, _ = load_datasets(script_args, args)
    except (OSError, ValueError, ImportError) as error:
        return Preflight(skipped=[f"models and data ({str(error).splitlines()[0].rstrip('.')})."])
    names = {model_args.model_name_or_path: model_args.model_revision}
    if values.teacher_base_url is not None:
        return Preflight(skipped=["models and data, as the teacher is on a server; a dry run checks them."])
    like, sources, teacher = {}, {}, args.teacher_model_name_or_path
    if teacher is not None:
        names[teacher] = args.teacher_model_revision
        like[teacher], sources[teacher] = find_base_model(teacher, args.teacher_source) or (
            teacher,
            args.teacher_source,
        )
    with_weights = values.with_weights
    if with_weights is None:
        with_weights = all(_is_small(Path(like.get(name, name))) for name in names)
    with TemporaryDirectory(prefix="trl_akd_doctor_") as folder:
        first = rows.select(range(min(_ROWS, len(rows))))
        first.save_to_disk(f"{folder}/rows")
        values.dataset_name, values.dataset_train_split = f"{folder}/rows", "train"
        values.dataset_config = values.dataset_revision = None
        values.output_dir = f"{folder}/output"
        if not with_weights:
            built = build(
                names,
                Path(folder),
                own_tokenizers=True,
                trust_remote_code=values.trust_remote_code,
                like=like,
                sources=sources,
            )
            for name in ("model_name_or_path", "teacher_model_name_or_path"):
                if getattr(values, name) is not None:
                    setattr(values, name, built[getattr(values, name)].path)
            values.model_revision = values.teacher_model_revision = "main"
            values.teacher_model_init_kwargs = None
            values.dtype, values.load_in_4bit, values.load_in_8bit = "float32", False, False
        values.resume_from_checkpoint, values.report_to, values.push_to_hub = None, "none", False
        values.dataloader_drop_last = False  # a batch may have more rows than are read
        values.attn_implementation = None
        reports: list[Any] = []
        _, script_args, args, model_args, *_ = parser.dataclasses(values)
        try:
            trainer = make_trainer(_Recording(method, reports), script_args, args, model_args)
        except (OSError, ValueError, ImportError) as error:
            return Preflight(warnings=[f"the trainer refuses models or data: {error}"])
        found = inspect_trainer(trainer, next(iter(reports), None), len(rows), with_weights=with_weights)
    messages = [str(warning.message) for warning in caught if warning.category is UserWarning]
    skipped = (
        [] if with_weights else ["the models' likelihoods of the batch; load the weights by `--with_weights true`."]
    )
    return replace(found, warnings=[*messages, *found.warnings], skipped=skipped)


class _Recording(Method):
    """A method whose trainer keeps the counts of its tokenization."""

    def __init__(self, method: Method, reports: list[Any]) -> None:
        self._method, self._reports = method, reports

    def config_class(self) -> "type[AKDConfig]":
        """Return that of the method."""
        return self._method.config_class()

    def base_model(self, student: str, revision: str) -> tuple[str, str]:
        """Return that of the method."""
        return self._method.base_model(student, revision)

    def trainer_class(self) -> Any:
        """Return a subclass of the method's trainer."""
        base: Any = self._method.trainer_class()
        reports = self._reports

        class Trainer(base):
            def _tokenize(self, *args: Any) -> Any:
                rows, report = super()._tokenize(*args)
                reports.append(report)
                return rows, report

        return Trainer


def _is_small(folder: Path) -> bool:
    """Return whether a folder has the weights of a model that is quick to load."""
    sizes = [path.stat().st_size for path in folder.glob("*.safetensors")]
    return 0 < sum(sizes) <= _SMALL


def _settings(
    method: Method, values: Namespace, args: "AKDConfig", model_args: Any, accelerate: Mapping[str, Any] | None
) -> "RunSettings":
    from trl import get_quantization_config

    from ..doctor.settings import ModelSettings, Parallelism, Quantization, RunSettings, dtype_of
    from ..generation.loading import find_base_model
    from .tiny_models import KNOWN_MODELS, read_config
    from .training import adapter_config

    if model_args.model_name_or_path is None:
        raise ValueError("`model_name_or_path` is not set; set the student in a recipe (`--config`) or by a flag.")
    name, revision = model_args.model_name_or_path, model_args.model_revision
    if name not in KNOWN_MODELS:
        name, revision = method.base_model(name, revision)
    config = read_config(name, revision, args.trust_remote_code)
    student = ModelSettings(
        model_args.model_name_or_path,
        config,
        dtype_of(model_args.dtype, config),
        model_args.attn_implementation,
        Quantization.read(get_quantization_config(model_args) or getattr(config, "quantization_config", None)),
        adapter_config(model_args),
    )
    teacher = None
    source: dict[str, Any] = {}
    if args.uses_teacher and args.teacher_cache is not None:
        source = _cached_signal(args.teacher_cache, args.teacher_cache_revision)
        if args.teacher_tail_samples is not None:  # whose buffers are those of a sparse signal
            source["signal"] = "sparse"
    elif args.uses_teacher and args.teacher_base_url is not None:
        source = {"signal": "sparse"}
    elif args.uses_teacher and args.teacher_model_name_or_path is not None:
        name, teacher_source = args.teacher_model_name_or_path, args.teacher_source
        if name not in KNOWN_MODELS:
            name, teacher_source = find_base_model(name, teacher_source) or (name, teacher_source)
        config = read_config(name, **teacher_source)
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
        args, student, teacher, parallelism, autocast=_autocast(values), on_cpu=bool(values.use_cpu), **source
    )


def _cached_signal(name: str, revision: str | None) -> dict[str, Any]:
    """Return the kind of a teacher cache's signal and the shape of its LM head."""
    from ..teachers.cache_files import find_cache, read_manifest

    manifest = read_manifest(find_cache(name, revision, manifest_alone=True))
    if manifest.hidden_size is None:
        return {"signal": "sparse"}
    return {"cached_head": (manifest.vocabulary_size, manifest.hidden_size)}


def _autocast(values: Namespace) -> Any:
    """Return the dtype of mixed precision; on a GPU, `bf16` is on by default."""
    import torch

    if values.fp16:
        return torch.float16
    return torch.bfloat16 if values.bf16 or (values.bf16 is None and not values.use_cpu) else None


def _notes(
    settings: "RunSettings", gpu: "Gpu", values: Namespace, preflight: "Preflight", *, cache: bool
) -> list[str]:
    """Return what the estimates assume or leave out."""
    import torch

    maximum = f"Every row has {settings.length:,} tokens, the maximum, and all of them are targets: upper limits."
    if preflight.mean_length is not None:
        maximum = f"Memory is that of rows of {settings.length:,} tokens, time that of the rows that were read."
    notes = [
        maximum,
        "Time excludes loading, data, evaluation and checkpoints; communication is not overlapped.",
    ]
    if settings.autocast is torch.bfloat16 and not gpu.has_bfloat16:
        notes.append(f"{gpu.name} has no bfloat16; set `bf16: false` and `fp16: true`.")
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
