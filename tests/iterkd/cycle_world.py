"""Addition tasks on which complete runs of IterKD take seconds, with a rule-based teacher and a tiny student."""

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset

from tests import tiny
from trl_akd.execution import CodeExecutor
from trl_akd.generation import Completion
from trl_akd.generation.protocol import GREEDY, Arrival, SamplingParams, collect
from trl_akd.iterkd.cycle.records import Question
from trl_akd.iterkd.iterkd_config import IterKDConfig
from trl_akd.iterkd.iterkd_trainer import IterKDTrainer
from trl_akd.iterkd.judge.rubric import RULES, Judgement, format_judgement

LAYOUTS = {
    "correct": "right: {instruction}",
    "faulty": "faulty ({kind}): {instruction}",
    "new_easy": "easy: {instruction}",
    "new_same": "same: {instruction}",
}
JUDGE_LAYOUT = "judge: {instruction} | {answer}"
REFUSED, NO_FAULT = 3, 4  # numbers to which the teacher writes nothing, or a right program in place of a faulty one


def task(number: int) -> str:
    return f"Let add(x) be x plus {number}."


def questions(number: int = 8) -> list[dict[str, str]]:
    return [
        {"id": f"add-{n}", "instruction": task(n), "tests": f"assert add(1) == {n + 1}"} for n in range(1, number + 1)
    ]


def held_out() -> list[Question]:
    return [Question(f"held-{n}", task(n), f"assert add(1) == {n + 1}") for n in (1001, 1002, 1003)]


def answer(prompt: str) -> str:
    """Answer a request of any layout."""
    kind, _, rest = prompt.partition(": ")
    number = int(re.search(r"\d+", rest)[0])  # type: ignore[index]
    if kind == "judge":
        return judgement(rest)
    if kind in ("easy", "same"):
        return task(number if number % 4 == 0 else number + 100)
    if number == REFUSED:
        return "I'm sorry, but I cannot help with that."
    if kind == "right":
        return f"def add(x):\n    return x + {number}\n"
    return f"def add(x):\n    return {f'{number} + x' if number == NO_FAULT else f'x - {number}'}\n"


def judgement(text: str) -> str:
    """Judge programs by their sign, and other texts of the student by a digest."""
    if "x + " in text or " + x" in text:
        share = 1.0
    else:
        share = 0.0 if "x - " in text else (hashlib.sha256(text.encode()).digest()[0] % 3) / 2
    return format_judgement(Judgement(tuple(share * rule.maximum for rule in RULES)))


class RuleTeacher:
    """Answer prompts one by one by a rule, after a call of `ask` and a pause."""

    def __init__(
        self,
        on_ask: Callable[[str], None] = lambda prompt: None,
        pause: float = 0.0,
        write: Callable[[str], str] = answer,
    ) -> None:
        self._on_ask = on_ask
        self._pause = pause
        self._write = write

    def generate(self, prompts: list[str], **sampling: Any) -> list[list[Completion]]:
        return collect(self.stream(prompts), len(prompts))

    def stream(self, prompts: list[str], sampling: SamplingParams = GREEDY) -> Iterator[Arrival]:
        for index, prompt in enumerate(prompts):
            self._on_ask(prompt)
            time.sleep(self._pause)
            text = self._write(prompt)
            yield index, [Completion(text, -1.0, "stop", len(text.split()))]


def prepare(folder: Path) -> None:
    """Write the files that every run in a folder reads: a student and the layouts."""
    tiny.model(seed=1).save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    (folder / "layouts.yaml").write_text(yaml.safe_dump(LAYOUTS))
    (folder / "judge.txt").write_text(JUDGE_LAYOUT)


def settings(folder: Path, output_dir: Path, **changed: Any) -> dict[str, Any]:
    return {
        "output_dir": str(output_dir),
        "prompts_file": str(folder / "layouts.yaml"),
        "judge_prompt_file": str(folder / "judge.txt"),
        "prompt_template": "comment",
        "cycles": 2,
        "questions_per_cycle": 8,
        "new_easy": 2,
        "new_medium": 3,
        "new_hard": 3,
        "min_question_chars": 5,
        "novelty_threshold": 1.0,
        "answer_max_new_tokens": 8,
        "teacher_max_new_tokens": 64,
        "max_length": 128,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 3e-3,
        "save_strategy": "steps",
        "save_steps": 2,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "seed": 0,
        **changed,
    }


def trainer(
    folder: Path,
    output_dir: Path,
    teacher: Any,
    executor: CodeExecutor | None,
    *,
    callbacks: Any = None,
    generation_batch_size: int = 16,
    **changed: Any,
) -> IterKDTrainer:
    return IterKDTrainer(
        str(folder / "model"),
        args=IterKDConfig(**settings(folder, output_dir, **changed)),
        train_dataset=Dataset.from_list(questions()),
        text_teacher=teacher,
        judge=teacher,
        executor=executor,
        held_out=held_out(),
        callbacks=callbacks,
        generation_batch_size=generation_batch_size,
    )


def lines(output_dir: Path, name: str) -> list[dict[str, Any]]:
    text = (output_dir / "ledger" / f"{name}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def completions(output_dir: Path) -> dict[str, Any]:
    """Return the recorded completions by key, each of which occurs once, without values that depend on rounding."""
    rows = lines(output_dir, "completions")
    for row in rows:
        for completion in row["completions"]:
            del completion["mean_logprob"]
    found = {row["key"]: row for row in rows}
    assert len(found) == len(rows), "a completion is there twice"
    return found


def verdicts(output_dir: Path) -> dict[str, Any]:
    rows = lines(output_dir, "verdicts")
    found = {row["key"]: row["value"] for row in rows}
    assert len(found) == len(rows), "a verdict is there twice"
    return found
