"""Try a recipe offline: the same command, with tiny models and a few rows in place of the real ones.

Where a teacher writes answers, as IterKD's does, a server on this machine takes its place and replies by rote.
"""

import json
import os
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml

from ..data.sources import load
from ..generation.loading import DEFAULT_API_KEY_ENV
from ..iterkd.judge_prompts import JudgePrompt
from ..iterkd.questions import read_questions
from ..iterkd.teaching_config import TeachingConfig
from ..iterkd.teaching_prompts import TeachingPrompts
from .stand_in_teacher import serving, write_prompts
from .stand_ins import BYTES, build

__all__ = ["rehearsal"]

_STEPS = 2
_LOCAL_ROWS = 64
_HELD_OUT = 2
_NEW_TOKENS = 8
_CYCLES = 2
_AT_MOST = {
    "new_easy": 2,
    "new_medium": 2,
    "new_hard": 2,
    "questions_per_cycle": 8,
    "answer_max_new_tokens": _NEW_TOKENS,
}
_BUDGETS = ("max_requests", "max_tokens", "max_seconds")

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
"""Rows that serve every method: each reads its own columns."""

_NEEDS_A_GPU = {
    "load_in_4bit": False,
    "load_in_8bit": False,
    "fp16": False,
    "tf32": None,
    "attn_implementation": None,
    "packing": False,
    "teacher_device": None,
}
_NEEDS_A_GPU_IN_KWARGS = {"attn_implementation", "device_map", "quantization_config"}


@contextmanager
def rehearsal(values: Namespace) -> Iterator[tuple[Namespace, list[str]]]:
    """Build stand-ins for a recipe's models and data, and say afterwards what the run has shown.

    Yields the recipe's values with the stand-ins in place, and command-line arguments that mean the same. Everything
    lives in a temporary folder. Where all models are local folders their own tokenizers serve.

    Args:
        values (`Namespace`):
            Value of every field of the recipe.

    Raises:
        OSError: If a model is neither known nor a local folder, and the Hub does not give out its configuration.
    """
    with TemporaryDirectory(prefix="trl_akd_dry_run_") as name, ExitStack() as stack:
        folder = Path(name)
        replaced = Namespace(**vars(values))
        notes = _replace_writers(replaced, folder, stack) if _has_cycles(values) else []
        notes += [
            *_replace_models(replaced, folder),
            *_replace_data(replaced, folder),
            *_leave_out_benchmark(replaced),
            *_do_without_gpu(replaced),
        ]
        _shorten(replaced, folder)
        recipe = folder / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(vars(replaced)), encoding="utf-8")
        yield replaced, ["--config", str(recipe)]
    if os.environ.get("RANK", "0") == "0":
        print(_summary(replaced, notes))


def _has_cycles(values: Namespace) -> bool:
    return "cycles" in values


def _replace_writers(values: Namespace, folder: Path, stack: ExitStack) -> list[str]:
    """Let a server that replies by rote write and judge, once it is sure that the values mean something."""
    TeachingConfig(**{field.name: getattr(values, field.name) for field in fields(TeachingConfig)})
    if values.prompts_file is not None:
        TeachingPrompts.from_file(values.prompts_file)
    if values.judge_prompt_file is not None:
        JudgePrompt.from_file(values.judge_prompt_file)
    values.prompts_file, values.judge_prompt_file = write_prompts(folder)
    writer = values.text_teacher_model_name_or_path or values.teacher_model_name_or_path
    if writer is None:
        return []
    values.text_teacher_model_name_or_path, values.text_teacher_model_revision = writer, None
    values.backend, values.base_url = "openai", stack.enter_context(serving())
    notes = [f"{writer}, as it writes: a server on this machine that replies by rote"]
    judge = values.judge_model_name_or_path or values.judge
    if judge not in ("teacher", "none"):
        notes.append(f"{judge}: the same")
        values.judge = "teacher"
    values.judge_base_url = values.judge_model_name_or_path = values.judge_extra_body = values.judge_backend = None
    values.api_key_env = values.judge_api_key_env = DEFAULT_API_KEY_ENV
    return notes


