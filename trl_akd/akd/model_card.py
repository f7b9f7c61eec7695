"""Facts of a run for its model card: objective, sources, and the picture of a knob that changed during training."""

import re
from collections.abc import Mapping, Sequence
from inspect import cleandoc
from pathlib import Path
from typing import Any

from ..charts import Series, line_chart
from ..data.schema import detect_format, prompt_style
from ..data.templates import render
from ..generation.loading import path_in_repository
from ..hub.model_card import PromptFormat, Provenance
from ..losses import divergences
from ..teachers import CachedTeacher
from .akd_config import AKDConfig, options_of_beta
from .model_utils import adapters_of, name_of

__all__ = [
    "SCHEDULE_FIGURE",
    "draw_schedule",
    "explain_divergence",
    "find_prompt_format",
    "is_adaptive",
    "method_name",
    "objective",
    "provenance",
    "template_format",
    "training_facts",
]

SCHEDULE_FIGURE = "beta.svg"
_SELF_TEACHER = "the student without its adapter"
_MIX = r"$$(1-\beta)\,\mathrm{KL}(p\,\|\,q) + \beta\,\mathrm{KL}(q\,\|\,p)$$"
_BETA = {
    "akd": "drawn from the initial values in each epoch, and then ascended the divergence minus a regularizer",
    "m1": "drawn from the initial values once, and then descended the divergence plus a regularizer",
    "m2": "drawn from the initial values once, and then ascended the divergence minus a regularizer",
    "fixed": "constant",
    "random_epoch": "drawn from the initial values in each epoch",
    "linear": "changed linearly from the first to the second of the initial values",
}

_MIXES = {
    "fixed": "a constant mix of forward and reverse KL",
    "random_epoch": "a mix of forward and reverse KL, random in each epoch",
    "linear": "a mix of forward and reverse KL that changes linearly",
}


def is_adaptive(args: AKDConfig) -> bool:
    """Return whether β is learned, as in AKD and its ablations."""
    return args.uses_beta and args.beta_strategy not in _MIXES


def method_name(args: AKDConfig) -> str:
    """Return the name of the method for the model card, which depends on the divergence.

    Example:

    ```python
    >>> method_name(AKDConfig("outputs", bf16=False, divergence="jsd"))
    'KD (knowledge distillation by the divergence jsd)'

    ```
    """
    if is_adaptive(args):
        return "AKD (adaptive knowledge distillation)"
    divergence = _MIXES[args.beta_strategy] if args.uses_beta else f"the divergence {args.divergence}"
    return f"KD (knowledge distillation by {divergence})"


def objective(args: AKDConfig) -> dict[str, Any]:
    """Return the settings of the objective for the model card."""
    names = ["divergence", "normalization", "kd_temperature", "lmbda", "ce_weight"]
    if args.teacher_base_url is not None:
        names.append("teacher_top_k")
    if args.teacher_tail_samples is not None:
        names.append("teacher_tail_samples")
    if not args.uses_beta:
        settings = divergences.get(args.divergence).default_settings | args.divergence_settings
        return {name: getattr(args, name) for name in names} | settings
    names += ["beta_strategy", *options_of_beta(args.beta_strategy)]
    unused = {"beta_regularization"} if args.beta_regularizer == "eq16" else set()  # which is zero
    if args.beta_regularization == 0.0:
        unused.add("beta_regularizer")
    return {name: getattr(args, name) for name in names if name not in unused}


def find_prompt_format(dataset: Any, args: AKDConfig) -> PromptFormat | None:
    """Return the format of the prompts of a dataset that is not tokenized yet; `None` if it is."""
    row: Mapping[str, Any] = next(iter(dataset), {})
    columns = dataset.column_names or row.keys()
    if "seq_lengths" in columns:
        return None
    format = detect_format(columns, text_field=args.dataset_text_field, allow_prompt_only=args.prompts_suffice)
    style = prompt_style(format, row)
    if style == "template":
        return template_format(args.prompt_template)
    return None if style is None else PromptFormat(style)


