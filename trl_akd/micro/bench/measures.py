"""Measures of a student in the world: by running samples, and exactly."""

import re
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ...data.encoding import encode_completions, encode_prompts
from ...execution import CodeExecutor
from ...generation import TransformersGenerator
from ...heads import evaluating
from ...losses import divergences
from ...metrics.statistics import pass_at_k
from .students import word_probabilities
from .teacher import ExactTeacher
from .world import WORDS, BenchTask, World

__all__ = [
    "LOW",
    "LOW_TEMPERATURE",
    "MAX_NEW_TOKENS",
    "PASSED",
    "held_out_divergences",
    "measure",
    "outcomes",
    "words_of_first_token",
]

PASSED = "passed"
MAX_NEW_TOKENS = 32
LOW_TEMPERATURE = 0.7
LOW = f"_T{LOW_TEMPERATURE}"
"""Suffix of measures at the lower temperature."""

_GENERATION_BATCH, _DIVERGENCE_BATCH = 512, 64


def measure(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    world: World,
    tasks: Sequence[BenchTask],
    executor: CodeExecutor,
    *,
    num_samples: int = 20,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the measures of a student on held-out tasks; all but the errors are means over tasks.

    - `pass@1`, and `pass@10` if there are as many samples: of samples at temperature 1.
    - `coverage`: share of a task's correct programs whose word is that of a sample that passes.
    - `pass@1_T0.7`, `coverage_T0.7`: the same of samples at temperature 0.7.
    - `greedy`: pass@1 of the most probable token at each position.
    - `valid_mass`, `coverage_of_valid`: from the probabilities of the first token, exactly; see
      [`words_of_first_token`].
    - `forward_kl`, `reverse_kl`: from the exact teacher; see [`held_out_divergences`].
    - `errors`: shares of the samples by error class.

    Args:
        model (`LlamaForCausalLM`):
            The student.
        tokenizer (`PreTrainedTokenizerFast`):
            Tokenizer of the world.
        world (`World`):
            The world.
        tasks (`Sequence[BenchTask]`):
            Held-out tasks.
        executor (`CodeExecutor`):
            Sandbox in which programs run.
        num_samples (`int`, *optional*, defaults to `20`):
            Number of samples per task.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the samples.
    """
    generator = TransformersGenerator(model, tokenizer, batch_size=_GENERATION_BATCH)
    prompts = [task.prompt for task in tasks]
    completions = {
        temperature: generator.generate(
            prompts, n=num_samples, temperature=temperature, max_new_tokens=MAX_NEW_TOKENS, seed=seed
        )
        for temperature in (1.0, LOW_TEMPERATURE)
    }
    completions[0.0] = generator.generate(prompts, max_new_tokens=MAX_NEW_TOKENS)
    programs = [
        (task, completion.text)
        for several_tasks in completions.values()
        for task, several in zip(tasks, several_tasks, strict=True)
        for completion in several
    ]
    outcome_of = dict(zip(programs, outcomes(world, programs, executor), strict=True))
    passes = {
        temperature: [
            [completion.text for completion in several if outcome_of[task, completion.text] == PASSED]
            for task, several in zip(tasks, several_tasks, strict=True)
        ]
        for temperature, several_tasks in completions.items()
    }
    errors = Counter(
        outcome_of[task, completion.text]
        for task, several in zip(tasks, completions[1.0], strict=True)
        for completion in several
    )
    del errors[PASSED]
    scores = {
        f"pass@{k}": fmean(pass_at_k(num_samples, len(texts), k) for texts in passes[1.0])
        for k in (1, 10)
        if k <= num_samples
    }
    return {
        **scores,
        "coverage": _coverage(world, tasks, passes[1.0]),
        f"pass@1{LOW}": fmean(len(texts) / num_samples for texts in passes[LOW_TEMPERATURE]),
        f"coverage{LOW}": _coverage(world, tasks, passes[LOW_TEMPERATURE]),
        "greedy": fmean(map(len, passes[0.0])),
        **words_of_first_token(model, tokenizer, world, tasks, num_samples),
        **held_out_divergences(model, tokenizer, world, tasks),
        "errors": {name: count / (num_samples * len(tasks)) for name, count in sorted(errors.items())},
    }


def outcomes(world: World, programs: Sequence[tuple[BenchTask, str]], executor: CodeExecutor) -> list[str]:
    """Return `"passed"` or the name of the error class of each program, given as a task and its completion.

    Equal programs run once. Correct programs, and programs that differ from them only in calling an entry point that
    the library lacks, have known outcomes, and do not run.

    Raises:
        RuntimeError: If the sandbox could not run a program.
    """
    known = {program: _known_outcome(world, *program) for program in dict.fromkeys(programs)}
    unknown = [program for program, outcome in known.items() if outcome is None]
    results = executor.run([(task.prompt + completion, world.tests(task)) for task, completion in unknown])
    for program, result in zip(unknown, results, strict=True):
        if result.status == "infra_error":
            raise RuntimeError(f"The sandbox could not run a program: {result.message}")
        known[program] = PASSED if result.passed else result.error_type or result.status
    return [str(known[program]) for program in programs]


def words_of_first_token(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    world: World,
    tasks: Sequence[BenchTask],
    num_samples: int,
) -> dict[str, float]:
    """Return measures of the distribution of the first token, at which correct programs part.

    - `valid_mass`: probability of a valid word.
    - `coverage_of_valid`: expected share of the valid words among `num_samples` draws from the valid words alone,
      each with its probability given that it is valid.
    """
    probabilities = word_probabilities(model, tokenizer, tasks)
    valid = [[WORDS.index(word) for word in world.valid_words(task.context)] for task in tasks]
    chosen = probabilities.gather(1, torch.tensor(valid))
    mass = chosen.sum(1, keepdim=True)
    covered = 1 - (1 - chosen / mass) ** num_samples
    return {"valid_mass": float(mass.mean()), "coverage_of_valid": float(covered.mean())}


@torch.no_grad()
def held_out_divergences(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, world: World, tasks: Sequence[BenchTask]
) -> dict[str, float]:
    """Return `forward_kl` and `reverse_kl` from the exact teacher, in nats per target token.

    They are means over the tokens of a program, weighted over the correct programs of a task by their probabilities.
    """
    answers = [(task, world.answers(task)) for task in tasks]
    teacher = ExactTeacher(answers, tokenizer)
    prompts = encode_prompts(tokenizer, [task.prompt for task in tasks])
    rows: list[tuple[float, int, list[int]]] = []
    for prompt, (_, found) in zip(prompts, answers, strict=True):
        completions = encode_completions(tokenizer, [answer.completion for answer in found])
        rows += [
            (answer.probability / len(tasks), len(prompt), [*prompt, *completion])
            for answer, completion in zip(found, completions, strict=True)
        ]
    totals = dict.fromkeys(("forward_kl", "reverse_kl"), 0.0)
    for start in range(0, len(rows), _DIVERGENCE_BATCH):
        batch = rows[start : start + _DIVERGENCE_BATCH]
        input_ids = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(ids) for _, _, ids in batch], batch_first=True, padding_value=tokenizer.pad_token_id
        )
        with evaluating(model):
            logits = model(input_ids=input_ids).logits.double()  # padding is on the right of causal attention
        log_probs = teacher.log_probs(input_ids)
        for name in totals:
            values = divergences.get(name)(logits, log_probs)
            totals[name] += sum(
                weight * float(values[row, length - 1 : len(ids) - 1].mean())
                for row, (weight, length, ids) in enumerate(batch)
            )
    return totals


def _coverage(world: World, tasks: Sequence[BenchTask], passes: Sequence[Sequence[str]]) -> float:
    """Return the mean over tasks of the share of correct programs, by their words, found among passing samples."""
    return fmean(
        len({_called(task, text) for text in texts}.intersection(world.valid_words(task.context))) / world.num_valid
        for task, texts in zip(tasks, passes, strict=True)
    )


def _called(task: BenchTask, completion: str) -> str | None:
    """Return the entry point that a program calls first."""
    call = re.search(rf"{task.context.library}\.(\w+)\(", completion)
    return call[1] if call else None


def _known_outcome(world: World, task: BenchTask, completion: str) -> str | None:
    """Return the outcome of a program that need not run, `None` for any other."""
    word = _called(task, completion)
    if word not in WORDS or completion != task.completion(word):
        return None
    return PASSED if word in world.valid_words(task.context) else "AttributeError"
