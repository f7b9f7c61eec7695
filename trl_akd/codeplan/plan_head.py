"""CodePLAN's second output layer, which predicts plans while the LM head predicts programs.

It is initialized as a copy of the LM head, is never tied to the embeddings, and is the submodule `plan_head` of the
model, so engines shard it, optimizers train it and training checkpoints contain it. On disk it is a separate file
beside the model, which can still be loaded without this package. `save_pretrained` and `push_to_hub` of a model with a
plan head write that file as well.

`codeplan_plan_head: separate` in `config.json` declares the file, so that a missing file is an error, for example in a
copy of the model without it. The folder of an adapter has no `config.json`; there the entry is in `auto_mapping` of
`adapter_config.json`, the only place where PEFT accepts unknown keys.

The authors' released code trains such a head but generates plans with the LM head; [`writing_plans`] does not.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
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
from ..generation.loading import find_base_model, hub_arguments, path_in_repository
from ..generation.protocol import GREEDY, Arrival, SamplingParams, StreamingGenerator, stream
from ..generation.transformers_generator import TransformersGenerator
from ..heads import lm_head, without_adapter

__all__ = [
    "PLAN_HEAD_FILE",
    "PlanHead",
    "PlanHeadGenerator",
    "add_plan_head",
    "adopt_plan_head",
    "check_plan_head_file",
    "check_trained",
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
    """Return the plan head of a language model or a PEFT model, or `None`."""
    head: nn.Linear | None = getattr(without_adapter(model), _NAME, None)
    return head


def add_plan_head(model: Any) -> nn.Linear:
    """Add a plan head to a model, as a trainable copy of the LM head.

    Under ZeRO-3 all processes must call this function, before the engine is created.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            A language model. All weights of the plan head are trained, also with an adapter; call
            [`adopt_plan_head`] if the adapter is added later.

    Raises:
        ValueError: If the LM head has an adapter.

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
    lm = without_adapter(model)
    setattr(lm, _NAME, head)
    setattr(lm.config, _DECLARATION, "separate")
    keys = {f"{_NAME}.{name}" for name, _ in head.named_parameters()}
    lm._keys_to_ignore_on_save = {*(lm._keys_to_ignore_on_save or ()), *keys}
    return adopt_plan_head(model)


def adopt_plan_head(model: Any) -> nn.Linear:
    """Make an existing plan head trainable and saved after an adapter was added to the model.

    Beside frozen weights in half precision, it is converted to float32, as PEFT does with adapters: an update of 2e-5
    is smaller than the spacing of most weights in bfloat16. DeepSpeed keeps float32 copies of trained weights itself,
    so a head that ZeRO-3 shards is not converted.

    Raises:
        ValueError: If the adapter includes the plan head, or the LM head was resized after the plan head was added.

    Example:

    ```python
    >>> from peft import LoraConfig, get_peft_model
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=8, n_layer=1, n_head=2)).bfloat16()
    >>> _ = add_plan_head(model)
    >>> model = get_peft_model(model, LoraConfig(target_modules=["c_proj"], fan_in_fan_out=True))
    >>> head = adopt_plan_head(model)
    >>> head.weight.requires_grad, head.weight.dtype
    (True, torch.float32)

    ```
    """
    head = plan_head_of(model)
    _check_not_adapted(head)
    assert head is not None
    source = lm_head(model)
    with gathered([*source.parameters(), *head.parameters()]):
        if head.weight.shape != source.weight.shape:
            raise ValueError(
                f"the plan head has the shape {list(head.weight.shape)}, but the LM head {list(source.weight.shape)}: "
                "the embeddings were resized after `add_plan_head`; resize them before."
            )
    head.requires_grad_(True)
    _override_save_pretrained(model)
    return head.float() if _needs_float32(head, without_adapter(model)) else head


def check_trained(model: Any) -> None:
    """Raise a ValueError if the model is trained, but its plan head is frozen or has an adapter."""
    head = plan_head_of(model)
    if head is None or not torch.is_grad_enabled():
        return
    _check_not_adapted(head)
    if not head.weight.requires_grad and any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "the plan head is frozen, so it would be neither trained nor saved with the adapter; call "
            "`adopt_plan_head(model)` from trl_akd.codeplan.plan_head after adding the adapter."
        )


def _check_not_adapted(head: Any) -> None:
    if not isinstance(head, nn.Linear):
        raise ValueError(
            "the plan head has a PEFT adapter, but all of its weights are trained; remove it from `target_modules` "
            "and `modules_to_save`, or set `exclude_modules=['plan_head']`."
        )


