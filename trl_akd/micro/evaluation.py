"""Judge a model of the micro world by running the programs it writes.

This is not a sandbox. A program runs with the rights of the user, in a plain child process with a time limit. That is
enough for models that have seen nothing but the generated world; programs from any other model do not belong here.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

from .world import Task

TIMEOUT = 5.0
_MAX_NEW_TOKENS = 64
_ALL_PASSED = 86  # exit status that a program reaches only behind its tests


@dataclass(frozen=True)
class PassAt1:
    """Count the tasks whose program passed all tests.

    Example:
        >>> print(PassAt1(passed=42, total=50))
        0.84 (42/50)
    """

    passed: int
    total: int

    @property
    def score(self) -> float:
        """Give the share of tasks that passed, in [0, 1]."""
        return self.passed / self.total

    def __str__(self) -> str:
        return f"{self.score:.2f} ({self.passed}/{self.total})"


def pass_at_1(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    *,
    batch_size: int = 64,
    timeout: float = TIMEOUT,
    desc: str = "Evaluating",
) -> PassAt1:
    """Let a model write one program a task, greedily, and count those that pass their tests.

    Args:
        model (`PreTrainedModel`): the model to judge; its mode is left as it was.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        tasks (`Sequence[Task]`): what to write programs for.
        batch_size (`int`, *optional*, defaults to `64`): prompts in a batch of generation.
        timeout (`float`, *optional*, defaults to `5.0`): seconds a program may run.
        desc (`str`, *optional*): label of the progress bar.

    Raises:
        ValueError: if there are no tasks.
    """
    if not tasks:
        raise ValueError("tasks is empty: pass@1 needs at least one task")
    programs = write_programs(model, tokenizer, tasks, batch_size=batch_size, desc=desc)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        verdicts = pool.map(lambda program, task: passes(program, task.tests, timeout), programs, tasks)
        return PassAt1(sum(verdicts), len(tasks))


def write_programs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    *,
    batch_size: int = 64,
    desc: str = "Evaluating",
) -> list[str]:
    """Continue the prompts of tasks greedily, and return the programs in the order of the tasks."""
    by_length = sorted(range(len(tasks)), key=lambda i: len(tasks[i].prompt))
    programs = [""] * len(tasks)
    was_training = model.training
    model.eval()
    for start in tqdm(range(0, len(tasks), batch_size), desc=desc):
        chosen = by_length[start : start + batch_size]
        prompts = tokenizer(
            [tasks[i].prompt for i in chosen],
            add_special_tokens=False,
            return_token_type_ids=False,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        ).to(model.device)
        with torch.inference_mode():
            sequences = model.generate(**prompts, max_new_tokens=_MAX_NEW_TOKENS, do_sample=False)
        texts = tokenizer.batch_decode(sequences[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, text in zip(chosen, texts, strict=True):
            programs[i] = text
    model.train(was_training)
    return programs


def passes(program: str, tests: str, timeout: float = TIMEOUT) -> bool:
    """Run a program followed by its tests, and tell whether it came to the end of them in time.

    Not a sandbox, see the module. The child is isolated from the user's Python settings alone (`-I -S`); at the time
    limit it is killed with its process group.

    Args:
        program (`str`): program text.
        tests (`str`): program text of `assert` statements.
        timeout (`float`, *optional*, defaults to `5.0`): seconds.

    Example:
        >>> passes("def solve(n):\\n    return n + 1\\n", "assert solve(1) == 2\\n")
        True
    """
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", f"{program}\n{tests}\nraise SystemExit({_ALL_PASSED})"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return process.wait(timeout) == _ALL_PASSED
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False
