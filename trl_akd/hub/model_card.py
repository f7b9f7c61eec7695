"""Model card of a distilled model, with its provenance and measured scores."""

import json
import os
import platform
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from ..ledger import replace_text
from . import REPOSITORY
from .markdown import code, code_block
from .private import public_path
from .scores import measured_sections
from .upload import hub_api

__all__ = [
    "RECIPE_FILE",
    "RUN_FILE",
    "BaseModelFacts",
    "Fact",
    "ModelCardContent",
    "PromptFormat",
    "Provenance",
    "add_base_model",
    "git_commit",
    "hub_name",
    "model_card",
    "read_base_model",
    "read_prompt_format",
    "rename",
    "run_facts",
    "versions",
    "write_run_facts",
]

RECIPE_FILE = "recipe.yaml"
RUN_FILE = "run.json"

_TEMPLATE = """---
{{ card_data }}
---

# {{ model_name }}

A student distilled with {{ method }} by [trl_akd]({{ project }}), a plugin for
[TRL](https://github.com/huggingface/trl).

| | |
|---|---|
{% for name, value in facts %}| {{ name }} | {{ value }} |
{% endfor %}
{% for section in sections %}
{{ section }}
{% endfor %}
## Use

{{ prompts }}

```python
{{ example }}
```
{% if library == "peft" and not base_model %}
The adapter's base model was a local folder, so the adapter loads only where that folder is.
{% endif %}
## Reproduce

{{ reproduction }}

## Versions

{% for package, number in versions %}- {{ package }} {{ number }}
{% endfor %}"""

_EXAMPLE = """\
{imports}

model = {architecture}.from_pretrained("{repository}")
tokenizer = AutoTokenizer.from_pretrained("{repository}")
{prompt}
output = model.generate(**inputs, max_new_tokens={max_new_tokens})
print(tokenizer.decode({answer}, skip_special_tokens=True))"""
_TEXT = """\
prompt = {prompt}
inputs = tokenizer(prompt, return_tensors="pt")"""
_MESSAGES = """\
messages = [{{"role": "user", "content": {prompt}}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")"""

