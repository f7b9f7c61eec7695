"""Dry run of a recipe: the same command offline, with tiny models, a few rows and two steps.

Methods adapt their values in `Method.adapt_dry_run`.
"""

import json
import os
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import yaml

from ..akd.akd_config import AKDConfig
from ..data.sources import load
from ..generation.loading import (
    DEFAULT_API_KEY_ENV,
    find_base_model,
    read_json_object,
    source_arguments,
    without_source_arguments,
)
from ..teachers.cache_files import find_cache, read_manifest
from .arguments import BenchmarkArguments
from .methods import Method
from .mock_teacher import run_mock_teacher
from .tiny_models import KNOWN_MODELS, MAX_TOKENS, build

__all__ = ["MAX_NEW_TOKENS", "DryRun", "dry_run"]

MAX_NEW_TOKENS = 8
_STEPS = 2
_LOCAL_ROWS = 64
_HELD_OUT = 2
_TOP_K = 64

# Instruction, input, output and plan.
_TASKS = (
    ("Write a function that adds two numbers.", "", "def add(a, b):\n    return a + b", "1. Return the sum of both."),
    ("Return the larger of two numbers.", "", "def larger(a, b):\n    return a if a > b else b", "1. Compare them."),
    ("Reverse the string.", "abc", "def reverse(text):\n    return text[::-1]", "1. Walk through it from its end."),
    (
        "Count the vowels of a word.",
        "queue",
        "def vowels(word):\n    return sum(c in 'aeiou' for c in word)",
        "1. Look.",
    ),
    ("Square every number of a list.", "[1, 2]", "def squares(xs):\n    return [x * x for x in xs]", "1. Multiply."),
    (
        "Tell whether a number is even.",
        "",
        "def is_even(n):\n    return n % 2 == 0",
        "1. Divide by 2.\n2. Compare to 0.",
    ),
    (
        "Sum the digits of a number.",
        "1234",
        "def digit_sum(n):\n    return sum(map(int, str(n)))",
        "1. Split.\n2. Add.",
    ),
    (
        "Write the factorial of n.",
        "",
        "def factorial(n):\n    return 1 if n < 2 else n * factorial(n - 1)",
        "1. Recur.",
    ),
)
_ROWS = [
    {
        "instruction": task,
        "input": given,
        "output": code,
        "problem": f"{task}\n{given}",
        "solution": code,
        "plan": plan,
    }
    for task, given, code, plan in _TASKS
]
"""Rows with the columns of all methods of this package."""

_WITHOUT_GPU = {
    "load_in_4bit": False,
    "load_in_8bit": False,
    "fp16": False,
    "tf32": None,
    "attn_implementation": None,
    "packing": False,
    "teacher_device": None,
}
_GPU_MODEL_KWARGS = {"attn_implementation", "device_map", "quantization_config"}


@dataclass
class DryRun:
    """State of the preparation of a dry run.

    Args:
        values (`Namespace`):
            Value of every field of the recipe, replaced in place.
        folder (`Path`):
            Temporary folder of the run.
        resources (`ExitStack`):
            Context managers that are closed after the run.
        replaced (`list[str]`, *optional*, defaults to `[]`):
            Replacements, for the summary.
        checked (`list[str]`, *optional*, defaults to `[]`):
            Parts of the run that are tested by a success, for the summary.
        not_checked (`list[str]`, *optional*, defaults to `[]`):
            Parts of a real run that are not tested, for the summary.
    """

    values: Namespace
    folder: Path
    resources: ExitStack
    replaced: list[str] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """Return what was replaced, checked and not checked."""
        return "\n".join(
            [
                "Dry run passed. Replaced:",
                *(f"  {text}" for text in self.replaced),
                f"Checked: {', '.join(self.checked)}.",
                f"Not checked: {', '.join(self.not_checked)}.",
            ]
        )


@contextmanager
def dry_run(method: Method, values: Namespace) -> Iterator[tuple[Namespace, list[str]]]:
    """Replace the models and data of a recipe by small ones, and print a summary if the run succeeds.

    Yields the values of the recipe with these replacements, and command-line arguments with the same values. All files
    are in a temporary folder. If all models are local folders, their tokenizers are used.

    Raises:
        OSError: If the configuration of a model is neither known, nor in a local folder, nor available from the Hub.
    """
    with TemporaryDirectory(prefix="trl_akd_dry_run_") as name, ExitStack() as resources:
        run = DryRun(Namespace(**vars(values)), Path(name), resources)
        run.checked += ["every key and value", "the vocabularies", "tokenization", f"{_STEPS} steps", "saving"]
        run.not_checked += ["whether the real models and data are available", "whether they fit into memory"]
        method.adapt_dry_run(run)
        _replace_models(run)
        _replace_server(run)
        _replace_data(run, method)
        _remove_benchmark(run)
        _do_without_gpu(run)
        _do_without_vllm(run)
        _shorten(run)
        recipe = run.folder / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(vars(run.values)), encoding="utf-8")
        yield run.values, ["--config", str(recipe)]
    if os.environ.get("RANK", "0") == "0":
        print(run.summary())


