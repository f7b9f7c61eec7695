"""Teachers behind a vLLM server, which scores texts by its prompt log-probabilities."""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..data.collators import split_samples
from ..generation.budget import Budget, BudgetSpent, Reservation
from ..generation.json_client import JSONClient, MalformedAnswer, RefusedRequest
from ..generation.protocol import GenerationError, Usage
from ..ledger import replace_text
from ..losses.signals import NO_TOKEN, SparseSignal

__all__ = ["ServedTeacher", "is_usage_file", "read_usage", "usage_file"]

_RESOLUTION = 1e-6  # of one minus a sum of probabilities, whose logarithms are in float32
_EXCESS = 1e-3  # of such a sum over 1, up to which it is rounding
_IMPOSSIBLE = -9998.0  # vLLM writes -inf as -9999.0
_OTHER_TOKENS = 0.1  # maximum fraction of tokens with another text; that of incomplete characters depends on others
_CHECK_RETRIES = 3

_USAGE_FILE = re.compile(r"teacher_usage_\d+\.json(?:\.tmp)?")
_ABOUT_TOP_K = re.compile(r"logprobs", re.IGNORECASE)
_ABOUT_LENGTH = re.compile(
    r"context.?length|max_model_len|model length|too long|max_tokens must be at least 1", re.IGNORECASE
)
_ABOUT_VOCABULARY = re.compile(r"out of vocabulary", re.IGNORECASE)


