"""Generator for servers with OpenAI's interface: vLLM, SGLang, llama.cpp, `transformers serve`, OpenAI."""

import copy
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any, Self

from .budget import Budget, Reservation
from .json_client import JSONClient, MalformedAnswer, RefusedRequest
from .protocol import (
    GREEDY,
    Arrival,
    Completion,
    GenerationError,
    SamplingParams,
    StreamingGenerator,
    Usage,
    check_prompts,
    estimate_num_tokens,
    sample_offsets,
    truncate_at_stop,
)

__all__ = ["OpenAIGenerator"]

_SUBSTITUTES = {"logprobs": None, "max_tokens": "max_completion_tokens", "response_format": None}
"""Fields that some servers refuse, and the fields to send instead."""

_EXCERPT = 300  # maximum number of characters of a server's error in a message
_MAX_STOPS = 4  # the maximum of OpenAI's servers; the text is truncated at the others afterwards

_STRUCTURED = re.compile(r"response_format|json.?(?:schema|object)|structured|guided|grammar", re.IGNORECASE)
"""Names of the field `response_format` in error messages of servers."""

_ABOUT_THE_PROMPT = re.compile(
    r"status 413|context.?(length|window)|maximum.{0,20}(length|context)|too (long|large|many tokens)"
    r"|content.?(filter|policy|management)|moderation|polic(y|ies)|flagged|safety",
    re.IGNORECASE,
)
"""Refusals with a reason that concerns only their prompt."""

_ABOUT_THE_SETTINGS = re.compile(
    r"max_(completion_)?tokens\W.{0,30}too large|at most \d+ completion tokens"
    r"|(unknown|unrecogni[sz]ed|unexpected|unsupported|invalid|extra).{0,10}"
    r"(argument|parameter|field|keyword|name|property|properties)\b|extra inputs",
    re.IGNORECASE,
)
"""Refusals that concern other prompts as well."""

_UNSUPPORTED = re.compile(
    r"support|unknown|unrecogni[sz]ed|unexpected|invalid|deprecated|not (permitted|allowed)", re.I
)

_CUT = {"length", "max_length", "max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded"}
_FILTERED = {"blocklist", "content_filter", "content_filtered", "error_toxic", "guardrail_intervened"}
_FILTERED |= {"prohibited_content", "recitation", "refusal", "safety", "spii"}
_FAILED = {"abort", "aborted", "cancelled", "error", "insufficient_system_resource", "network_error"}
"""Reasons, in lower case, that servers give for the end of a completion; any other reason is a regular end."""