def _replace_models(run: DryRun) -> None:
    values = run.values
    values.teacher_model_init_kwargs = read_json_object("teacher_model_init_kwargs", values.teacher_model_init_kwargs)
    replaceable = values.teacher_base_url is not None  # the name on a server may not be that of a model
    if values.teacher_cache is not None:
        cached = read_manifest(find_cache(values.teacher_cache, values.teacher_cache_revision, manifest_alone=True))
        replaceable = values.teacher_model_name_or_path is None  # a local teacher may be on another machine
        values.teacher_model_name_or_path = values.teacher_model_name_or_path or cached.teacher
        run.replaced.append(f"{values.teacher_cache}: its teacher {values.teacher_model_name_or_path}")
        run.not_checked.append("whether the cache has the data")
        values.teacher_cache = values.teacher_cache_revision = None
    revisions = {
        values.teacher_model_name_or_path: values.teacher_model_revision,
        values.model_name_or_path: values.model_revision,
    }
    revisions.pop(None, None)
    like, sources, teacher = {}, {}, values.teacher_model_name_or_path
    if replaceable and teacher not in KNOWN_MODELS and not Path(teacher).is_dir():
        like[teacher] = values.model_name_or_path
    elif teacher is not None and teacher not in KNOWN_MODELS:
        source = source_arguments(
            values.teacher_model_init_kwargs,
            revision=values.teacher_model_revision,
            trust_remote_code=values.trust_remote_code,
        )
        like[teacher], sources[teacher] = find_base_model(teacher, source) or (teacher, source)
    own_tokenizers = all(Path(like.get(name, name)).is_dir() for name in revisions)
    built = build(
        revisions,
        run.folder,
        own_tokenizers=own_tokenizers,
        trust_remote_code=values.trust_remote_code,
        like=like,
        sources=sources,
    )
    for name in ("model_name_or_path", "teacher_model_name_or_path"):
        if getattr(values, name) is not None:
            setattr(values, name, built[getattr(values, name)].path)
    values.model_revision = values.teacher_model_revision = "main"
    values.teacher_model_init_kwargs = without_source_arguments(values.teacher_model_init_kwargs or {}) or None
    if not own_tokenizers:
        values.max_length = MAX_TOKENS
    run.replaced += [f"{name}: {model.description}" for name, model in built.items()]
    if values.use_peft:
        run.checked.append(f"LoRA on {values.lora_target_modules or 'the default modules'}")


def _replace_server(run: DryRun) -> None:
    """Replace the server of the teacher by one in this process with the tiny teacher."""
    values = run.values
    if values.teacher_base_url is None:
        return
    run.replaced.append(f"{values.teacher_base_url}: a mock server with the tiny teacher")
    run.checked.append("requests to the teacher's server")
    run.not_checked.append("whether the server can be reached and allows `teacher_top_k` log-probabilities")
    values.teacher_base_url = run.resources.enter_context(run_mock_teacher(values.teacher_model_name_or_path))
    values.teacher_api_key_env = DEFAULT_API_KEY_ENV
    values.teacher_top_k = min(values.teacher_top_k, _TOP_K)
    values.teacher_max_requests = values.teacher_max_tokens = None


def _replace_data(run: DryRun, method: Method) -> None:
    values = run.values
    if values.dataset_name is None:
        return
    if Path(values.dataset_name).expanduser().exists():
        rows = list(islice(load(values.dataset_name, split=values.dataset_train_split), _LOCAL_ROWS))
        run.replaced.append(f"{values.dataset_name}: its first {len(rows)} rows")
    else:
        rows = _ROWS
        run.replaced.append(f"{values.dataset_name}: {len(rows)} built-in rows")
    path = run.folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, method.dry_run_rows(rows))), encoding="utf-8")
    values.dataset_name, values.dataset_train_split = str(path), "train"
    values.dataset_config = values.dataset_revision = None
    if values.eval_strategy != "no" or values.test_size is not None:
        values.test_size = _HELD_OUT
    if values.eval_strategy != "no":
        run.checked.append("evaluation")


def _remove_benchmark(run: DryRun) -> None:
    """Remove the benchmark, which a tiny model would fail and which may be on the Hub."""
    name = getattr(run.values, "eval_benchmark", None)
    if name is not None:
        for entry in fields(BenchmarkArguments):
            if entry.name.startswith("eval_") and hasattr(run.values, entry.name):
                setattr(run.values, entry.name, entry.default)
        run.replaced.append(f"{name}: left out")
    if "pass@" in (run.values.metric_for_best_model or ""):
        run.values.metric_for_best_model = "eval_loss"


def _do_without_gpu(run: DryRun) -> None:
    if torch.accelerator.is_available():
        return
    values = run.values
    values.use_cpu = True
    if kwargs := values.teacher_model_init_kwargs:
        kept = {name: value for name, value in kwargs.items() if name not in _GPU_MODEL_KWARGS}
        values.teacher_model_init_kwargs = kept or None
    for name, instead in _WITHOUT_GPU.items():
        if (value := getattr(values, name)) != instead:
            setattr(values, name, instead)
            run.replaced.append(f"{name} = {value}: {instead}, as there is no GPU")


def _do_without_vllm(run: DryRun) -> None:
    """Generate with transformers, since vLLM may be missing, and a server has other weights."""
    if not run.values.use_vllm:
        return
    for entry in fields(AKDConfig):
        if entry.name.startswith(("use_vllm", "vllm_")):
            setattr(run.values, entry.name, entry.default)
    run.replaced.append("use_vllm = True: False, so that text is generated by transformers")
    run.not_checked.append("vLLM and its options")


def _shorten(run: DryRun) -> None:
    values = run.values
    values.dry_run = False
    values.output_dir = str(run.folder / "output")
    values.max_steps = _STEPS
    values.logging_steps = 1
    values.dataloader_drop_last = False  # a batch may have more rows than the data here
    values.max_new_tokens = min(values.max_new_tokens, MAX_NEW_TOKENS)
    values.resume_from_checkpoint = None
    values.report_to = "none"
    values.push_to_hub = False