class ServedTeacher:
    """A language model behind a vLLM server.

    Each text of a batch is a request to `/completions`, with its token ids as the prompt, without padding. Packed
    samples are separate texts, and equal texts share a request. The signal consists of the `top_k` most probable
    tokens of each position, the next token of the text, and the total probability of all others.

    Transient failures are retried, as by [`~trl_akd.generation.OpenAIGenerator`].

    Args:
        base_url (`str`):
            Address up to and including the version, such as `"http://localhost:8000/v1"`.
        model (`str`):
            Name of the model on the server.
        vocabulary_size (`int`):
            Number of leading token ids that student and teacher share. Other tokens count in the total of all others.
        top_k (`int`, *optional*, defaults to `64`):
            Number of most probable tokens. The server must allow it (`--max-logprobs`, 20 by default).
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The student's tokenizer, whose tokens are compared with the server's. By default they are not compared.
        api_key (`str`, *optional*):
            Key; by default the environment variable `OPENAI_API_KEY`, if set.
        concurrency (`int`, *optional*, defaults to `8`):
            Maximum number of concurrent requests.
        timeout (`float`, *optional*, defaults to `120.0`):
            Timeout of a request in seconds, until the whole response has arrived.
        max_retries (`int`, *optional*, defaults to `10`):
            Maximum number of retries of a request after status 429 or 5xx, a failed connection, a time-out or a
            malformed response.
        backoff (`float`, *optional*, defaults to `1.0`):
            Seconds before the first retry, doubled with each further retry up to 300; `Retry-After` takes precedence.
        max_requests (`int`, *optional*):
            Maximum number of requests, including retries.
        max_tokens (`int`, *optional*):
            Maximum number of tokens to score.
        usage_file (`str` or `Path`, *optional*):
            JSON file to which the numbers of requests and tokens are added, so that they outlast the process.
        names (`Mapping[str, str]`, *optional*):
            Names of these arguments in messages, where they differ.

    Attributes:
        requests (`int`): Number of requests sent, including retries.
        tokens (`int`): Number of tokens scored.

    Raises:
        ValueError: If an argument is outside its range.

    Example:

    ```python
    >>> from trl_akd.teachers import ServedTeacher
    >>> teacher = ServedTeacher("http://localhost:8000/v1", "Qwen/Qwen2.5-Coder-32B", vocabulary_size=151_936)
    >>> teacher.requests, teacher.tokens
    (0, 0)

    ```
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        vocabulary_size: int,
        top_k: int = 64,
        tokenizer: PreTrainedTokenizerBase | None = None,
        api_key: str | None = None,
        concurrency: int = 8,
        timeout: float = 120.0,
        max_retries: int = 10,
        backoff: float = 1.0,
        max_requests: int | None = None,
        max_tokens: int | None = None,
        usage_file: str | Path | None = None,
        names: Mapping[str, str] | None = None,
    ) -> None:
        self._names = names or {}
        if concurrency < 1:
            raise ValueError(f"{self._name('concurrency')} is {concurrency}; give at least 1.")
        if not 1 <= top_k <= vocabulary_size:
            raise ValueError(
                f"{self._name('top_k')} is {top_k}; give a number between 1 and the {vocabulary_size} tokens that "
                "student and teacher share."
            )
        self.vocabulary_size = vocabulary_size
        self._client = JSONClient(
            base_url,
            api_key=os.environ.get("OPENAI_API_KEY") if api_key is None else api_key,
            timeout=timeout,
            max_retries=max_retries,
            backoff=backoff,
            connections=concurrency,
            names=self._names,
        )
        self._base_url = base_url
        self._model = model
        self._top_k = top_k
        self._tokenizer = tokenizer
        self._concurrency = concurrency
        self._budget = Budget(max_requests=max_requests, max_tokens=max_tokens)
        self._usage_file = None if usage_file is None else Path(usage_file)
        self._earlier = Usage() if self._usage_file is None else _read_usage_file(self._usage_file)
        self._token_texts: dict[int, str] = {}
        self._signal: SparseSignal | None = None

    @property
    def requests(self) -> int:
        """Number of requests sent so far, including retries."""
        return self._client.requests

    @property
    def tokens(self) -> int:
        """Number of tokens scored so far."""
        return self._budget.spent.prompt_tokens

    def check(self, token_ids: Sequence[int]) -> None:
        """Score a text, such as the longest of the data, to find errors before training.

        Raises:
            GenerationError: If the server cannot be reached, refuses, or returns no usable log-probabilities.
        """
        self._score_all([_Text("the longest row", tuple(token_ids))], max_retries=_CHECK_RETRIES)

    def forward(self, inputs: Mapping[str, Any]) -> None:
        """Score the texts of a batch.

        Raises:
            ValueError: If the batch is that of an encoder-decoder.
            GenerationError: If the server refuses a text, or returns no usable log-probabilities.
        """
        if "decoder_input_ids" in inputs:
            raise ValueError(
                f"{self._name('base_url')} is set, but a server scores prompt and completion as one text, which an "
                "encoder-decoder does not; give a causal student, or a teacher in this process."
            )
        rows = list(_texts(inputs))
        scores = self._score_all([text for text, _, _ in rows])
        shape = *inputs["input_ids"].shape, min(self._top_k + 1, self.vocabulary_size)
        ids, log_probs = torch.full(shape, NO_TOKEN), torch.full(shape, -torch.inf)
        tail_log_prob = torch.zeros(shape[:-1])
        for text, row, places in rows:
            score = scores[text.token_ids]
            ids[row, places[:-1]], log_probs[row, places[:-1]] = score.ids, score.log_probs
            tail_log_prob[row, places[:-1]] = score.tail_log_prob
        device = inputs["input_ids"].device
        self._signal = SparseSignal(ids.to(device), log_probs.to(device), tail_log_prob.to(device))

    def signal(self, student: Any) -> SparseSignal:
        """Return the signal of the batch."""
        if self._signal is None:
            raise RuntimeError("`signal` was called without a batch; call `forward` before each call.")
        signal, self._signal = self._signal, None
        return signal

    def _score_all(
        self, texts: "Sequence[_Text]", max_retries: int | None = None
    ) -> "dict[tuple[int, ...], SparseSignal]":
        """Return the signal of each distinct text.

        After the first error no more requests are sent, and those in progress are awaited.
        """
        ended = Event()
        under_way: dict[Future[SparseSignal], tuple[int, ...]] = {}
        limit: str | None = None
        with ThreadPoolExecutor(self._concurrency) as pool:
            try:
                for text in {text.token_ids: text for text in texts}.values():
                    reservation = self._budget.reserve_or_wait(len(text.token_ids), under_way)
                    under_way[pool.submit(self._score, text, reservation, max_retries, ended)] = text.token_ids
                wait(under_way, return_when=FIRST_EXCEPTION)
            except BudgetSpent as spent:
                limit = spent.limit
            finally:
                ended.set()
                try:
                    pool.shutdown()
                finally:
                    self._budget.release(under_way)
                    self._record_usage()
        errors = [error for future in under_way if (error := future.exception()) is not None]
        for error in errors:
            if not isinstance(error, _GivenUp):
                raise error
        if limit is not None:
            raise self._spent(limit)
        return {tokens: future.result() for future, tokens in under_way.items()}

    def _record_usage(self) -> None:
        if self._usage_file is not None:
            total = self._earlier + self._budget.spent
            counts = {"requests": total.requests, "tokens": total.prompt_tokens}
            replace_text(self._usage_file, json.dumps(counts) + "\n")

    def _spent(self, limit: str) -> GenerationError:
        return GenerationError(
            f"{self._name(limit)} is reached; raise it, or leave it out, and continue from the last checkpoint with "
            "`resume_from_checkpoint`."
        )

    def _score(self, text: "_Text", reservation: Reservation, max_retries: int | None, ended: Event) -> SparseSignal:
        """Request the log-probabilities of a text's tokens but the first."""

        def before_attempt() -> None:
            if ended.is_set():
                raise _GivenUp
            self._budget.send(reservation)

        found: SparseSignal | None = None
        usage = Usage()
        body = {
            "model": self._model,
            "prompt": list(text.token_ids),
            "max_tokens": 1,
            "temperature": 1.0,
            "prompt_logprobs": self._top_k,
            "return_token_ids": True,
        }
        try:
            found = self._client.post(
                "/completions",
                body,
                read=lambda answer: self._read(answer, text),
                before_attempt=before_attempt,
                max_retries=max_retries,
                pause=ended.wait,
            )
            usage = Usage(prompt_tokens=len(text.token_ids))
            return found
        except BudgetSpent as error:
            raise self._spent(error.limit) from None
        except RefusedRequest as refusal:
            raise self._explained(refusal, text) from None
        finally:
            if found is None:
                ended.set()  # before the reservation is released, for which another text may wait
            self._budget.settle(reservation, usage)

    def _explained(self, refusal: RefusedRequest, text: "_Text") -> GenerationError:
        """Return an error that says what to change after a refusal."""
        if not refusal.concerns_one_request:
            return refusal
        reason = f"{self._base_url} refused {text.name} with status {refusal.status}: {refusal.excerpt}"
        if _ABOUT_LENGTH.search(refusal.excerpt):
            needed = len(text.token_ids) + 1
            return GenerationError(
                f"{reason}; it has {needed - 1} tokens, so start the server with `--max-model-len {needed}` or more, "
                "or lower `max_length` or `max_new_tokens`."
            )
        if _ABOUT_VOCABULARY.search(refusal.excerpt):
            return GenerationError(f"{reason}; serve a teacher with the student's tokenizer.")
        if _ABOUT_TOP_K.search(refusal.excerpt):
            return GenerationError(
                f"{reason}; start the server with `--max-logprobs {self._top_k}`, or lower {self._name('top_k')}."
            )
        return GenerationError(f"{reason}; check {self._name('model')}, and that the server is vLLM.")

    def _read(self, answer: Any, text: "_Text") -> SparseSignal:
        """Return the signal in a response.

        Raises:
            MalformedAnswer: If the response is malformed.
            GenerationError: If it is that of another text or another kind of server, or too short.
        """
        try:
            [choice] = answer["choices"]
            found, prompt = choice.get("prompt_logprobs"), choice.get("prompt_token_ids")
            positions = None if found is None else [None if each is None else _entries(each) for each in found]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise MalformedAnswer(f"because its response is malformed ({type(error).__name__}: {error})") from None
        if positions is None:
            raise self._unusable(
                text, "without `prompt_logprobs`", f"serve the model with vLLM, and check {self._name('base_url')}"
            )
        if len(positions) != len(text.token_ids) or prompt not in (None, list(text.token_ids)):
            raise self._unusable(
                text,
                f"with {len(positions)} tokens in place of its {len(text.token_ids)}",
                "serve the model without truncation and additional tokens",
            )
        self._check_tokens(positions, text)
        width = min(self._top_k + 1, self.vocabulary_size)
        rows = [self._outcomes(positions[place], place, text) for place in range(1, len(positions))]
        return SparseSignal(
            torch.tensor([[*ids, *[NO_TOKEN] * (width - len(ids))] for ids, _, _ in rows]),
            torch.tensor([[*log_probs, *[-math.inf] * (width - len(log_probs))] for _, log_probs, _ in rows]),
            torch.tensor([tail for _, _, tail in rows]),
        )

    def _outcomes(self, entries: "_Entries | None", place: int, text: "_Text") -> tuple[list[int], list[float], float]:
        """Return the tokens of a position, their log-probabilities, and the logarithm of the rest."""
        label = text.token_ids[place]
        if entries is None or len(entries) < self._top_k:
            raise self._unusable(
                text,
                f"with {0 if entries is None else len(entries)} log-probabilities of token {place} in place of "
                f"{self._top_k}",
                f"lower {self._name('top_k')}, or start the server with `--no-enable-prefix-caching` if it is an old "
                "version",
            )
        if label not in entries:
            raise self._unusable(
                text,
                f"without the log-probability of token {place}, whose id is {label}",
                "check that the server has the student's tokenizer",
            )
        wrong = next((value for value, _ in entries.values() if math.isnan(value)), None)
        mass = math.fsum(math.exp(min(value, 1.0)) for value, _ in entries.values()) if wrong is None else math.nan
        if not mass <= 1.0 + _EXCESS:
            raise self._unusable(
                text,
                f"with probabilities of token {place} that sum to {mass:.4g}",
                "start the server with `--logprobs-mode raw_logprobs`, and check its weights and precision",
            )
        order = sorted(entries, key=lambda token: -entries[token][0])[: self._top_k]
        kept = [
            token
            for token in (order if label in order else [*order, label])
            if token < self.vocabulary_size and entries[token][0] > _IMPOSSIBLE
        ]
        if not kept:
            raise self._unusable(
                text,
                f"with no possible token {place} that the student knows",
                "check that the server has the student's tokenizer",
            )
        log_probs = [entries[token][0] for token in kept]
        if len(kept) == self.vocabulary_size:
            return kept, log_probs, -math.inf
        return kept, log_probs, math.log(max(1.0 - math.fsum(map(math.exp, log_probs)), _RESOLUTION))

    def _check_tokens(self, positions: "Sequence[_Entries | None]", text: "_Text") -> None:
        """Compare the texts of the tokens with the student's."""
        if self._tokenizer is None:
            return
        compared, differing = 0, []
        for token, entries in zip(text.token_ids[1:], positions[1:], strict=True):
            theirs = entries[token][1] if entries and token in entries else None
            ours = self._token_text(token)
            if theirs and ours and "\ufffd" not in theirs + ours:
                compared += 1
                if theirs.strip() != ours.strip():
                    differing.append((token, theirs, ours))
        if len(differing) > _OTHER_TOKENS * compared:
            token, theirs, ours = differing[0]
            raise self._unusable(
                text,
                f"in which token id {token} is {theirs!r}, but {ours!r} for the student",
                "serve a teacher with the student's tokenizer",
            )

    def _token_text(self, token: int) -> str:
        if token not in self._token_texts:
            assert self._tokenizer is not None
            special = token in self._tokenizer.all_special_ids
            self._token_texts[token] = "" if special else str(self._tokenizer.decode([token]))
        return self._token_texts[token]

    def _unusable(self, text: "_Text", finding: str, remedy: str) -> GenerationError:
        return GenerationError(f"{self._base_url} answered {text.name} {finding}; {remedy}.")

    def _name(self, argument: str) -> str:
        return f"`{self._names.get(argument, argument)}`"


