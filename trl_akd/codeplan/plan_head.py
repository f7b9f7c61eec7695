"""CodePLAN's second output layer, which writes plans while the LM head writes programs.

It begins as a copy of the LM head's weight, is never tied to the embeddings, and sits in the model as the submodule
`plan_head`, so that engines shard it, optimisers train it and checkpoints of a run hold it. On disk it has a file of
its own beside the model, which therefore loads anywhere as what it was: `save_pretrained` and `push_to_hub` of a
model with a plan head write that file too.

`codeplan_plan_head: separate` in `config.json` declares that file, so that its absence, as where a model was copied
without it, is an error. In an adapter's folder, which has no `config.json`, the entry stands in `auto_mapping` of
`adapter_config.json`, the one place where PEFT takes unknown keys.

The authors' released code trains such a head but decodes plans through the LM head; [`writing_plans`] does not.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, cached_file

from ..distributed import gathered
from ..generation import TextGenerator
from ..generation.protocol import GREEDY, Arrival, SamplingParams, StreamingGenerator, stream
from ..heads import lm_head

__all__ = [
    "PLAN_HEAD_FILE",
    "PlanHead",
    "PlanHeadGenerator",
    "add_plan_head",
    "adopt_plan_head",
    "check_plan_head_file",
    "declares_plan_head",
    "find_plan_head",
    "gathered_plan_head",
    "load_plan_head",
    "plan_head_of",
    "save_plan_head",
    "writing_plans",
]

PlanHead: TypeAlias = Literal["separate", "shared"]

PLAN_HEAD_FILE = "plan_head.safetensors"
_NAME = "plan_head"
_DECLARATION = "codeplan_plan_head"
_HUB_OPTIONS = ("repo_id", "commit_message", "create_pr", "private", "token")


def plan_head_of(model: Any) -> nn.Linear | None:
    """Return the plan head of `model`, a language model or a PEFT model around one, if it has one."""
    head: nn.Linear | None = getattr(_language_model(model), _NAME, None)
    return head


def add_plan_head(model: Any) -> nn.Linear:
    """Give `model` a plan head that writes as its LM head does, and that is trained on its own.

    Under ZeRO-3 all processes must call this together, before the engine is made.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            A language model. An adapter leaves the plan head alone: it is trained whole.

    Raises:
        ValueError: If the LM head carries an adapter.

    Example:

    ```python
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=8, n_layer=1, n_head=2))
    >>> head = add_plan_head(model)
    >>> torch.equal(head.weight, model.lm_head.weight), head.weight is model.lm_head.weight
    (True, False)

    ```
    """
    source = lm_head(model)
    with gathered(source.parameters()):
        rows, columns = source.weight.shape
        head = nn.Linear(columns, rows, bias=source.bias is not None, device="meta")
        head.weight = nn.Parameter(source.weight.detach().clone())
        if source.bias is not None:
            head.bias = nn.Parameter(source.bias.detach().clone())
    lm = _language_model(model)
    setattr(lm, _NAME, head)
    setattr(lm.config, _DECLARATION, "separate")
    own = {f"{_NAME}.{name}" for name, _ in head.named_parameters()}
    lm._keys_to_ignore_on_save = {*(lm._keys_to_ignore_on_save or ()), *own}
    _keep_when_saving(model)
    return head


def adopt_plan_head(model: Any) -> nn.Linear:
    """Have the plan head trained whole and saved that `model` had before an adapter was put around it.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            A model with a plan head.

    Raises:
        ValueError: If the adapter reaches into the plan head.
    """
    head = plan_head_of(model)
    if not isinstance(head, nn.Linear):
        raise ValueError(
            "the plan head carries a PEFT adapter, but it is trained whole; take it out of `target_modules` and "
            "`modules_to_save`, or set `exclude_modules=['plan_head']`."
        )
    _keep_when_saving(model)
    return head.requires_grad_(True)


def save_plan_head(model: Any, folder: str | Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write the plan head's file into the folder of a saved model, or remove an older one where there is no head.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            A model with a plan head.
        folder (`str` or `Path`):
            Where the model was saved.
        state_dict (`Mapping`, *optional*):
            The model's, gathered, where an engine shards the model.

    Raises:
        ValueError: If the plan head is sharded and not in `state_dict`.
    """
    head, path = plan_head_of(model), Path(folder) / PLAN_HEAD_FILE
    if head is None:
        path.unlink(missing_ok=True)
        return
    given = {key.rpartition(".")[2]: value for key, value in (state_dict or {}).items() if f"{_NAME}." in key}
    tensors = given or head.state_dict()
    if any(tensor.numel() == 0 for tensor in tensors.values()):
        raise ValueError(
            "the plan head is sharded by ZeRO-3, as is the model; save with `trainer.save_model`, or with "
            "`state_dict=accelerator.get_state_dict(engine)`."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous().cpu() for key, value in tensors.items()}, path)


