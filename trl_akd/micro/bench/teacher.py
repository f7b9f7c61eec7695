r"""Exact teacher of the world: the distribution of the data, spread over the vocabulary by a small probability.

A completion is written in two steps: one of the task's programs \(m\) is drawn with its probability \(w_m\); then each
of its tokens is kept with probability \(1-\epsilon\), and otherwise replaced by a token drawn uniformly from the
vocabulary of size V. After its end, a program consists of EOS tokens. The next token therefore has the distribution

\[ p(v \mid y_{<t}) = \frac{\epsilon}{V} + (1-\epsilon) \sum_m \pi_m(y_{<t})\, [v = y^m_t],\qquad
   \pi_m(y_{<t}) \propto w_m \prod_{s<t} \Big(\frac{\epsilon}{V} + (1-\epsilon)\,[y_s = y^m_s]\Big), \]

which is defined for every prefix, also for one that a student wrote.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...data.encoding import encode_completions, encode_prompts
from ...losses.lm_head import LMHead
from ...losses.signals import DenseSignal
from .world import Answer, BenchTask

__all__ = ["EPSILON", "ExactTeacher"]

EPSILON = 1e-3


class ExactTeacher:
    """Teacher that knows the programs of every task and their probabilities.

    Its signal is dense: hidden states are log-probabilities, and the LM head is the identity.

    Args:
        answers (`Sequence[tuple[BenchTask, Sequence[Answer]]]`):
            Tasks, each with its programs; all tasks have equally many.
        tokenizer (`PreTrainedTokenizerBase`):
            Tokenizer of the world.
        epsilon (`float`, *optional*, defaults to `1e-3`):
            Probability that a token is replaced.
    """

    def __init__(
        self,
        answers: Sequence[tuple[BenchTask, Sequence[Answer]]],
        tokenizer: PreTrainedTokenizerBase,
        epsilon: float = EPSILON,
    ) -> None:
        self.vocabulary_size = len(tokenizer)
        self._epsilon = epsilon
        eos = tokenizer.eos_token_id
        prompts = encode_prompts(tokenizer, [task.prompt for task, _ in answers])
        self._rows = {tuple(prompt): row for row, prompt in enumerate(prompts)}
        self._prompt_end = prompts[0][-1]
        number = len(answers[0][1])
        texts = encode_completions(tokenizer, [answer.completion for _, found in answers for answer in found])
        length = max(map(len, texts))
        padded = [[*ids, *[eos] * (length - len(ids))] for ids in texts]
        self._programs = torch.tensor(padded).view(len(answers), number, length)
        weights = [[answer.probability for answer in found] for _, found in answers]
        self._log_weights = torch.tensor(weights, dtype=torch.float64).log()
        self._head = LMHead(torch.eye(self.vocabulary_size))
        self._log_probs: Tensor | None = None

    def forward(self, inputs: Mapping[str, Any]) -> None:
        """Compute the log-probabilities of a batch."""
        self._log_probs = self.log_probs(inputs["input_ids"].cpu()).float()

    def signal(self, student: Any) -> DenseSignal:
        """Return the log-probabilities of the batch, on the student's device."""
        if self._log_probs is None:
            raise RuntimeError("`signal` was called before `forward`.")
        device = student.device
        self._head = self._head.to(device)
        return DenseSignal(self._log_probs.to(device), self._head)

    @torch.no_grad()
    def log_probs(self, input_ids: Tensor) -> Tensor:
        """Return log-probabilities `[B, T, V]`, in nats and float64, of the token after each position.

        Args:
            input_ids (`torch.Tensor` of shape `[B, T]`):
                Prompts of known tasks, each followed by any tokens. Within a prompt, the distribution is that of the
                first token after it.

        Raises:
            ValueError: If a prompt is not that of a known task.
        """
        starts, rows = zip(*map(self._find, input_ids.tolist()), strict=True)
        programs, start = self._programs[list(rows)], torch.tensor(starts)
        place = torch.arange(1, input_ids.shape[1] + 1) - start[:, None]  # of the next token in the completion
        index = place.clamp(0, programs.shape[2] - 1)
        expected = programs.gather(2, index[:, None].expand(-1, programs.shape[1], -1))
        spread = self._epsilon / self.vocabulary_size
        following = torch.nn.functional.pad(input_ids[:, 1:], (0, 1))
        hit = (expected == following[:, None]).double()
        likelihood = (spread + (1 - self._epsilon) * hit).log() * (place >= 0)[:, None]
        before = likelihood.cumsum(2) - likelihood
        posterior = (self._log_weights[list(rows)][:, :, None] + before).softmax(1).transpose(1, 2)
        probabilities = torch.full((*input_ids.shape, self.vocabulary_size), spread, dtype=torch.float64)
        probabilities.scatter_add_(2, expected.transpose(1, 2), (1 - self._epsilon) * posterior)
        return probabilities.log()

    def _find(self, ids: list[int]) -> tuple[int, int]:
        """Return the length of the prompt that `ids` begin with, and the row of its task."""
        length = ids.index(self._prompt_end) + 1 if self._prompt_end in ids else len(ids)
        row = self._rows.get(tuple(ids[:length]))
        if row is None:
            raise ValueError("A prompt of the batch is not that of a task which this teacher was given.")
        return length, row
