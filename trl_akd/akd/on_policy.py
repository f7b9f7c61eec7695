"""Replace the data's completions by text that the student (on-policy) or the teacher (SeqKD) writes meanwhile."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from transformers import GenerationConfig

from ..generation.decoding import collect_eos_token_ids, unwrapped_for_generation
from ..losses.reduction import IGNORE_INDEX


def is_on_policy(lmbda: float, *, seed: int, step: int, micro_batch: int) -> bool:
    """Toss the coin that decides whether a micro-batch is on-policy.

    It depends on the arguments alone, so that all ranks agree - generation under ZeRO-3 is a collective - and a
    resumed run tosses the same coins.

    Example:

    ```python
    >>> is_on_policy(1.0, seed=0, step=3, micro_batch=0), is_on_policy(0.0, seed=0, step=3, micro_batch=0)
    (True, False)

    ```
    """
    return random.Random(f"{seed}:{step}:{micro_batch}").random() < lmbda


def sampling_seed(seed: int, step: int, micro_batch: int, process: int) -> int:
    """Return the seed of the text of one micro-batch on one process, so that no two of them share their noise.

    Like the coin, it depends on the arguments alone: a resumed run samples the same text.

    Example:

    ```python
    >>> len({sampling_seed(0, 3, micro_batch, process) for micro_batch in range(2) for process in range(2)})
    4

    ```
    """
    return random.Random(f"{seed}:{step}:{micro_batch}:{process}:text").getrandbits(63)


def sampling_config(
    *, max_new_tokens: int, temperature: float, pad_token_id: int, eos_token_ids: list[int]
) -> GenerationConfig:
    """Return how completions are sampled: from the full distribution, with a KV cache."""
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        use_cache=True,
        pad_token_id=pad_token_id,
        eos_token_id=eos_token_ids[0] if len(eos_token_ids) == 1 else eos_token_ids,
    )


def sample_rows(
    engine: Any,
    batch: Mapping[str, torch.Tensor],
    accelerator: Accelerator,
    config: GenerationConfig,
    *,
    vocabulary_size: int,
    seed: int,
) -> list[dict[str, list[int]]]:
    """Let a model complete the prompts of a batch.

    Args:
        engine (`torch.nn.Module`):
            The model as `accelerator.prepare` returned it.
        batch (`Mapping`):
            `prompts` and `prompt_attention_mask`, int64 tensors `[B, P]`, left-padded.
        accelerator (`Accelerator`):
            The run's accelerator.
        config (`GenerationConfig`):
            How to sample.
        vocabulary_size (`int`):
            Only ids below are sampled; those above mean nothing to one of the models.
        seed (`int`):
            Seed of the sampling. The random state of the process is left as it was.

    Returns:
        `list[dict]`: Rows `{input_ids, labels}` whose labels cover the completion up to and including its first stop
        token. A completion that never stops keeps all its tokens.
    """
    author = accelerator.unwrap_model(engine)
    device = author.get_input_embeddings().weight.device
    foreign = list(range(vocabulary_size, author.config.get_text_config().vocab_size))
    config = GenerationConfig(**{**config.to_diff_dict(), "suppress_tokens": foreign or None})
    prompts, mask = batch["prompts"].to(device), batch["prompt_attention_mask"].to(device)
    with unwrapped_for_generation(engine, accelerator) as model, _seeded(seed, device):
        sequences = model.generate(input_ids=prompts, attention_mask=mask, generation_config=config)
    completions, stops = sequences[:, prompts.shape[1] :].tolist(), set(collect_eos_token_ids(config))
    return [
        _row(prompt[keep.bool()].tolist(), _until_stop(completion, stops))
        for prompt, keep, completion in zip(prompts, mask, completions, strict=True)
    ]


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from a seed of its own inside the context."""
    has_states = device.type not in ("cpu", "mps")  # torch.random cannot restore those of MPS
    with torch.random.fork_rng([device] if has_states else [], device_type=device.type if has_states else "cuda"):
        torch.manual_seed(seed)
        yield


def _row(prompt: list[int], completion: list[int]) -> dict[str, list[int]]:
    return {"input_ids": prompt + completion, "labels": [IGNORE_INDEX] * len(prompt) + completion}


def _until_stop(completion: list[int], stops: set[int]) -> list[int]:
    for position, token in enumerate(completion):
        if token in stops:
            return completion[: position + 1]
    return completion
