"""Model card of a distilled model, with its provenance and measured scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, model_info
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..losses import divergences
from .akd_config import AKDConfig, options_of_beta
from .card_scores import evaluation_section
from .model_utils import name_of

_TEMPLATE = """---
{{ card_data }}
---

# {{ model_name }}

A student distilled with {{ method }} by [trl_akd](https://pypi.org/project/trl_akd/), a plugin for
[TRL](https://github.com/huggingface/trl).

| | |
|---|---|
{% for name, value in facts %}| {{ name }} | {{ value }} |
{% endfor %}
{% for section in sections %}
{{ section }}
{% endfor %}
## Use

```python
{% if library == "peft" %}from peft import {{ architecture }}
from transformers import AutoTokenizer{% else %}from transformers import {{ architecture }}, AutoTokenizer{% endif %}

model = {{ architecture }}.from_pretrained("{{ repository }}")
tokenizer = AutoTokenizer.from_pretrained("{{ repository }}")
```

## Versions

{% for package, number in versions %}- {{ package }} {{ number }}
{% endfor %}"""

_SELF_TEACHER = "the student without its adapter"
_DATA_FILES = (".json", ".jsonl", ".csv", ".parquet", ".gz", ".txt", ".arrow")
_PACKAGES = ("trl_akd", "trl", "transformers", "torch", "datasets", "tokenizers")


@dataclass
class Provenance:
    """Sources of a run: models, data and recipe.

    Args:
        student (`str`, *optional*):
            Name or path of the model that was trained.
        student_revision (`str`, *optional*):
            Revision of the student.
        teacher (`str`, *optional*):
            Name or path of the teacher.
        teacher_revision (`str`, *optional*):
            Revision of the teacher.
        dataset (`str`, *optional*):
            Name or path of the training data.
        dataset_revision (`str`, *optional*):
            Revision of the training data.
        recipe (`str`, *optional*):
            Path of the recipe.
        license (`str`, *optional*):
            License of the distilled model, as a license identifier of the Hub.
    """

    student: str | None = None
    student_revision: str | None = None
    teacher: str | None = None
    teacher_revision: str | None = None
    dataset: str | None = None
    dataset_revision: str | None = None
    recipe: str | None = None
    license: str | None = None


def model_card(
    provenance: Provenance,
    *,
    method: str,
    objective: dict[str, Any],
    model_name: str,
    repository: str,
    tags: list[str],
    encoder_decoder: bool = False,
    adapter: bool = False,
    facts: Mapping[str, str] | None = None,
    results: Sequence[EvalResult] = (),
    sections: Sequence[str] = (),
) -> ModelCard:
    """Return the card of a distilled model.

    Args:
        provenance (`Provenance`):
            Sources of the run; unknown ones are omitted.
        method (`str`):
            Name of the method.
        objective (`dict`):
            Settings of the objective, by name.
        model_name (`str`):
            Title of the card.
        repository (`str`):
            Hub id or folder from which the model can be loaded.
        tags (`list[str]`):
            Tags for the Hub.
        encoder_decoder (`bool`, *optional*, defaults to `False`):
            Whether the model has an encoder.
        adapter (`bool`, *optional*, defaults to `False`):
            Whether the model is a PEFT adapter of the student rather than a whole model.
        facts (`Mapping[str, str]`, *optional*):
            Additional rows of the table of sources.
        results (`Sequence[EvalResult]`, *optional*):
            Scores measured on this model.
        sections (`Sequence[str]`, *optional*):
            Additional sections, in Markdown, each beginning with its heading.
    """
    rows = [
        ("Student", _at(provenance.student, provenance.student_revision)),
        ("Teacher", _at(provenance.teacher, provenance.teacher_revision)),
        ("Data", _at(provenance.dataset, provenance.dataset_revision)),
        ("Method", method),
        *(facts or {}).items(),
        *((name, f"`{value}`") for name, value in objective.items()),
        ("Recipe", _at(provenance.recipe, None)),
    ]
    library = "peft" if adapter else "transformers"
    data = ModelCardData(
        library_name=library,
        pipeline_tag="text2text-generation" if encoder_decoder else "text-generation",
        model_name=model_name,
        base_model=_hub_name(provenance.student),
        base_model_relation="adapter" if adapter and _hub_name(provenance.student) else None,
        datasets=None if (dataset := _hub_name(provenance.dataset)) is None else [dataset],
        license=provenance.license,
        eval_results=list(results) or None,
        tags=sorted({"generated_from_trainer", *tags}),
    )
    card: ModelCard = ModelCard.from_template(
        data,
        template_str=_TEMPLATE,
        model_name=model_name,
        method=method,
        repository=repository,
        library=library,
        architecture=f"Auto{'Peft' if adapter else ''}ModelFor{'Seq2SeqLM' if encoder_decoder else 'CausalLM'}",
        facts=[(name, value) for name, value in rows if value],
        sections=[evaluation_section(results), *sections],
        versions=[(package, version(package)) for package in _PACKAGES],
    )
    return card


def objective(args: AKDConfig) -> dict[str, Any]:
    """Return the settings of the objective for the model card."""
    names = ["divergence", "normalization", "kd_temperature", "lmbda", "ce_weight"]
    if not args.uses_beta:
        settings = divergences.get(args.divergence).default_settings | args.divergence_settings
        return {name: getattr(args, name) for name in names} | settings
    names += ["beta_strategy", *options_of_beta(args.beta_strategy)]
    return {name: getattr(args, name) for name in names}


def provenance(student: Any, teacher: Any, args: AKDConfig) -> Provenance:
    """Return the sources known to the trainer."""
    return Provenance(
        student=name_of(student),
        student_revision=(args.model_init_kwargs or {}).get("revision"),
        teacher=_SELF_TEACHER if teacher is None and args.uses_teacher else name_of(teacher),
        teacher_revision=args.teacher_model_revision if isinstance(teacher, str) else None,
    )


def find_license(student: str | None) -> str | None:
    """Return the license in the student's model card, in its folder or on the Hub."""
    if student is None:
        return None
    card = Path(student) / "README.md"
    if card.is_file():
        return _stated(lambda: ModelCard.load(card).data.license)
    if _hub_name(student) is None:
        return None
    return _stated(lambda: getattr(model_info(student).card_data, "license", None))


def _stated(read: Callable[[], Any]) -> str | None:
    try:
        found = read()
    except (OSError, ValueError, HfHubHTTPError, yaml.YAMLError):
        return None
    return found if isinstance(found, str) else None


def _hub_name(name: str | None) -> str | None:
    """Return `name` if it may be a repository on the Hub rather than a folder or a file."""
    if name is None or Path(name).exists() or name.endswith(_DATA_FILES):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def _at(name: str | None, revision: str | None) -> str | None:
    if name is None:
        return None
    return f"`{name}`" if revision is None else f"`{name}` at revision `{revision}`"
