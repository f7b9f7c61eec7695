"""Generate on each process, between two training steps, and write the results of each process to a file.

Run by `test_distributed.py`: `python -m tests.generation.worker FOLDER`.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from transformers import AutoModelForCausalLM

from tests import tiny
from trl_akd.distributed import raise_on_all
from trl_akd.generation import TransformersGenerator
from trl_akd.generation.json_client import RefusedRequest

PROMPTS = ["def add(a, b):\n", "x", "# size\nprint(", "for i in range(10):\n    total += i * i\n", "x"]
SAMPLED: dict[str, Any] = {"n": 2, "temperature": 1.0, "top_p": 0.95, "max_new_tokens": 10, "stop": ["e"], "seed": 3}


def cases(generator: TransformersGenerator) -> dict[str, Any]:
    """Cases with more sequences than processes, fewer, and none."""
    outputs = {
        "many": generator.generate(PROMPTS, **SAMPLED),
        "greedy": generator.generate(PROMPTS[:3], max_new_tokens=10),
        "one": generator.generate(PROMPTS[:1], max_new_tokens=10),
        "none": generator.generate([]),
    }
    return {
        name: [[asdict(completion) for completion in completions] for completions in found]
        for name, found in outputs.items()
    }


def main() -> None:
    PartialState(cpu=True)  # else DeepSpeed on the CPU would make each process the only one
    accelerator = Accelerator()
    if accelerator.state.deepspeed_plugin is not None:
        accelerator.state.deepspeed_plugin.deepspeed_config.update(
            train_micro_batch_size_per_gpu=1, train_batch_size=2, gradient_accumulation_steps=1
        )
    model = AutoModelForCausalLM.from_pretrained(Path(sys.argv[1]) / "model").train()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.0))
    losses = []

    def train() -> None:
        rows = torch.arange(16)[None]
        loss = model(input_ids=rows, labels=rows).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())

    train()
    generator = TransformersGenerator(model, tiny.tokenizer(), batch_size=2, accelerator=accelerator)
    record: dict[str, Any] = {"world_size": accelerator.num_processes, "cases": cases(generator)}
    record["training"] = accelerator.unwrap_model(model).training
    parameters = list(accelerator.unwrap_model(model).parameters())
    record["sharded"] = all(hasattr(item, "ds_tensor") and item.numel() == 0 for item in parameters)
    train()
    record["losses"] = losses
    record["errors"] = [error_of(partial(refuse_on, accelerator.process_index, rank)) for rank in (None, 1, 0)]
    (Path(sys.argv[1]) / f"rank{accelerator.process_index}.json").write_text(json.dumps(record))


def refuse_on(process: int, rank: int | None) -> str:
    if process == rank:
        raise RefusedRequest(f"refused on {rank}", 400, "no")
    return "accepted"


def error_of(make: Callable[[], str]) -> str:
    """Return the result of a function on all processes, or the class of the error with its message."""
    try:
        return raise_on_all(make)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
