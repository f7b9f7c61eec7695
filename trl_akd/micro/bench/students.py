"""Tokenizer and students of the world, and their pre-training until they begin to know the valid words."""

import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ...heads import evaluating
from ..models import EOS_TOKEN, PAD_TOKEN, llama_config, new_model, pretrain
from .world import WORDS, BenchTask, World, vocabulary

__all__ = [
    "BATCH_SIZE",
    "MAX_LENGTH",
    "PRETRAINING",
    "STUDENTS",
    "Start",
    "Student",
    "make_start",
    "make_tokenizer",
    "student_config",
    "valid_mass",
    "word_probabilities",
]


@dataclass(frozen=True)
class Student:
    """Size of a student, and the peak learning rate of its pre-training and of its distillation."""

    hidden_size: int
    learning_rate: float


STUDENTS = MappingProxyType({"32k": Student(32, 3e-3), "68k": Student(48, 3e-3), "255k": Student(96, 2e-3)})
"""Students by their approximate number of parameters."""

MAX_LENGTH = 64
BATCH_SIZE = 48
PRETRAINING = MappingProxyType({"rows": 12_000, "check_steps": 5})


def make_tokenizer(pieces: Sequence[str] = vocabulary()) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a world: its vocabulary, of which every text is the longest match.

    Args:
        pieces (`Sequence[str]`, *optional*):
            The vocabulary, by default that of [`World`].

    Example:

    ```python
    >>> tokenizer = make_tokenizer()
    >>> tokenizer.tokenize("tern = harbor.tern(numbers)")
    ['tern', ' = ', 'harbor', '.', 'tern', '(numbers)']

    ```
    """
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate((PAD_TOKEN, EOS_TOKEN, *pieces))}))
    longest_first = "|".join(_escaped(piece) for piece in sorted(pieces, key=len, reverse=True))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(longest_first), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD_TOKEN, eos_token=EOS_TOKEN, clean_up_tokenization_spaces=False
    )


def student_config(tokenizer: PreTrainedTokenizerFast, hidden_size: int) -> LlamaConfig:
    """Return the configuration of a student: a Llama of two layers."""
    return llama_config(tokenizer, MAX_LENGTH, hidden_size=hidden_size, layers=2, heads=2)


@torch.no_grad()
def word_probabilities(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tasks: Sequence[BenchTask]
) -> torch.Tensor:
    """Return the probability that a completion starts with each word of `WORDS`: float64 `[tasks, words]`."""
    tokenizer.padding_side = "right"
    batch = tokenizer([task.prompt for task in tasks], padding=True, return_tensors="pt")
    with evaluating(model):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    last = batch["attention_mask"].sum(1) - 1
    probabilities = logits[torch.arange(len(tasks)), last].double().softmax(-1)
    chosen: torch.Tensor = probabilities[:, tokenizer.convert_tokens_to_ids(list(WORDS))]
    return chosen


def valid_mass(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, world: World, tasks: Sequence[BenchTask]
) -> float:
    """Return the student's probability of a valid first word, exactly, as the mean over tasks."""
    probabilities = word_probabilities(model, tokenizer, tasks)
    valid = torch.tensor([[word in world.valid_words(task.context) for word in WORDS] for task in tasks])
    return float((probabilities * valid).sum(1).mean())


@dataclass(frozen=True)
class Start:
    """A pre-trained student.

    Args:
        model (`LlamaForCausalLM`):
            The student.
        steps (`int`):
            Number of optimizer steps of its pre-training.
        mass (`float`):
            Its probability of a valid first word on the tasks of the gate.
    """

    model: LlamaForCausalLM
    steps: int
    mass: float


def make_start(
    world: World,
    tokenizer: PreTrainedTokenizerFast,
    student: Student,
    *,
    gate_tasks: Sequence[BenchTask],
    mass: float = 0.35,
    max_steps: int = 900,
    min_steps: int = 0,
) -> Start:
    """Train a new student on programs of the world until its first word is valid with probability `mass`.

    Args:
        world (`World`):
            The world, whose seed is also that of the weights and of the order of rows.
        tokenizer (`PreTrainedTokenizerFast`):
            Tokenizer of the world.
        student (`Student`):
            Size and learning rate of the student.
        gate_tasks (`Sequence[BenchTask]`):
            Tasks on which the probability is computed, every 5 steps; held out, and not those of the evaluation.
        mass (`float`, *optional*, defaults to `0.35`):
            Probability at which training stops.
        max_steps (`int`, *optional*, defaults to `900`):
            Number of steps after which training stops in any case.
        min_steps (`int`, *optional*, defaults to `0`):
            Number of steps before which training does not stop.
    """
    model = new_model(student_config(tokenizer, student.hidden_size), seed=world.seed)
    gate = _Gate(lambda: valid_mass(model, tokenizer, world, gate_tasks), mass, min_steps)
    count = min(int(PRETRAINING["rows"]), max_steps * BATCH_SIZE)
    rows = world.sample_rows(world.sample_tasks(count, split="train", stream="pretraining"), stream="pretraining")
    with tempfile.TemporaryDirectory() as scratch:
        pretrain(
            model,
            tokenizer,
            rows,
            output_dir=scratch,
            max_steps=max_steps,
            learning_rate=student.learning_rate,
            batch_size=BATCH_SIZE,
            seed=world.seed,
            callbacks=[gate],
        )
    return Start(model.eval(), gate.steps, gate.reached)


class _Gate(TrainerCallback):
    """Stop training when a measure reaches a value, but not before a number of steps."""

    def __init__(self, measure: Callable[[], float], value: float, min_steps: int) -> None:
        self._measure, self._value, self._min_steps = measure, value, min_steps
        self.steps, self.reached = 0, 0.0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.steps = state.global_step
        if state.global_step % PRETRAINING["check_steps"] == 0 or state.global_step == state.max_steps:
            self.reached = self._measure()
            control.should_training_stop |= self.reached >= self._value and self.steps >= self._min_steps


def _escaped(piece: str) -> str:
    """Return a regular expression that matches a piece; `re.escape` escapes a line break as Oniguruma does not."""
    return re.escape(piece).replace("\\\n", "\n")
