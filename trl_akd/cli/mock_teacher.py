"""Mock vLLM server that scores prompts with a small model, for a served teacher in a dry run."""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from .mock_server import run_mock_server

__all__ = ["run_mock_teacher", "score"]


@contextmanager
def run_mock_teacher(folder: str | Path) -> Iterator[str]:
    """Serve the model in a folder on a free port, and yield the server's address."""
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    with run_mock_server(lambda body: score(model, tokenizer, body)) as url:
        yield url


def score(model: Any, tokenizer: Any, body: dict[str, Any]) -> dict[str, Any]:
    """Return the response of `vllm serve` to a request to `/v1/completions` with `prompt_logprobs`.

    As in vLLM, the log-probabilities of each token of the prompt but the first are those of the token itself and of
    the `prompt_logprobs` most probable ones, from logits in float32 at temperature 1.
    """
    prompt = body["prompt"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt], device=model.device)).logits[0].float().cpu()
    log_probs = logits.log_softmax(-1)
    top = log_probs.topk(body["prompt_logprobs"])
    positions: list[dict[str, Any] | None] = [None]
    for place, token in enumerate(prompt[1:]):
        own = log_probs[place, token]
        rank = int((log_probs[place] >= own).sum())
        entries = {str(token): _entry(tokenizer, token, float(own), rank)}
        pairs = zip(top.indices[place].tolist(), top.values[place].tolist(), strict=True)
        entries |= {
            str(other): _entry(tokenizer, other, value, number) for number, (other, value) in enumerate(pairs, start=1)
        }
        positions.append(entries)
    written = int(logits[-1].argmax())
    choice = {
        "index": 0,
        "text": tokenizer.decode([written]),
        "logprobs": None,
        "finish_reason": "length",
        "stop_reason": None,
        "token_ids": [written] if body.get("return_token_ids") else None,
        "prompt_logprobs": positions,
        "prompt_token_ids": prompt if body.get("return_token_ids") else None,
    }
    return {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": body["model"],
        "choices": [choice],
        "usage": {"prompt_tokens": len(prompt), "total_tokens": len(prompt) + 1, "completion_tokens": 1},
    }


def _entry(tokenizer: Any, token: int, log_prob: float, rank: int) -> dict[str, Any]:
    return {"logprob": log_prob, "rank": rank, "decoded_token": tokenizer.decode([token])}