_DATA_FILES = (".json", ".jsonl", ".csv", ".parquet", ".gz", ".txt", ".arrow")
_PACKAGES = ("trl_akd", "trl", "transformers", "torch", "accelerate", "datasets", "tokenizers")
_LICENSE_FIELDS = ("license", "license_name", "license_link")


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
        command (`str`, *optional*):
            Command that trains by the recipe as it was run, which is in `recipe.yaml`.
        commit (`str`, *optional*):
            Git commit of the folder of the recipe or, without a recipe or outside a repository, of the working
            directory.
        license (`str`, *optional*):
            License of the distilled model, as a license identifier of the Hub. Defaults to that of the student.
    """

    student: str | None = None
    student_revision: str | None = None
    teacher: str | None = None
    teacher_revision: str | None = None
    dataset: str | None = None
    dataset_revision: str | None = None
    recipe: str | None = None
    command: str | None = None
    commit: str | None = None
    license: str | None = None


@dataclass(frozen=True)
class BaseModelFacts:
    """Facts about a student before its training, as its own card states them.

    Args:
        name (`str`, *optional*):
            Its name on the Hub or, for a local folder, that of the model it was derived from.
        license (`dict`):
            `license` and, for a license without an identifier, `license_name` and `license_link`.
    """

    name: str | None = None
    license: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PromptFormat:
    """Format of the prompts on which a model was trained.

    Args:
        style (`str`):
            Style of prompts, as in `trl-akd evaluate`: `"template"`, `"chat"` or, for prompts without a template,
            `"completion"`.
        template (`str`, *optional*):
            Name of the template of the style `"template"`.
        example (`str`, *optional*):
            A prompt in this format, for the card; for the style `"chat"`, the user's message.
    """

    style: str
    template: str | None = None
    example: str = "Write a Python function that doubles a number."

    @property
    def phrase(self) -> str:
        """The format in a sentence, such as "with the template `alpaca`"."""
        if self.style == "template":
            return f"with the template `{self.template}`"
        return "with the tokenizer's chat template" if self.style == "chat" else "without a template"


@dataclass(frozen=True)
class ModelCardContent:
    """Content of a model card besides its provenance.

    Args:
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
        explanation (`str`, *optional*):
            Section on the method and its equation, without heading, in Markdown.
        encoder_decoder (`bool`, *optional*, defaults to `False`):
            Whether the model has an encoder.
        adapter (`bool`, *optional*, defaults to `False`):
            Whether the model is a PEFT adapter of the student rather than a whole model.
        facts (`Mapping[str, str]`, *optional*):
            Additional rows of the table of sources.
        results (`Sequence[EvalResult]`, *optional*):
            Scores measured on this model.
        measurements (`Mapping[str, str]`, *optional*):
            Sections about measurements, as of `trl_akd.hub.scores.errors_section`.
        sections (`Sequence[str]`, *optional*):
            Additional sections, in Markdown, each beginning with its heading.
        prompts (`PromptFormat`, *optional*):
            Format of the prompts of training, if it is known.
        max_new_tokens (`int`, *optional*, defaults to `256`):
            Maximum number of tokens that the example generates.
        measured_step (`int`, *optional*):
            Training step of the saved model, at which `results` were measured.
    """

    method: str
    objective: dict[str, Any]
    model_name: str
    repository: str
    tags: list[str]
    explanation: str = ""
    encoder_decoder: bool = False
    adapter: bool = False
    facts: Mapping[str, str] = field(default_factory=dict)
    results: Sequence[EvalResult] = ()
    measurements: Mapping[str, str] = field(default_factory=dict)
    sections: Sequence[str] = ()
    prompts: PromptFormat | None = None
    max_new_tokens: int = 256
    measured_step: int | None = None


@dataclass(frozen=True)
class Fact:
    """A row of the table of sources and settings.

    Args:
        name (`str`):
            Name of the source or setting.
        value (`str`):
            Its value, without absolute paths of the machine.
        revision (`str`, *optional*):
            Revision of a model or dataset on the Hub.
    """

    name: str
    value: str
    revision: str | None = None


def _facts(provenance: Provenance, content: ModelCardContent) -> list[Fact]:
    """Return the known sources and settings of a run."""
    sources = [
        ("Student", provenance.student, provenance.student_revision),
        ("Teacher", provenance.teacher, provenance.teacher_revision),
        ("Data", provenance.dataset, provenance.dataset_revision),
    ]
    settings = {**_prompt_fact(content.prompts), **content.facts, **content.objective}
    return [
        *(
            Fact(name, public_path(value), None if Path(value).expanduser().exists() else revision)
            for name, value, revision in sources
            if value is not None
        ),
        *(Fact(name, str(value)) for name, value in settings.items()),
        *([] if provenance.recipe is None else [Fact("Recipe", public_path(provenance.recipe))]),
        *([] if provenance.commit is None else [Fact("Git commit", provenance.commit)]),
    ]


def _prompt_fact(prompts: PromptFormat | None) -> dict[str, str]:
    if prompts is None:
        return {}
    other = {"chat": "chat template of the tokenizer", "completion": "none"}
    return {"Prompt template": prompts.template or other.get(prompts.style, prompts.style)}


def run_facts(provenance: Provenance, content: ModelCardContent) -> dict[str, Any]:
    """Return what the model card states about a run, except for scores, as JSON values.

    Returns:
        `dict`: `name` of the model, `method`, `explanation` of the method in Markdown, `facts` (fields of [`Fact`]),
        `prompts` (`style` and `template` of [`PromptFormat`], or `None`), `measured_step` (or `None`), `command`
        (`None` for a run from Python) and `versions` of packages.
    """
    prompts = content.prompts
    return {
        "name": content.model_name,
        "method": content.method,
        "explanation": content.explanation,
        "facts": [asdict(fact) for fact in _facts(provenance, content)],
        "prompts": None if prompts is None else {"style": prompts.style, "template": prompts.template},
        "measured_step": content.measured_step,
        "command": provenance.command,
        "versions": versions(),
    }


def write_run_facts(folder: Path, provenance: Provenance, content: ModelCardContent) -> None:
    """Write [`run_facts`] to `run.json`, from which the report of the run is made."""
    text = json.dumps(run_facts(provenance, content), indent=2)
    replace_text(folder / RUN_FILE, f"{text}\n")


def model_card(provenance: Provenance, content: ModelCardContent, base: BaseModelFacts | None = None) -> ModelCard:
    """Return the card of a distilled model. Unknown sources are omitted, and local paths are shortened.

    Args:
        provenance (`Provenance`):
            Sources of the run.
        content (`ModelCardContent`):
            Everything else.
        base (`BaseModelFacts`, *optional*):
            Facts about the student before training, from [`read_base_model`].
    """
    base = base or BaseModelFacts(hub_name(provenance.student))
    library = "peft" if content.adapter else "transformers"
    dataset = hub_name(provenance.dataset)
    data = ModelCardData(
        library_name=library,
        pipeline_tag="text2text-generation" if content.encoder_decoder else "text-generation",
        model_name=content.model_name,
        base_model=base.name,
        base_model_relation=_relation(content.adapter) if base.name else None,
        datasets=None if dataset is None else [dataset],
        eval_results=list(content.results) or None,
        tags=sorted({"generated_from_trainer", *content.tags}),
        **(base.license if provenance.license is None else {"license": provenance.license}),
    )
    explanation = [f"## Method\n\n{content.explanation}"] if content.explanation else []
    card: ModelCard = ModelCard.from_template(
        data,
        template_str=_TEMPLATE,
        model_name=content.model_name,
        method=content.method,
        project=REPOSITORY,
        library=library,
        base_model=base.name,
        prompts=_about_prompts(content.prompts),
        example=_example(content),
        facts=[("Method", content.method), *((fact.name, _cell(fact)) for fact in _facts(provenance, content))],
        sections=[*explanation, *measured_sections(content.results, content.measurements), *content.sections],
        reproduction=_reproduction(provenance),
        versions=versions().items(),
    )
    return card


def _about_prompts(prompts: PromptFormat | None) -> str:
    if prompts is None:
        return "Write the prompt in the format of the training data, which was tokenized before."
    if prompts.style == "completion":
        return "Write the prompt as those of the training data, which have no template."
    return f"The prompt is written as in training, {prompts.phrase}."


def _example(content: ModelCardContent) -> str:
    """Return a program that loads the model and generates an answer."""
    architecture = _architecture(content.adapter, content.encoder_decoder)
    imports = f"from transformers import {architecture}, AutoTokenizer"
    if content.adapter:
        imports = f"from peft import {architecture}\nfrom transformers import AutoTokenizer"
    prompts = content.prompts or PromptFormat("completion")
    text = _literal(f"{prompts.example}\n" if prompts.style == "completion" else prompts.example)
    return _EXAMPLE.format(
        imports=imports,
        architecture=architecture,
        repository=content.repository,
        prompt=(_MESSAGES if prompts.style == "chat" else _TEXT).format(prompt=text),
        max_new_tokens=content.max_new_tokens,
        answer="output[0]" if content.encoder_decoder else 'output[0, inputs["input_ids"].shape[1] :]',
    )


def _literal(text: str) -> str:
    """Return a text as a literal of Python, over several lines if it has several."""
    several = "\n" in text.strip() and not re.search(r'\\|"""|"$', text)
    return f'"""{text}"""' if several else json.dumps(text, ensure_ascii=False)