def template_format(template: str) -> PromptFormat:
    """Return the format of prompts in a template."""
    return PromptFormat("template", template, render(template, PromptFormat.example))


def training_facts(args: AKDConfig, steps: int, per: str = "") -> dict[str, str]:
    """Return the settings of a training that ended after a number of optimizer steps, for the model card.

    `per` names the unit whose number of epochs `num_train_epochs` is, such as `" per cycle"`.
    """
    rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return {
        **({f"Epochs{per}": f"{args.num_train_epochs:g}"} if args.max_steps <= 0 else {}),
        "Optimizer steps": str(steps),
        "Rows per optimizer step": str(rows),
        "Learning rate": f"{args.learning_rate:g} ({args.lr_scheduler_type.value})",
        "Seed": str(args.seed),
    }


def explain_divergence(args: AKDConfig) -> str:
    """Return a Markdown paragraph with the equation of the divergence, and its source."""
    rule = divergences.get(args.divergence)
    source = f" ([source]({rule.paper}))" if rule.paper else ""
    opening = "On every target token, with the teacher's distribution p and the student's distribution q, the student "
    if args.uses_beta:
        mix = f"minimizes a mix of forward and reverse KL{source}:\n\n{_MIX}"
        return f"{opening}{mix}\n\nβ, the weight of reverse KL, was {_BETA[args.beta_strategy]}."
    definition = re.split(r"\n\n(?=Arg)", cleandoc(rule.function.__doc__ or ""))[0]
    quoted = "\n".join(f"> {line}" for line in re.sub(r"\[(`\w+`)\](?!\()", r"\1", definition).splitlines())
    return f"{opening}minimizes the divergence `{rule.name}`{source}:\n\n{quoted}"


def provenance(student: Any, teacher: Any, args: AKDConfig, *loaded: Any) -> Provenance:
    """Return the sources known to the trainer. `loaded` are student and teacher, whose commits are known."""
    commits = [getattr(getattr(model, "config", None), "_commit_hash", None) for model in loaded]
    student_commit, teacher_commit = [*commits, None, None][:2]
    teacher_name, teacher_revision = name_of(teacher), teacher_commit
    if isinstance(teacher, str) and args.teacher_base_url is None:
        teacher_name = path_in_repository(teacher, args.teacher_source)
        if teacher_commit is None or adapters_of(loaded[1]):  # whose commit is that of its base model
            teacher_revision = args.teacher_source["revision"]
    if isinstance(teacher, CachedTeacher):
        teacher_name, teacher_revision = teacher.manifest.teacher, teacher.manifest.teacher_revision
    return Provenance(
        student=name_of(student),
        student_revision=student_commit or (args.model_init_kwargs or {}).get("revision"),
        teacher=_SELF_TEACHER if teacher is None and args.uses_teacher else teacher_name,
        teacher_revision=teacher_revision,
    )


def draw_schedule(knob: str | None, logs: Sequence[Mapping[str, Any]], folder: Path) -> str | None:
    """Draw the logged values of a knob that changed during training, and return the card's section on it.

    Without at least two values there is neither; an older picture is removed.
    """
    name = "β, the weight of reverse KL" if knob == "beta" else f"{knob}"
    points = [(float(log["step"]), float(log[f"kd/{knob}"])) for log in logs if f"kd/{knob}" in log]
    if len({step for step, _ in points}) < 2:
        (folder / SCHEDULE_FIGURE).unlink(missing_ok=True)
        return None
    chart = line_chart(f"{name}, during training", "optimizer step", name, [Series("", points, 0)])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SCHEDULE_FIGURE).write_text(chart, encoding="utf-8")
    heading = "β" if knob == "beta" else f"`{knob}`"
    return (
        f"## {heading} during training\n\n![{name}, by optimizer step]({SCHEDULE_FIGURE})\n\n"
        f"From {points[0][1]:.3f} at step {points[0][0]:g} to {points[-1][1]:.3f} at step {points[-1][0]:g}."
    )