def _replace_models(values: Namespace, folder: Path) -> list[str]:
    revisions = {
        values.teacher_model_name_or_path: values.teacher_model_revision,
        values.model_name_or_path: values.model_revision,
    }
    revisions.pop(None, None)
    own_tokenizers = all(Path(name).is_dir() for name in revisions)
    built = build(revisions, folder, own_tokenizers=own_tokenizers, trust_remote_code=values.trust_remote_code)
    for field in ("model_name_or_path", "teacher_model_name_or_path"):
        if getattr(values, field) is not None:
            setattr(values, field, built[getattr(values, field)].path)
    values.model_revision = values.teacher_model_revision = "main"
    if not own_tokenizers:
        values.max_length = BYTES
    return [f"{name}: {stand_in.description}" for name, stand_in in built.items()]


def _replace_data(values: Namespace, folder: Path) -> list[str]:
    if values.dataset_name is None:
        return []
    if Path(values.dataset_name).expanduser().exists():
        rows = list(islice(load(values.dataset_name, split=values.dataset_train_split), _LOCAL_ROWS))
        note = f"{values.dataset_name}: its first {len(rows)} rows"
    else:
        rows = _ROWS
        note = f"{values.dataset_name}: {len(rows)} built-in rows"
    if _has_cycles(values):
        rows = _without_tests(rows)
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    values.dataset_name, values.dataset_train_split = str(path), "train"
    values.dataset_config = values.dataset_revision = None
    if values.eval_strategy != "no" or values.test_size is not None:
        values.test_size = _HELD_OUT
    return [note]


def _without_tests(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows, once they are known to be questions, without what no reply by rote would pass."""
    read_questions(rows)
    return [{name: value for name, value in row.items() if name != "tests"} for row in rows]


def _leave_out_benchmark(values: Namespace) -> list[str]:
    """Drop what a tiny stand-in would fail anyway, and what may have to come from the Hub."""
    names = list(filter(None, [values.eval_benchmark, *getattr(values, "decontaminate", [])]))
    values.eval_benchmark = None
    if _has_cycles(values):
        values.decontaminate = []
    if "pass@" in (values.metric_for_best_model or ""):
        values.metric_for_best_model = "eval_loss"
    return [f"{name}: left out" for name in dict.fromkeys(names)]


def _do_without_gpu(values: Namespace) -> list[str]:
    if torch.accelerator.is_available():
        return []
    values.use_cpu = True
    kwargs = values.teacher_model_init_kwargs or {}
    kwargs = json.loads(kwargs) if isinstance(kwargs, str) else kwargs
    values.teacher_model_init_kwargs = {
        name: value for name, value in kwargs.items() if name not in _NEEDS_A_GPU_IN_KWARGS
    }
    given = {name: getattr(values, name) for name, instead in _NEEDS_A_GPU.items() if getattr(values, name) != instead}
    for name in given:
        setattr(values, name, _NEEDS_A_GPU[name])
    return [f"{name} = {value}: {_NEEDS_A_GPU[name]}, for want of a GPU" for name, value in given.items()]


def _shorten(values: Namespace, folder: Path) -> None:
    values.dry_run = False
    values.output_dir = str(folder / "output")
    values.max_steps = _STEPS
    values.logging_steps = 1
    values.max_new_tokens = min(values.max_new_tokens, _NEW_TOKENS)
    values.resume_from_checkpoint = None
    values.report_to = "none"
    values.push_to_hub = False
    if _has_cycles(values):
        values.cycles = _CYCLES
        values.push_ledger_to_hub = False
        vars(values).update({name: min(getattr(values, name), most) for name, most in _AT_MOST.items()})
        vars(values).update(dict.fromkeys(_BUDGETS))


def _summary(values: Namespace, notes: list[str]) -> str:
    checked = ["every key and value", "the vocabularies", "tokenisation", f"{values.max_steps} steps", "saving"]
    if _has_cycles(values):
        checked.append(f"{values.cycles} cycles of delivery, training, feedback and update")
    if values.use_peft:
        checked.append(f"LoRA on {values.lora_target_modules or 'the default modules'}")
    if values.eval_strategy != "no":
        checked.append("evaluation")
    lines = [
        "Dry run passed, with stand-ins for",
        *(f"  {note}" for note in notes),
        f"Checked: {', '.join(checked)}.",
        "Not checked: that the real models and data can be had, and that they fit into memory.",
    ]
    if _has_cycles(values):
        lines[-1] = f"{lines[-1][:-1]}; that the server can be reached, and what the real teacher writes."
    return "\n".join(lines)