def gathered_plan_head(model: Any) -> dict[str, torch.Tensor]:
    """Return the plan head's tensors as a state dict of the model holds them; under ZeRO-3 on all processes together.

    Empty where there is no plan head.
    """
    head = plan_head_of(model)
    if head is None:
        return {}
    with gathered(head.parameters()):
        return {f"{_NAME}.{name}": value.detach().cpu().clone() for name, value in head.named_parameters()}


def find_plan_head(name_or_path: str, revision: str | None = None) -> Path | None:
    """Return the plan head's file of a model in a folder or on the Hub, or `None` if it has none.

    An adapter that was saved without one has that of the model it is for.

    Raises:
        ValueError: If the model's configuration declares a plan head, but there is no file.
    """
    path = _find(name_or_path, PLAN_HEAD_FILE, revision)
    if path is not None:
        return path
    adapter = _read_config(name_or_path, ADAPTER_CONFIG_NAME, revision)
    if (adapter.get("auto_mapping") or {}).get(_DECLARATION) == "separate":
        raise _missing(name_or_path, ADAPTER_CONFIG_NAME)
    if _read_config(name_or_path, CONFIG_NAME, revision).get(_DECLARATION) == "separate":
        raise _missing(name_or_path, CONFIG_NAME)
    base = adapter.get("base_model_name_or_path")
    return find_plan_head(base, adapter.get("revision")) if base else None


def declares_plan_head(model: Any) -> bool:
    """Tell whether the configuration of `model`, in memory, says that it was trained with a plan head."""
    return getattr(model.config, _DECLARATION, None) == "separate"


def check_plan_head_file(name_or_path: str, plan_head: PlanHead, revision: str | None = None) -> Path | None:
    """Return the plan head's file of a model that was trained with this setting of `plan_head`.

    Raises:
        ValueError: If there is a file although the head is shared, or none although it is not.
    """
    path = find_plan_head(name_or_path, revision)
    if plan_head == "separate" and path is None:
        raise ValueError(
            f"`plan_head` is 'separate', but {name_or_path!r} has no {PLAN_HEAD_FILE}: it was trained with "
            "plan_head='shared', or not by CodePLAN; set plan_head='shared', or give another checkpoint."
        )
    if plan_head == "shared" and path is not None:
        raise ValueError(
            f"`plan_head` is 'shared', but {name_or_path!r} holds a {PLAN_HEAD_FILE}, which would be left out; set "
            "plan_head='separate', or remove the file."
        )
    return path


