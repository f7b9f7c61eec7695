"""Run samples against the tests of their problems."""

from collections.abc import Mapping, Sequence

from tqdm.auto import tqdm

from ..execution import CodeExecutor, ExecutionResult
from ..metrics.taxonomy import ErrorLabel, classify
from .problems import Problem
from .samples import Sample
from .verdicts import Verdict, VerdictFile

__all__ = ["judge", "label"]


def judge(
    problems: Sequence[Problem],
    samples: Mapping[str, Sequence[Sample]],
    executor: CodeExecutor,
    *,
    file: VerdictFile | None = None,
    fail_fast: bool = True,
    progress: bool = True,
) -> list[Verdict]:
    """Run every sample of every problem.

    Args:
        problems (`Sequence[Problem]`):
            Whose tests judge.
        samples (`Mapping[str, Sequence[Sample]]`):
            Samples by `task_id`.
        executor (`CodeExecutor`):
            Where programs run.
        file (`VerdictFile`, *optional*):
            Keeps verdicts as they come; programs that have one there do not run again.
        fail_fast (`bool`, *optional*, defaults to `True`):
            Leave out a program's inputs after the first that it fails.
        progress (`bool`, *optional*, defaults to `True`):
            Show a progress bar.

    Returns:
        `list[Verdict]`: In the order of the problems and of their samples.
    """
    asked = [(problem, sample) for problem in problems for sample in samples[problem.task_id]]
    verdicts: dict[int, Verdict] = {}
    to_run: list[int] = []
    for index, (problem, sample) in enumerate(asked):
        kept = None if file is None else file.find(problem, sample)
        if kept is None:
            to_run.append(index)
        else:
            verdicts[index] = Verdict(sample, kept, label(kept, problem, sample))
    pairs = ((asked[index][1].solution, asked[index][0].tests) for index in to_run)
    with tqdm(
        total=len(asked), initial=len(verdicts), desc="Running programs", unit="program", disable=not progress
    ) as bar:
        for number, result in executor.stream(pairs, fail_fast=fail_fast):
            problem, sample = asked[to_run[number]]
            verdict = Verdict(sample, result, label(result, problem, sample))
            verdicts[to_run[number]] = verdict
            if file is not None:
                file.add(problem, verdict)
            bar.update()
    return [verdicts[index] for index in range(len(asked))]


def label(result: ExecutionResult, problem: Problem, sample: Sample) -> ErrorLabel:
    """Name what became of a sample."""
    return classify(result, sample.solution, problem.entry_point, truncated=sample.truncated)