def _needs_float32(head: nn.Linear, lm: Any) -> bool:
    is_frozen = any(not parameter.requires_grad for parameter in lm.base_model.parameters())
    is_sharded = any(hasattr(parameter, "ds_status") for parameter in lm.parameters())
    return is_frozen and not is_sharded and head.weight.dtype.itemsize < torch.float32.itemsize


def save_plan_head(model: Any, folder: str | Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write the plan head's file to the folder of a saved model, or remove an old file if there is no plan head.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            A model with a plan head.
        folder (`str` or `Path`):
            Folder of the saved model.
        state_dict (`Mapping`, *optional*):
            Gathered state dict of the model, required if the model is sharded.

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
    """Return the plan head's entries of the model's state dict, gathered under ZeRO-3, or an empty dict without one.

    Under ZeRO-3 all processes must call this function.
    """
    head = plan_head_of(model)
    if head is None:
        return {}
    with gathered(head.parameters()):
        return {f"{_NAME}.{name}": value.detach().cpu().clone() for name, value in head.named_parameters()}


def find_plan_head(name_or_path: str, revision: str | None = None, **source: Any) -> Path | None:
    """Return the plan head's file of a model in a folder or on the Hub, or `None`.

    For an adapter without a plan head, return the file of its base model.

    Args:
        name_or_path (`str`):
            Model or adapter: a folder, or a name on the Hub.
        revision (`str`, *optional*):
            Revision on the Hub.
        **source:
            Other arguments of `from_pretrained` that files are found by, such as `subfolder`.

    Raises:
        ValueError: If the model's configuration declares a plan head, but the file is missing, or if an adapter does
            not name its base model.
    """
    source = {"revision": revision, **source}
    path = _find_file(name_or_path, PLAN_HEAD_FILE, source)
    if path is not None:
        return path
    adapter = _read_config(name_or_path, ADAPTER_CONFIG_NAME, source)
    if (adapter.get("auto_mapping") or {}).get(_DECLARATION) == "separate":
        raise _missing(path_in_repository(name_or_path, source), ADAPTER_CONFIG_NAME)
    if _read_config(name_or_path, CONFIG_NAME, source).get(_DECLARATION) == "separate":
        raise _missing(path_in_repository(name_or_path, source), CONFIG_NAME)
    base = find_base_model(name_or_path, source) if adapter else None
    return None if base is None else find_plan_head(base[0], **base[1])


def declares_plan_head(model: Any) -> bool:
    """Return whether the configuration of a model declares a plan head."""
    return getattr(model.config, _DECLARATION, None) == "separate"


def check_plan_head_file(
    name_or_path: str, plan_head: PlanHead, revision: str | None = None, **source: Any
) -> Path | None:
    """Return the plan head's file of a model after comparing its presence with the setting `plan_head`.

    Raises:
        ValueError: If there is a file with `"shared"`, or none with `"separate"`.
    """
    path, name = find_plan_head(name_or_path, revision, **source), path_in_repository(name_or_path, source)
    if plan_head == "separate" and path is None:
        raise ValueError(
            f"`plan_head` is 'separate', but {name!r} has no {PLAN_HEAD_FILE}: it was trained with "
            "plan_head='shared', or not by CodePLAN; set plan_head='shared', or give another checkpoint."
        )
    if plan_head == "shared" and path is not None:
        raise ValueError(
            f"`plan_head` is 'shared', but {name!r} contains a {PLAN_HEAD_FILE}, which would not be used; set "
            "plan_head='separate', or remove the file."
        )
    return path


def load_plan_head(model: Any, name_or_path: str, revision: str | None = None, **source: Any) -> None:
    """Load the plan head that was saved beside a model, replacing the model's plan head if it has one.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The loaded model; under ZeRO-3, before the engine is created.
        name_or_path (`str`):
            Folder, or name on the Hub, to which [`save_plan_head`] or `CodePLANTrainer` wrote.
        revision (`str`, *optional*):
            Revision on the Hub.
        **source:
            Other arguments of `from_pretrained` that files are found by, such as `subfolder`.

    Raises:
        ValueError: If there is no plan head, its shape is different, or the file is damaged.
    """
    path = check_plan_head_file(name_or_path, "separate", revision, **source)
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
    """Use the plan head instead of the LM head inside the context, in `generate` and in `forward`.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            A model with a plan head, without its engine (`accelerator.unwrap_model`). The model's scaling and capping
            of logits applies to the plan head as well.

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
            f"the model ({type(model).__name__}) has no plan head; load it with `load_plan_head`, or generate without "
            "`writing_plans` if the model was trained with plan_head='shared'."
        )
    lm = without_adapter(model)
    original = lm.get_output_embeddings()
    cast = head.register_forward_pre_hook(lambda layer, inputs: (inputs[0].to(layer.weight.dtype),))
    lm.set_output_embeddings(head)
    try:
        yield
    finally:
        lm.set_output_embeddings(original)
        cast.remove()


class PlanHeadGenerator(StreamingGenerator):
    """Text generator that uses the plan head of its model.

    Args:
        generator (`TextGenerator`):
            Generator with `model` in this process, such as `TransformersGenerator`.
        model (`PreTrainedModel` or `PeftModel`):
            A model with a plan head.

    Raises:
        ValueError: If the generator is a `TransformersGenerator` with another model.
    """

    def __init__(self, generator: TextGenerator, model: Any) -> None:
        own = generator.model if isinstance(generator, TransformersGenerator) else model
        if without_adapter(own) is not without_adapter(model):
            raise ValueError(
                "`generator` has another model than `model`, so the plan head would not be used; create the generator "
                "with the same model."
            )
        self._generator = generator
        self._model = model

    def stream(self, prompts: list[str], sampling: SamplingParams = GREEDY) -> Iterator[Arrival]:
        """Yield completions as they arrive; the plan head stays in use between yields."""
        with writing_plans(self._model):
            yield from stream(self._generator, prompts, sampling)


def _override_save_pretrained(model: Any) -> None:
    """Let `save_pretrained` of a model and its adapter write the plan head as well."""
    for each in (without_adapter(model), model):
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
    """Save the model and the plan head's file, and push both."""
    folders = _folders(model, save_directory, options.get("selected_adapters"))
    if is_main_process:  # before the model, whose `save_pretrained` removes the plan head from `state_dict`
        for folder in folders:
            save_plan_head(model, folder, state_dict)
    hub = {name: options.pop(name) for name in _HUB_OPTIONS if name in options and push_to_hub}
    type(model).save_pretrained(
        model, save_directory, is_main_process=is_main_process, state_dict=state_dict, **options
    )
    if is_main_process:
        for folder in folders:
            _declare_in_adapter(without_adapter(model), folder)
    if push_to_hub and is_main_process:
        model.push_to_hub(hub.pop("repo_id", Path(save_directory).name), **hub)


def _folders(model: Any, folder: str | Path, selected_adapters: Sequence[str] | None) -> list[Path]:
    """Return the folder of a saved model, and those inside it to which PEFT writes adapters with names."""
    if not hasattr(model, "get_base_model"):
        return [Path(folder)]
    names = selected_adapters or list(model.peft_config)
    return [Path(folder), *(Path(folder) / name for name in names if name != "default")]


def _declare_in_adapter(base: Any, folder: Path) -> None:
    """Add the declaration to the adapter's configuration if the folder contains one."""
    path = folder / ADAPTER_CONFIG_NAME
    if not path.is_file():
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    # PEFT itself writes and reads the first two entries.
    config["auto_mapping"] = {
        "base_model_class": type(base).__name__,
        "parent_library": type(base).__module__,
        _DECLARATION: "separate",
    }
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def _read_config(name_or_path: str, file: str, source: Mapping[str, Any]) -> dict[str, Any]:
    path = _find_file(name_or_path, file, source)
    try:
        return {} if path is None else dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); copy or download it again.") from error


def _missing(name_or_path: str, file: str) -> ValueError:
    return ValueError(
        f"{name_or_path!r} was trained with a plan head ({_DECLARATION!r} in its {file}), but its {PLAN_HEAD_FILE} is "
        "missing, so plans would be generated by the LM head; copy that file to the model's folder or, if the model "
        "is on the Hub, download it while online. To generate plans by the LM head anyway, delete the entry."
    )


def _find_file(name_or_path: str, file: str, source: Mapping[str, Any]) -> Path | None:
    """Return a file of a model in a folder or on the Hub, or `None`."""
    if Path(name_or_path).is_dir():
        path = Path(path_in_repository(name_or_path, source), file)
        return path if path.is_file() else None
    try:
        cached = cached_file(
            name_or_path,
            file,
            **hub_arguments(source),
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except OSError:  # the model or the revision does not exist
        return None
    return None if cached is None else Path(cached)