def read_prompt_format(model: str) -> PromptFormat | None:
    """Return the format of the prompts of a model's training, if its folder has a `run.json` that states it."""
    try:
        prompts = json.loads((Path(model).expanduser() / RUN_FILE).read_text(encoding="utf-8"))["prompts"]
        return PromptFormat(prompts["style"], prompts["template"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def read_base_model(student: str | None, *, online: bool) -> BaseModelFacts:
    """Return facts from the student's own card, in its folder or, if `online`, on the Hub."""
    if student is None:
        return BaseModelFacts()
    name, data = hub_name(student), None
    card = Path(student) / "README.md"
    if card.is_file():
        data = _stated(lambda: ModelCard.load(card).data)
        derived = getattr(data, "base_model", None)
        name = hub_name(derived) if isinstance(derived, str) else None
    elif name is not None and online:
        data = _stated(lambda: hub_api().model_info(name).card_data)
    found = {key: getattr(data, key, None) for key in _LICENSE_FIELDS}
    license = {key: value for key, value in found.items() if isinstance(value, str)}
    link = license.get("license_link", "")
    if link and "://" not in link:
        license["license_link"] = f"https://huggingface.co/{name}/blob/main/{link}" if name else link
    return BaseModelFacts(name, license)


def add_base_model(card: ModelCard, name: str, *, adapter: bool) -> None:
    """Add the base model and its license to a card's metadata where these are missing."""
    card.data.base_model = card.data.get("base_model") or name
    card.data.base_model_relation = _relation(adapter)
    if card.data.get("license") is None:
        for key, value in read_base_model(name, online=True).license.items():
            card.data[key] = value


def rename(card: ModelCard, repository: str, *, adapter: bool, encoder_decoder: bool) -> None:
    """Adapt title and examples of a card from this package to another repository, or to a merged adapter."""
    old, new = card.data.get("model_name"), repository.rpartition("/")[2]
    text = card.text
    loaded = re.search(r'from_pretrained\("([^"]+)"\)', text)
    if loaded:
        text = text.replace(f'"{loaded[1]}"', f'"{repository}"')
    if old:
        text = re.sub(rf"^# {re.escape(old)}$", lambda _: f"# {new}", text, count=1, flags=re.M)
    if not adapter and card.data.get("library_name") == "peft":
        old_class, new_class = (_architecture(each, encoder_decoder) for each in (True, False))
        text = text.replace(
            f"from peft import {old_class}\nfrom transformers import AutoTokenizer",
            f"from transformers import {new_class}, AutoTokenizer",
        ).replace(old_class, new_class)
        card.data.library_name = "transformers"
        if card.data.get("base_model"):
            card.data.base_model_relation = _relation(adapter)
    card.data.model_name = new
    card.text = text


def hub_name(name: str | None) -> str | None:
    """Return `name` if it may be a repository on the Hub rather than a folder or a file."""
    if name is None or Path(name).exists() or name.endswith(_DATA_FILES):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def _relation(adapter: bool) -> str:
    return "adapter" if adapter else "finetune"


def _architecture(adapter: bool, encoder_decoder: bool) -> str:
    return f"Auto{'Peft' if adapter else ''}ModelFor{'Seq2SeqLM' if encoder_decoder else 'CausalLM'}"


def git_commit(folder: Path) -> str | None:
    """Return the commit of the Git repository that contains a folder, with `-dirty` if files differ from it.

    Returns:
        `str` or `None`: `None` outside a repository, before its first commit, or without Git.
    """
    command = ["git", "-c", "core.fsmonitor=false", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def _stated(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (OSError, ValueError, HTTPError, yaml.YAMLError):
        return None


def _reproduction(provenance: Provenance) -> str:
    if provenance.command is None:
        return "Trained from Python; the settings of the objective are in the table above."
    commands = code_block(f'pip install "git+{REPOSITORY}"\n{provenance.command}', "bash")
    return (
        f"{commands}\n\n[`{RECIPE_FILE}`]({RECIPE_FILE}) is the recipe as it was run, with the values of flags. Of "
        "local paths it has the last part only; secrets and the settings of the upload are left out."
    )


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages on which a run depends."""
    found = {"Python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _cell(fact: Fact) -> str:
    return code(fact.value) + ("" if fact.revision is None else f" at revision {code(fact.revision)}")
