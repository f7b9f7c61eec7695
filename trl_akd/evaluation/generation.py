"""Let a model write the samples that a benchmark asks for, those alone that are not on disk yet."""

from collections.abc import Sequence
from itertools import groupby

from tqdm.auto import tqdm

from ..generation import Completion, TextGenerator
from ..generation.protocol import derive_seed, stream, too_long_prompts
from .problems import Problem
from .prompts import Prompting
from .samples import Sample, Samples

__all__ = ["give_up_on_long", "write_samples"]


def write_samples(
    generator: TextGenerator,
    problems: Sequence[Problem],
    samples: Samples,
    prompting: Prompting,
    *,
    num_samples: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    max_new_tokens: int = 512,
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = True,
) -> None:
    """Generate until every problem has its samples.

    Problems go to the generator in batches of like length, the longest first. Completions are stored as they come, so
    an interruption costs what is under way. A problem's samples depend on `seed` and on how many it has already, so
    that going on never repeats one.

    Args:
        generator (`TextGenerator`):
            The model.
        problems (`Sequence[Problem]`):
            What to write programs for.
        samples (`Samples`):
            Where samples are, and go.
        prompting (`Prompting`):
            Makes prompts of problems, and programs of completions.
        num_samples (`int`, *optional*, defaults to `1`):
            Samples a problem.
        temperature (`float`), top_p (`float`), max_new_tokens (`int`):
            As in `TextGenerator.generate`.
        seed (`int`, *optional*, defaults to `0`):
            Seed of sampling.
        batch_size (`int`, *optional*, defaults to `16`):
            Samples a batch, over all processes.
        progress (`bool`, *optional*, defaults to `True`):
            Show a progress bar.

    Raises:
        ValueError: If the generator refuses a prompt; the message names the problems.
        GenerationError: If its backend fails. What it had finished is stored.
    """

    def lacking(problem: Problem) -> int:
        return max(0, num_samples - len(samples[problem.task_id]))

    def kind(problem: Problem) -> tuple[int, tuple[str, ...]]:
        return lacking(problem), prompting.stop(problem)

    todo = sorted(
        filter(lacking, problems), key=lambda problem: (kind(problem), len(prompting.ask(problem))), reverse=True
    )
    with tqdm(
        total=sum(map(lacking, problems)), desc="Generating", unit="sample", disable=not (todo and progress)
    ) as bar:
        for (n, stops), alike in groupby(todo, key=kind):
            for batch in _batches(list(alike), max(1, batch_size // n)):
                for index, completions in stream(
                    generator,
                    [prompting.ask(problem) for problem in batch],
                    problems=[problem.task_id for problem in batch],
                    n=n,
                    temperature=temperature,
                    top_p=top_p,
                    max_new_tokens=max_new_tokens,
                    stop=stops,
                    seed=derive_seed(seed, num_samples - n),
                ):
                    _store(batch[index], completions, samples, prompting)
                    bar.update(len(completions))


def give_up_on_long(
    generator: TextGenerator,
    problems: Sequence[Problem],
    samples: Samples,
    prompting: Prompting,
    *,
    num_samples: int,
    max_new_tokens: int,
    fails: bool,
) -> None:
    """Find the problems whose prompts exceed the model's positions, before anything is generated.

    Generators that do not know the model's positions find none.

    Args:
        fails (`bool`):
            Store samples without a completion for them, which count against the model, instead of raising.

    Raises:
        ValueError: If there are any and `fails` is not set.
    """
    long = too_long_prompts(generator, [prompting.ask(problem) for problem in problems], max_new_tokens)
    if long and not fails:
        raise ValueError(
            f"{len(long)} of {len(problems)} prompts, such as that of {problems[long[0]].task_id!r}, exceed the "
            f"positions of the model together with max_new_tokens={max_new_tokens}; lower it, or set "
            "long_prompts to 'fail' to count these problems as not solved."
        )
    for problem in (problems[index] for index in long):
        for number in range(len(samples[problem.task_id]), num_samples):
            program = prompting.program(problem, "")
            samples.append([Sample(problem.task_id, program, "", number, "length", num_tokens=0)])


def _store(problem: Problem, completions: Sequence[Completion], samples: Samples, prompting: Prompting) -> None:
    there = len(samples[problem.task_id])
    samples.append(
        [
            Sample(
                problem.task_id,
                prompting.program(problem, completion.text),
                completion.text,
                number,
                completion.finish_reason,
                completion.mean_logprob,
                completion.num_tokens,
            )
            for number, completion in enumerate(completions, start=there)
        ]
    )


def _batches(problems: list[Problem], size: int) -> list[list[Problem]]:
    return [problems[start : start + size] for start in range(0, len(problems), size)]