def usage_file(folder: Path, process: int) -> Path:
    """Return the file of a run's output folder in which a process records its requests to a served teacher."""
    return folder / f"teacher_usage_{process}.json"


def is_usage_file(path: Path) -> bool:
    """Return whether a file is one of [`usage_file`]."""
    return _USAGE_FILE.fullmatch(path.name) is not None


def read_usage(folder: Path) -> Usage:
    """Return the usage that all processes of all starts have recorded in a run's output folder.

    Raises:
        ValueError: If a file is damaged.
    """
    paths = folder.iterdir() if folder.is_dir() else ()
    files = (path for path in paths if is_usage_file(path) and path.suffix != ".tmp")  # of an interrupted write
    return sum(map(_read_usage_file, files), start=Usage())


def _read_usage_file(path: Path) -> Usage:
    if not path.is_file():
        return Usage()
    try:
        counts = json.loads(path.read_text(encoding="utf-8"))
        return Usage(int(counts["requests"]), int(counts["tokens"]))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}, which counts the requests to the teacher, is damaged; delete it.") from error


class _GivenUp(Exception):
    """A text was not scored because of the error of another."""


_Entries = dict[int, tuple[float, str | None]]
"""Log-probability and text by token id."""


@dataclass(frozen=True, slots=True)
class _Text:
    """Token ids to score, and a name for messages."""

    name: str
    token_ids: tuple[int, ...]


def _texts(inputs: Mapping[str, Any]) -> Iterator[tuple[_Text, int, Tensor]]:
    """Yield the texts of at least two tokens in a batch, each with its row and the positions of its tokens."""
    input_ids = inputs["input_ids"].cpu()
    for row, columns in split_samples(inputs):
        if len(columns) > 1:
            yield _Text(f"row {row} of a batch", tuple(input_ids[row, columns].tolist())), row, columns


def _entries(position: Mapping[str, Any]) -> _Entries:
    """Return the entries of a position of `prompt_logprobs`."""
    return {int(token): (float(entry["logprob"]), entry.get("decoded_token")) for token, entry in position.items()}
