"""Whether the weights in a folder are those of the student that shall have them, no more and no less."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["check_adapter_weights", "check_weights"]

_ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")


def check_weights(model: Any, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Raise a ValueError that names tensors that a model has and its saved weights lack, or the other way round.

    Tensors that the model saves once for several names, or never saves, may be missing.
    """
    saved_elsewhere = _tied(model) | set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    lacking = sorted(set(missing) - saved_elsewhere)
    unknown = sorted(unexpected)
    if lacking or unknown:
        differences = [
            f"{len(names)} tensors {verb}, such as {names[0]!r}"
            for names, verb in ((lacking, "of the student are missing"), (unknown, "are unknown to it"))
            if names
        ]
        raise ValueError(
            f"the saved student does not fit: {', and '.join(differences)}. It was saved from another model or "
            "adapter; give the settings of that run, or another output_dir."
        )


def check_adapter_weights(model: Any, folder: Path) -> None:
    """Raise a ValueError unless a folder holds an adapter just where the student is one, with the same tensors."""
    file = next((folder / name for name in _ADAPTER_FILES if (folder / name).is_file()), None)
    has_adapter = hasattr(model, "peft_config")
    if has_adapter != (file is not None) and folder.is_dir():
        saved, present = ("the whole model", "an adapter") if has_adapter else ("an adapter", "the whole model")
        raise ValueError(
            f"the student in {folder} was saved as {saved}, but {present} is trained now; give the PEFT settings of "
            "that run, or another output_dir."
        )
    if file is None or file.suffix != ".safetensors":
        return
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    expected = set(get_peft_model_state_dict(model, adapter_name=model.active_adapters[0]))
    with safe_open(file, "pt") as tensors:
        found = set(tensors.keys())
    check_weights(model, expected - found, found - expected)


def _tied(model: Any) -> set[str]:
    """Return all names of parameters that have several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name for several in names.values() if len(several) > 1 for name in several}
