"""The two parts of a language model that the fused losses need: its final hidden states and its LM head.

The model is causal, or an encoder-decoder, whose final hidden states are the decoder's.
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

# Keys of a model's forward that its backbone shares.
BACKBONE_INPUTS = ("input_ids", "attention_mask", "position_ids", "decoder_input_ids")
_PROBE_LENGTH = 4


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Keep `model` in eval mode, without dropout, within the context."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def lm_head(model: Any) -> LMHead:
    """Return the LM head of `model`, a language model or a PEFT model around one.

    Raises:
        ValueError: If the head carries an adapter, which a matrix product with its weight would ignore.
    """
    layer = model.get_output_embeddings()
    if layer is None or not hasattr(layer, "weight"):
        raise ValueError(f"`model` is a {type(model).__name__}, which has no LM head; give a language model.")
    layer = _trained_copy(layer)
    if hasattr(layer, "base_layer"):
        raise ValueError(
            "`lm_head` carries a PEFT adapter, which the fused loss would not train; take 'lm_head' out of "
            "`lora_target_modules`, or list it under `lora_modules_to_save` to train it whole."
        )
    return head_of(layer, model)


def head_of(layer: Any, model: Any) -> LMHead:
    """Return `layer` as an LM head of `model`, which may scale and bound the logits further.

    Args:
        layer (`torch.nn.Linear`):
            Projects hidden states to logits.
        model (`PreTrainedModel` or `PeftModel`):
            The model whose hidden states these are.
    """
    config = model.config.get_text_config()
    return LMHead(
        layer.weight,
        getattr(layer, "bias", None),
        _logit_scale(config),
        getattr(config, "final_logit_softcapping", None),
    )


def compiler(options: Mapping[str, Any] | None) -> Callable[[Any], AbstractContextManager[None]]:
    """Return a context manager within which the backbone of a model, always the same one, runs compiled.

    Outside of it the backbone runs uncompiled, so that generation, whose shapes change with every token, compiles
    nothing.

    Args:
        options (`Mapping`, *optional*):
            Arguments of [`torch.compile`]; `None` compiles nothing.
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
            # DDP's own optimiser of graphs cannot split those that hold gradient checkpoints.
            with torch._dynamo.config.patch(optimize_ddp=False):
                yield
        finally:
            for part, _ in compiled:
                part._compiled_call_impl = None

    return compiling


def _backbone(model: Any) -> list[nn.Module]:
    """Return the modules that turn tokens into final hidden states."""
    lm = _without_adapter(model)
    return [lm.get_encoder(), lm.get_decoder()] if lm.config.is_encoder_decoder else [lm.base_model]


def _without_adapter(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def final_hidden_states(model: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
    """Return the hidden states `[B, T, H]` that enter the LM head of `model`; T counts `decoder_input_ids`, if any."""
    lm, read = _without_adapter(model), {key: inputs[key] for key in BACKBONE_INPUTS if key in inputs}
    if lm.config.is_encoder_decoder:
        return _decoder_hidden_states(lm, **read)
    hidden: torch.Tensor = lm.base_model(**read, use_cache=False).last_hidden_state
    return hidden


def hidden_states_and_router_loss(model: Any, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the final hidden states and the load-balancing loss, unweighted, of a mixture-of-experts model.

    The loss is a 0-dim tensor, and that of Mixtral, which all such models of transformers share. Padding is left out.
    """
    lm, config = _without_adapter(model), model.config.get_text_config()
    read = {key: inputs[key] for key in BACKBONE_INPUTS if key in inputs}
    output = lm.base_model(**read, use_cache=False, output_router_logits=True)
    loss = load_balancing_loss_func(
        output.router_logits, config.num_experts, config.num_experts_per_tok, read.get("attention_mask")
    )
    return output.last_hidden_state, torch.as_tensor(loss)


def _decoder_hidden_states(
    model: Any, input_ids: torch.Tensor, decoder_input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    read = model.get_encoder()(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    output = model.get_decoder()(
        input_ids=decoder_input_ids,
        encoder_hidden_states=read,
        encoder_attention_mask=attention_mask,
        use_cache=False,
    )
    hidden: torch.Tensor = output.last_hidden_state
    return hidden


@torch.no_grad()
def verify_head(model: Any, input_ids: torch.Tensor, *, role: str) -> None:
    """Check that backbone and head together give the logits that `model` itself gives.

    Architectures differ in what they do to logits (scales, caps, extra projections). Four tokens tell whether
    `final_hidden_states` and `lm_head` describe this one.

    Args:
        model (`PreTrainedModel`):
            Model whose parameters are all available.
        input_ids (`torch.Tensor` of shape `[B, T]`):
            Tokens of which the first few are used.
        role (`str`):
            `"student"` or `"teacher"`, for the message.

    Raises:
        ValueError: If the logits differ.
    """
    probe = {"input_ids": input_ids[:1, :_PROBE_LENGTH]}
    if model.config.is_encoder_decoder:
        probe["decoder_input_ids"] = probe["input_ids"]
    # Not `model(...)`: inside DeepSpeed's forward, the hooks of a nested call would end the outer one early. Nor
    # `model.forward(...)`: accelerate may have wrapped it in a lower precision.
    expected = type(model).forward(model, **probe, use_cache=False).logits
    hidden = final_hidden_states(model, probe)
    head = lm_head(model)
    with gathered(head.parameters()):
        found = head.whole().logits(hidden)
    tolerance = 1e-3 if expected.dtype == found.dtype == torch.float32 else 5e-2
    if not _close(found.float(), expected.float(), tolerance):
        raise ValueError(
            f"the {role} ({type(model).__name__}) turns hidden states into logits in a way that the fused loss does "
            "not reproduce; please report the architecture."
        )


@torch.no_grad()
def verify_packing(model: Any, input_ids: torch.Tensor, *, role: str) -> None:
    """Check that `model` keeps packed samples apart when it is told their positions.

    Args:
        model (`PreTrainedModel`):
            Model whose parameters are all available.
        input_ids (`torch.Tensor` of shape `[1, T]`):
            Tokens of which the first few are used.
        role (`str`):
            `"student"` or `"teacher"`, for the message.

    Raises:
        ValueError: If a sample sees its neighbour.
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
            "samples attend to one another; set attn_implementation='flash_attention_2', or packing=False."
        )


def _close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    """Compare up to a fraction of the largest value; values that are not finite count as close."""
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
