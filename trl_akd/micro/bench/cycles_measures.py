"""Measures of a student in the experiment on IterKD, by running its programs."""

from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from ...execution import CodeExecutor
from ...generation import TransformersGenerator
from ..tasks import Task
from .cycles_world import MAX_NEW_TOKENS, PASSED, CyclesWorld, outcomes

__all__ = ["CYCLES_MEASURES", "measure_student"]

CYCLES_MEASURES = ("pass@1", "greedy", "greedy_rare", "greedy_common")
_GENERATION_BATCH = 512


def measure_student(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    world: CyclesWorld,
    tasks: Sequence[Task],
    executor: CodeExecutor,
    *,
    num_samples: int = 10,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the measures of a student on held-out tasks.

    - `pass@1`: of samples at temperature 1.
    - `greedy`: pass@1 of the most probable token at each position.
    - `greedy_rare`, `greedy_common`: the same on tasks with and without an operation that is rare in pre-training, if
      there are any.
    - `errors`: shares of the samples by error class; see [`error_class`].

    Args:
        model (`LlamaForCausalLM`):
            The student.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        world (`CyclesWorld`):
            The world.
        tasks (`Sequence[Task]`):
            Held-out tasks.
        executor (`CodeExecutor`):
            Sandbox in which programs run.
        num_samples (`int`, *optional*, defaults to `10`):
            Number of samples per task.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the samples.
    """
    generator = TransformersGenerator(model, tokenizer, batch_size=_GENERATION_BATCH)
    prompts = [task.prompt for task in tasks]
    sampled = generator.generate(prompts, n=num_samples, temperature=1.0, max_new_tokens=MAX_NEW_TOKENS, seed=seed)
    greedy = generator.generate(prompts, max_new_tokens=MAX_NEW_TOKENS)
    programs = [(task, sample.text) for task, several in zip(tasks, sampled, strict=True) for sample in several]
    programs += [(task, single.text) for task, [single] in zip(tasks, greedy, strict=True)]
    found = outcomes(programs, executor)
    samples, passes = found[: -len(tasks)], [outcome == PASSED for outcome in found[-len(tasks) :]]
    is_rare = [bool(world.rare.intersection(task.operations)) for task in tasks]
    parts = {
        "greedy_rare": [passed for passed, rare in zip(passes, is_rare, strict=True) if rare],
        "greedy_common": [passed for passed, rare in zip(passes, is_rare, strict=True) if not rare],
    }
    errors = Counter(outcome for outcome in samples if outcome != PASSED)
    return {
        "pass@1": samples.count(PASSED) / len(samples),
        "greedy": fmean(passes),
        **{name: fmean(values) for name, values in parts.items() if values},
        "errors": {name: count / len(samples) for name, count in sorted(errors.items())},
    }