class OpenAIGenerator(StreamingGenerator):
    """Generate with a model behind an OpenAI-compatible server.

    Each request has one prompt, and up to `concurrency` requests are sent concurrently. A server that returns fewer
    than `n` choices gets another request with another seed; one that refuses log-probabilities gets requests without
    them. Log-probabilities are as the server defines them. Whether the prompt starts with BOS, and the effect of the
    model's generation settings, are up to the server: `transformers serve`, for example, samples only if they contain
    `do_sample`.

    A prompt that the server refuses, with status 400, 413 or 422 or by its content filter, gets completions with
    `finish_reason="refused"` and the server's message, and generation continues. Any other refusal, such as 401, 403
    or 404, ends the call, and so do `max_refusals` consecutive refusals whose message does not name the prompt's
    content or length as the cause, since they probably concern all requests. Such refusals are therefore yielded only
    after another prompt was answered, or at the end of the call.

    Servers that refuse `max_tokens` get `max_completion_tokens` instead. A completion that the server broke off, with
    a reason such as `"error"`, `"abort"` or `"insufficient_system_resource"`, is malformed, and its request is sent
    again. Other names of `"length"` and `"content_filter"`, such as `"MAX_TOKENS"`, `"model_length"` and `"SAFETY"`,
    are known; an unknown or missing reason counts as `"stop"`.

    Args:
        base_url (`str`):
            Address up to and including the version, such as `"http://localhost:8000/v1"`.
        model (`str`):
            Name of the model on the server.
        api_key (`str`, *optional*):
            Key; by default the environment variable `OPENAI_API_KEY`, if set.
        chat (`bool`, *optional*, defaults to `False`):
            Whether to send each prompt as a user message to `/chat/completions` instead of as text to `/completions`.
        concurrency (`int`, *optional*, defaults to `8`):
            Maximum number of concurrent requests.
        timeout (`float`, *optional*, defaults to `60.0`):
            Timeout of a request in seconds, until the whole response has arrived; allow for the longest completion.
        max_retries (`int`, *optional*, defaults to `5`):
            Maximum number of retries of a request after status 429 or 5xx, a failed connection, a time-out or a
            malformed response.
        backoff (`float`, *optional*, defaults to `1.0`):
            Seconds before the first retry, doubled with each further retry; `Retry-After` takes precedence.
        extra_body (`Mapping`, *optional*):
            Fields to add to each request, or to replace; `None` removes one.
        max_refusals (`int`, *optional*, defaults to `8`):
            Number of consecutive unexplained refusals that ends the call.

    Attributes:
        requests (`int`): Number of requests sent, including retries.
        usage ([`Usage`]): Usage of the answered requests. Counts that the server does not report are estimated, for
            completions from their log-probabilities or else their length, for prompts from their length.

    Raises:
        ValueError: If an argument is outside its range.

    Example:

    ```python
    >>> from trl_akd.generation import OpenAIGenerator
    >>> generator = OpenAIGenerator("http://localhost:8000/v1", "Qwen/Qwen2.5-Coder-7B")
    >>> generator.requests, generator.usage.tokens
    (0, 0)

    ```
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        chat: bool = False,
        concurrency: int = 8,
        timeout: float = 60.0,
        max_retries: int = 5,
        backoff: float = 1.0,
        extra_body: Mapping[str, Any] | None = None,
        max_refusals: int = 8,
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"`concurrency` is {concurrency}; give at least 1.")
        if max_refusals < 1:
            raise ValueError(f"`max_refusals` is {max_refusals}; give at least 1.")
        self._client = JSONClient(
            base_url,
            api_key=os.environ.get("OPENAI_API_KEY") if api_key is None else api_key,
            timeout=timeout,
            max_retries=max_retries,
            backoff=backoff,
            connections=concurrency,
        )
        self._model = model
        self._chat = chat
        self._concurrency = concurrency
        self._extra_body = dict(extra_body or {})
        self._budget = Budget()
        self._state = _State(max_refusals)

    @property
    def requests(self) -> int:
        """Number of requests sent so far, including retries."""
        return self._client.requests

    @property
    def usage(self) -> Usage:
        """Usage of the requests answered so far."""
        return self._state.usage

    @property
    def tokens(self) -> int:
        """Number of tokens of prompts and completions so far."""
        return self.usage.tokens

    @property
    def is_chat(self) -> bool:
        """Whether prompts are sent as user messages."""
        return self._chat

    @property
    def model_name(self) -> str:
        """Name of the model on the server."""
        return self._model

    def within(self, budget: Budget) -> Self:
        """Return a copy of this generator that checks a budget before each request."""
        limited = copy.copy(self)
        limited._budget = budget
        return limited

    def with_schema(self, name: str, schema: Mapping[str, Any]) -> Self:
        """Return a copy of this generator that requests JSON with a schema, unless the server refuses the field.

        Args:
            name (`str`):
                Name of the schema.
            schema (`Mapping`):
                JSON schema of each completion.

        Example:

        ```python
        >>> from trl_akd.generation import OpenAIGenerator
        >>> generator = OpenAIGenerator("http://localhost:8000/v1", "Qwen/Qwen2.5-Coder-7B", chat=True)
        >>> generator.with_schema("number", {"type": "number"}).model_name
        'Qwen/Qwen2.5-Coder-7B'

        ```
        """
        structured = copy.copy(self)
        schema = {"name": name, "strict": True, "schema": dict(schema)}
        structured._extra_body = {
            "response_format": {"type": "json_schema", "json_schema": schema},
            **self._extra_body,
        }
        return structured

    def stream(self, prompts: list[str], sampling: SamplingParams = GREEDY) -> Iterator[Arrival]:
        """Yield completions as responses arrive.

        After an error or Ctrl-C, requests in progress are awaited and their completions yielded.

        Raises:
            ValueError: If an argument is outside its range.
            GenerationError: If the server refuses all requests or gives no usable answer.
            BudgetSpent: If the budget does not suffice.
        """
        check_prompts(prompts)
        questions = zip(prompts, sample_offsets(prompts, sampling.n), strict=True)
        todo = deque(_Question(index, prompt, first) for index, (prompt, first) in enumerate(questions))
        with ThreadPoolExecutor(self._concurrency) as pool:
            call = _Call(self, pool, sampling)
            try:
                yield from call.answers(todo)
            except (Exception, KeyboardInterrupt):
                call.end()
                yield from call.late_answers()
                raise
            finally:
                call.end()

    def _answer(
        self, question: "_Question", sampling: SamplingParams, reservation: Reservation
    ) -> Iterator[list[Completion]]:
        """Send requests until all completions of a prompt have arrived; the first of each part has the usage."""
        done, cost = 0, Usage()
        try:
            while done < sampling.n:
                sent = reservation.sent
                found = self._ask(question, sampling.n - done, done, sampling, reservation)
                usage = replace(found[0].usage or Usage(), requests=reservation.sent - sent)
                self._state.count_usage(usage, question.prompt)
                cost += usage
                done += len(found)
                yield [replace(found[0], usage=usage), *found[1:]]
        finally:
            self._budget.settle(reservation, cost)

    def _ask(
        self, question: "_Question", n: int, done: int, sampling: SamplingParams, reservation: Reservation
    ) -> list[Completion]:
        """Return up to `n` more completions of a prompt that has `done` ones, or as many refused ones."""
        seed = sampling.sample_seed(question.prompt, question.first + done)
        body = self._body(question.prompt, n, seed, sampling)
        try:
            found = self._post(body, question.prompt, sampling, reservation)
        except RefusedRequest as refusal:
            if not refusal.concerns_one_request:
                raise
            reason = f"status {refusal.status}: {refusal.excerpt}"
            self._state.count_refusal(reason, str(refusal))
            return [Completion("", None, "refused", None, reason)] * n
        self._state.count_answer()
        return found[:n]

    def _post(
        self, body: dict[str, Any], prompt: str, sampling: SamplingParams, reservation: Reservation
    ) -> list[Completion]:
        """Post a request, without the fields that the server refuses."""
        while True:
            for field in self._state.refused_fields:
                _substitute(body, field)
            try:
                return self._client.post(
                    "/chat/completions" if self._chat else "/completions",
                    body,
                    read=lambda answer: _read(answer, prompt, sampling),
                    before_attempt=lambda: self._budget.send(reservation),
                )
            except RefusedRequest as refusal:
                refused = _refused_field(body, refusal.excerpt)
                if refused is None:
                    raise
                self._state.refused_fields |= {refused}

    def _body(self, prompt: str, n: int, seed: int, sampling: SamplingParams) -> dict[str, Any]:
        question = {"messages": [{"role": "user", "content": prompt}]} if self._chat else {"prompt": prompt}
        drawn = {"n": n, "top_p": sampling.top_p, "seed": seed} if sampling.temperature > 0 else {}
        body = {
            "model": self._model,
            **question,
            **drawn,
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_new_tokens,
            "stop": list(sampling.stop[:_MAX_STOPS]) or None,
            "logprobs": True if self._chat else 1,
            **self._extra_body,
        }
        return {name: value for name, value in body.items() if value is not None}


class _State:
    """State shared by all threads and calls of a generator: usage, refused fields, consecutive refusals."""

    def __init__(self, max_refusals: int) -> None:
        self.usage = Usage()
        self.underestimate = 0  # maximum number of prompt tokens by which an estimate was too low
        self.refused_fields: frozenset[str] = frozenset()
        self._max_refusals = max_refusals
        self._refusals = 0  # unexplained ones since the last answer
        self._lock = threading.Lock()

    def count_usage(self, usage: Usage, prompt: str) -> None:
        """Count the usage of a prompt, and update the error of the estimates."""
        with self._lock:
            self.usage += usage
            self.underestimate = max(self.underestimate, usage.prompt_tokens - estimate_num_tokens(prompt))

    def count_answer(self) -> None:
        with self._lock:
            self._refusals = 0

    def count_refusal(self, reason: str, message: str) -> None:
        """Count a refused prompt.

        Raises:
            GenerationError: If there are `max_refusals` consecutive ones.
        """
        if _is_explained(reason):
            return
        with self._lock:
            self._refusals += 1
            refusals = self._refusals
        if refusals >= self._max_refusals:
            raise GenerationError(
                f"{refusals} consecutive prompts were refused, the last one with: {message} If the prompts are the "
                "cause, raise `max_refusals`."
            )


@dataclass(frozen=True, slots=True)
class _Question:
    index: int
    prompt: str
    first: int


class _Call:
    """Requests of one call, and the queue from their threads to the caller.

    Without a budget, all prompts are submitted to the pool at once. With a budget, only as many are submitted as keep
    all threads busy, since each has a reservation.
    """

    def __init__(self, generator: OpenAIGenerator, pool: ThreadPoolExecutor, sampling: SamplingParams) -> None:
        self._generator = generator
        self._pool = pool
        self._sampling = sampling
        self._ended = False
        self._queue: SimpleQueue[Arrival | Exception | None] = SimpleQueue()
        self._held: list[Arrival] = []  # unexplained refusals, which are yielded later

    def answers(self, todo: "deque[_Question]") -> Iterator[Arrival]:
        """Yield the completions of all prompts, or raise the first error.

        If none of them is under way, it waits for calls that share the budget.
        """
        ahead = 2 * self._generator._concurrency if self._generator._budget.is_limited else sys.maxsize
        under_way = 0
        while todo or under_way:
            while todo and under_way < ahead:
                reservation = self._reserve(todo[0].prompt, wait=not under_way)
                if reservation is None:
                    break
                self._pool.submit(self._follow, todo.popleft(), reservation)
                under_way += 1
            found = self._queue.get()
            if found is None:
                under_way -= 1
            elif isinstance(found, Exception):
                raise found
            else:
                yield from self._release(found)
        yield from self._held

    def late_answers(self) -> Iterator[Arrival]:
        """Yield completions that have arrived since an error; further errors are ignored."""
        while not self._queue.empty():
            found = self._queue.get()
            if found is not None and not isinstance(found, Exception):
                yield from self._release(found)

    def end(self) -> None:
        """Send no more requests, wait for those in progress, and release what is reserved for others."""
        self._ended = True
        try:
            self._pool.shutdown()
        finally:
            self._generator._budget.release(self)

    def _reserve(self, prompt: str, wait: bool) -> Reservation | None:
        budget, sampling = self._generator._budget, self._sampling
        prompted = estimate_num_tokens(prompt) + self._generator._state.underestimate
        reserve = budget.reserve_or_wait if wait else budget.reserve
        return reserve(prompted + sampling.n * sampling.max_new_tokens, self)

    def _follow(self, question: _Question, reservation: Reservation) -> None:
        """Put the completions of a prompt into the queue as they arrive, and `None` after the last; runs in a thread.

        An error ends the call here, so that no thread starts another prompt before the caller has seen the error.
        """
        if self._ended:
            self._generator._budget.settle(reservation, Usage())
            return
        try:
            for completions in self._generator._answer(question, self._sampling, reservation):
                self._queue.put((question.index, completions))
                if self._ended:
                    return
            self._queue.put(None)
        except Exception as error:
            self._ended = True
            self._queue.put(error)

    def _release(self, found: Arrival) -> Iterator[Arrival]:
        """Yield completions, but hold back unexplained refusals until another prompt is answered."""
        if found[1][0].finish_reason == "refused" and not _is_explained(found[1][0].refusal or ""):
            self._held.append(found)
            return
        held, self._held = self._held, []
        yield from [*held, found]


def _is_explained(reason: str) -> bool:
    """Return whether a refusal names the content or the length of its prompt as the cause."""
    return _ABOUT_THE_PROMPT.search(reason) is not None and _ABOUT_THE_SETTINGS.search(reason) is None


def _refused_field(body: Mapping[str, Any], excerpt: str) -> str | None:
    """Return the field that a refusal names, if the request works without it."""
    named = {
        "logprobs": "logprobs" in excerpt,
        "max_tokens": "max_tokens" in excerpt
        and _UNSUPPORTED.search(excerpt) is not None
        and _ABOUT_THE_PROMPT.search(excerpt) is None,
        "response_format": _STRUCTURED.search(excerpt) is not None,
    }
    return next((field for field in _SUBSTITUTES if field in body and named[field]), None)


def _substitute(body: dict[str, Any], field: str) -> None:
    if field in body:
        value, name = body.pop(field), _SUBSTITUTES[field]
        if name is not None:
            body[name] = value


def _read(answer: Any, prompt: str, sampling: SamplingParams) -> list[Completion]:
    """Return the completions in a response, the first of which has the usage.

    Raises:
        MalformedAnswer: If the response is malformed.
    """
    if isinstance(answer, Mapping) and answer.get("error") and not answer.get("choices"):
        raise MalformedAnswer(f"because its response is the error {str(answer['error'])[:_EXCERPT]!r}")
    try:
        choices = answer["choices"]
        counts = _counts(answer.get("usage"))
        paid = counts["completion_tokens"] if len(choices) == 1 else 0
        completions = [_completion(choice, paid or None, sampling.stop) for choice in choices]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise MalformedAnswer(f"because its response is malformed ({type(error).__name__}: {error})") from None
    if not completions:
        raise MalformedAnswer("because its response has no choices")
    return [replace(completions[0], usage=_usage(counts, prompt, completions)), *completions[1:]]


def _counts(usage: Any) -> dict[str, int]:
    """Return the counts in the usage of a response, with 0 for missing or malformed ones."""
    counts = {}
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        value = usage.get(name) if isinstance(usage, Mapping) else None
        try:
            counts[name] = max(0, int(float(value or 0)))
        except (OverflowError, TypeError, ValueError):
            counts[name] = 0
    return counts


def _usage(counts: Mapping[str, int], prompt: str, completions: Sequence[Completion]) -> Usage:
    """Return the usage of a request; missing counts follow from the others or are estimated."""
    prompted, written, total = (counts[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens"))
    if total and not written:
        prompted = min(prompted or estimate_num_tokens(prompt), total)
        return Usage(1, prompted, total - prompted, estimated=not counts["prompt_tokens"])
    if total and not prompted:
        return Usage(1, max(0, total - written), written)
    return Usage(
        1,
        prompted or estimate_num_tokens(prompt),
        written or sum(completion.num_tokens or estimate_num_tokens(completion.text) for completion in completions),
        estimated=not (prompted and written),
    )


def _completion(choice: Mapping[str, Any], paid: int | None, stop: Sequence[str]) -> Completion:
    message = choice.get("message") or {}
    reason = str(choice.get("finish_reason")).lower()
    refusal = message.get("refusal") or ("content filter" if reason in _FILTERED else None)
    written = _content(message, refused=refusal is not None) if "message" in choice else choice["text"]
    text, stopped_here = truncate_at_stop(written, stop)
    if reason in _FAILED and not stopped_here:
        raise MalformedAnswer(f"because its completion ended with the `finish_reason` {reason!r}")
    logprobs = _logprobs(choice.get("logprobs"))
    # If the server continued after a stop string, its log-probabilities are not those of the text.
    mean = sum(logprobs) / len(logprobs) if logprobs and not stopped_here else None
    num_tokens = paid or len(logprobs) or None
    if refusal is not None:
        return Completion(text, mean, "refused", num_tokens, str(refusal))
    return Completion(text, mean, "length" if reason in _CUT and not stopped_here else "stop", num_tokens)


def _content(message: Mapping[str, Any], *, refused: bool) -> str:
    """Return the text of a message, which may be in parts, or missing if the server refused."""
    content = message.get("content") if refused else message["content"]
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part.get("type") == "text")
    return content or ""


def _logprobs(found: Mapping[str, Any] | None) -> list[float]:
    """Return the log-probability of each token, in the format of completions or of chat completions."""
    if not found:
        return []
    if found.get("content") is not None:
        return [float(token["logprob"]) for token in found["content"]]
    return [float(logprob) for logprob in found.get("token_logprobs") or () if logprob is not None]
