"""Switch off the dropout that a model brings along."""

from typing import Any

from torch import nn


def disable_dropout(model: Any) -> None:
    """Set every dropout probability of `model` to zero, save that of LoRA adapters, which their recipe asks for.

    TRL's helper sets `nn.Dropout` alone; attention layers keep a probability as a plain number (0.1 in GPT-BigCode),
    and would go on dropping.

    Example:

    ```python
    >>> layer = nn.Sequential(nn.Dropout(0.1))
    >>> disable_dropout(layer)
    >>> layer[0].p
    0.0

    ```
    """
    for path, module in model.named_modules():
        if "lora_dropout" in path:
            continue
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
