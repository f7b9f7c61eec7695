"""Final hidden states and LM head of a language model, the two parts that the fused losses need.

The model is causal, or an encoder-decoder, whose final hidden states are those of the decoder.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from .distributed import gathered
from .losses.lm_head import LMHead

# Arguments that a model's forward passes to its backbone.
BACKBONE_INPUTS = ("input_ids", "attention_mask", "position_ids", "decoder_input_ids")
_PROBE_LENGTH = 4


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Set a model to eval mode inside the context."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def lm_head(model: Any) -> LMHead:
    """Return the LM head of a language model or PEFT model.

    Raises:
        ValueError: If the LM head has an adapter, which a matrix product with its weight would ignore.
    """
    layer = model.get_output_embeddings()
    if layer is None or not hasattr(layer, "weight"):
        raise ValueError(f"`model` is a {type(model).__name__}, which has no LM head; give a language model.")
    layer = _trained_copy(layer)
    if hasattr(layer, "base_layer"):
        raise ValueError(
            "`lm_head` has a PEFT adapter, which the fused loss would not train; remove 'lm_head' from "
            "`lora_target_modules`, or add it to `lora_modules_to_save` to train all of its weights."
        )
    return head_of(layer, model)


def head_of(layer: Any, model: Any) -> LMHead:
    """Return a linear layer as an LM head, with the scale and cap of a model's logits."""
    config = model.config.get_text_config()
    return LMHead(
        layer.weight,
        getattr(layer, "bias", None),
        _logit_scale(config),
        getattr(config, "final_logit_softcapping", None),
    )


def compiler(options: Mapping[str, Any] | None) -> Callable[[Any], AbstractContextManager[None]]:
    """Return a context manager inside which the backbone of a model is compiled by [`torch.compile`] with `options`.

    It is for one model only, and has no effect if `options` is `None`. Outside the context the backbone runs
    uncompiled, so that generation, whose shapes change with every token, causes no recompilation.
    """
    if options is None:
        return nullcontext
    compiled: list[tuple[nn.Module, Any]] = []

    @contextmanager
    def compiling(model: Any) -> Iterator[None]:
        if not compiled:
            compiled.extend((part, torch.compile(part._call_impl, **options)) for part in _backbone(model))
        for part, call in compiled:
            part._compiled_call_impl = call
        try:
            # DDP's graph optimizer cannot split graphs that contain gradient checkpoints.
            with torch._dynamo.config.patch(optimize_ddp=False):
                yield
        finally:
            for part, _ in compiled:
                part._compiled_call_impl = None

    return compiling


def _backbone(model: Any) -> list[nn.Module]:
    """Return the modules that compute the final hidden states."""
    lm = without_adapter(model)
    return [lm.get_encoder(), lm.get_decoder()] if lm.config.is_encoder_decoder else [lm.base_model]


def without_adapter(model: Any) -> Any:
    """Return the base model of an adapter, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def final_hidden_states(model: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
    """Return the hidden states `[B, T, H]` that enter the LM head, where T is the length of the decoder's input."""
    lm, known = without_adapter(model), {key: inputs[key] for key in BACKBONE_INPUTS if key in inputs}
    if lm.config.is_encoder_decoder:
        return _decoder_hidden_states(lm, **known)
    hidden: torch.Tensor = lm.base_model(**known, use_cache=False).last_hidden_state
    return hidden


def hidden_states_and_router_loss(model: Any, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the final hidden states and the unweighted load-balancing loss of a mixture-of-experts model.

    The loss is a 0-dim tensor. It is Mixtral's, as in all such models of transformers, and excludes padding.
    """
    lm, config = without_adapter(model), model.config.get_text_config()
    known = {key: inputs[key] for key in BACKBONE_INPUTS if key in inputs}
    output = lm.base_model(**known, use_cache=False, output_router_logits=True)
    loss = load_balancing_loss_func(
        output.router_logits, config.num_experts, config.num_experts_per_tok, known.get("attention_mask")
    )
    return output.last_hidden_state, torch.as_tensor(loss)


def _decoder_hidden_states(
    model: Any, input_ids: torch.Tensor, decoder_input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    encoded = model.get_encoder()(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    output = model.get_decoder()(
        input_ids=decoder_input_ids,
        encoder_hidden_states=encoded,
        encoder_attention_mask=attention_mask,
        use_cache=False,
    )
    hidden: torch.Tensor = output.last_hidden_state
    return hidden


@torch.no_grad()
def verify_head(model: Any, input_ids: torch.Tensor, *, role: str) -> None:
    """Check on four tokens that `final_hidden_states` and `lm_head` reproduce the logits of a model.

    Architectures may scale, cap or project logits further. The model's parameters must be gathered.

    Raises:
        ValueError: If the logits differ.
    """
    probe = {"input_ids": input_ids[:1, :_PROBE_LENGTH]}
    if model.config.is_encoder_decoder:
        probe["decoder_input_ids"] = probe["input_ids"]
    # Not `model(...)`: inside DeepSpeed's forward, the hooks of a nested call would end the outer one early. Not
    # `model.forward(...)` either: accelerate may have wrapped it in a lower precision.
    expected = type(model).forward(model, **probe, use_cache=False).logits
    hidden = final_hidden_states(model, probe)
    head = lm_head(model)
    with gathered(head.parameters()):
        found = head.whole().logits(hidden)
    tolerance = 1e-3 if expected.dtype == found.dtype == torch.float32 else 5e-2
    if not _close(found.float(), expected.float(), tolerance):
        raise ValueError(
            f"the {role} ({type(model).__name__}) computes logits from hidden states in a way that the fused loss "
            "does not reproduce; please report the architecture."
        )


@torch.no_grad()
def verify_packing(model: Any, input_ids: torch.Tensor, *, role: str) -> None:
    """Check that packed samples with `position_ids` do not attend to each other. Parameters must be gathered.

    Raises:
        ValueError: If a sample attends to another.
    """
    sample = input_ids[:1, :_PROBE_LENGTH]
    positions = torch.arange(sample.shape[1], device=sample.device)[None]
    packed = {"input_ids": sample.repeat(1, 2), "position_ids": positions.repeat(1, 2)}
    together = final_hidden_states(model, packed)[:, sample.shape[1] :].float()
    alone = final_hidden_states(model, {"input_ids": sample, "position_ids": positions}).float()
    if not _close(together, alone, 5e-2):
        attention = getattr(model.config, "_attn_implementation", None)
        raise ValueError(
            f"`packing` is on, but the {role} ({type(model).__name__}, attn_implementation={attention!r}) lets packed "
            "samples attend to each other; set attn_implementation='flash_attention_2', or packing=False."
        )


def _close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    """Return whether tensors differ by at most a fraction of the largest value, or the largest value is not finite."""
    largest = expected.abs().max()
    return not bool(torch.isfinite(largest)) or bool((found - expected).abs().max() <= tolerance * largest)


def _trained_copy(layer: Any) -> Any:
    if not hasattr(layer, "modules_to_save"):
        return layer
    return layer.original_module if layer.disable_adapters else layer.modules_to_save[layer.active_adapters[0]]


def _logit_scale(config: Any) -> float:
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    if getattr(config, "scale_decoder_outputs", False):
        return 1.0 / math.sqrt(config.d_model)  # T5 scales the hidden states, which is the same without a bias
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return 1.0
    return float(scaling) if config.model_type == "hyperclovax" else 1.0 / float(scaling)