def load_plan_head(model: Any, name_or_path: str, revision: str | None = None) -> None:
    """Give `model` the plan head that was saved beside it, in place of its own if it has one.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The model, loaded. Under ZeRO-3, before the engine is made.
        name_or_path (`str`):
            Folder, or name on the Hub, that [`save_plan_head`] or `CodePLANTrainer` wrote to.
        revision (`str`, *optional*):
            Revision on the Hub.

    Raises:
        ValueError: If there is no plan head, one of another shape, or a damaged file.
    """
    path = check_plan_head_file(name_or_path, "separate", revision)
    try:
        tensors = load_file(str(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file ({error}); copy or download it again.") from error
    head = add_plan_head(model) if plan_head_of(model) is None else adopt_plan_head(model)
    shapes = {key: list(value.shape) for key, value in tensors.items()}
    expected = {key: list(value.shape) for key, value in head.named_parameters()}
    if shapes != expected:
        raise ValueError(
            f"the plan head in {name_or_path!r} has the tensors {shapes}, but the model's LM head has {expected}; "
            "load the model that was saved beside it."
        )
    head.load_state_dict(tensors)


@contextmanager
def writing_plans(model: Any) -> Iterator[None]:
    """Put the plan head in the LM head's place inside the context, for `generate` and for `forward` alike.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            A model with a plan head, outside of its engine (`accelerator.unwrap_model`). Scales and bounds that the
            model puts on logits apply to the plan head's too.

    Raises:
        ValueError: If the model has no plan head.

    Example:

    ```python
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=8, n_layer=1, n_head=2))
    >>> head = add_plan_head(model)
    >>> with writing_plans(model):
    ...     model.get_output_embeddings() is head
    True
    >>> model.get_output_embeddings() is head
    False

    ```
    """
    head = plan_head_of(model)
    if head is None:
        raise ValueError(
            f"the model ({type(model).__name__}) has no plan head to write plans with; load it with `load_plan_head`, "
            "or write without `writing_plans` if it was trained with plan_head='shared'."
        )
    lm = _language_model(model)
    usual = lm.get_output_embeddings()
    lm.set_output_embeddings(head)
    try:
        yield
    finally:
        lm.set_output_embeddings(usual)


class PlanHeadGenerator(StreamingGenerator):
    """A text generator that writes through the plan head of its model.

    Args:
        generator (`TextGenerator`):
            Generates with `model` in this process, such as `TransformersGenerator`.
        model (`PreTrainedModel` or `PeftModel`):
            A model with a plan head.
    """

    def __init__(self, generator: TextGenerator, model: Any) -> None:
        self._generator = generator
        self._model = model

    def stream(self, prompts: list[str], sampling: SamplingParams = GREEDY) -> Iterator[Arrival]:
        """Yield completions as they come; between two yields the plan head stays in the LM head's place."""
        with writing_plans(self._model):
            yield from stream(self._generator, prompts, sampling)


def _language_model(model: Any) -> Any:
    """Return the model inside an adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _keep_when_saving(model: Any) -> None:
    """Let `save_pretrained` of a model with a plan head write it too, and that of what an adapter is merged into."""
    for each in (_language_model(model), model):
        each.save_pretrained = partial(_save_pretrained, each)


def _save_pretrained(
    model: Any,
    save_directory: str | Path,
    *,
    is_main_process: bool = True,
    state_dict: dict[str, torch.Tensor] | None = None,
    push_to_hub: bool = False,
    **options: Any,
) -> None:
    """Save as the model itself does, with the plan head's file beside, which its own push would not see."""
    if is_main_process:  # first, as what comes next takes the plan head out of `state_dict`
        save_plan_head(model, save_directory, state_dict)
    hub = {name: options.pop(name) for name in _HUB_OPTIONS if name in options and push_to_hub}
    type(model).save_pretrained(
        model, save_directory, is_main_process=is_main_process, state_dict=state_dict, **options
    )
    if is_main_process:
        _declare_in_adapter(_language_model(model), save_directory)
    if push_to_hub and is_main_process:
        model.push_to_hub(hub.pop("repo_id", Path(save_directory).name), **hub)


def _declare_in_adapter(base: Any, folder: str | Path) -> None:
    """Write the declaration into the adapter's configuration, if the folder is an adapter's."""
    path = Path(folder) / ADAPTER_CONFIG_NAME
    if not path.is_file():
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    # The first two are what PEFT writes there, and reads.
    config["auto_mapping"] = {
        "base_model_class": type(base).__name__,
        "parent_library": type(base).__module__,
        _DECLARATION: "separate",
    }
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def _read_config(name_or_path: str, file: str, revision: str | None) -> dict[str, Any]:
    path = _find(name_or_path, file, revision)
    try:
        return {} if path is None else dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); copy or download it again.") from error


def _missing(name_or_path: str, file: str) -> ValueError:
    return ValueError(
        f"{name_or_path!r} was trained with a plan head ({_DECLARATION!r} in its {file}), but its {PLAN_HEAD_FILE} is "
        "not there, so plans would come from the LM head; copy that file to the model's folder or, if the model is on "
        "the Hub, connect once to download it. To write plans through the LM head all the same, delete the entry."
    )


def _find(name_or_path: str, file: str, revision: str | None) -> Path | None:
    """Return a file of a model in a folder or on the Hub, or `None` if it has none."""
    if Path(name_or_path).is_dir():
        path = Path(name_or_path) / file
        return path if path.is_file() else None
    try:
        cached = cached_file(
            name_or_path,
            file,
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except OSError:  # no such model any more, or none with that revision
        return None
    return None if cached is None else Path(cached)
