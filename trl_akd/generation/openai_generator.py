"""Text from any server that speaks OpenAI's protocol: vLLM, SGLang, llama.cpp, `transformers serve`, OpenAI itself."""

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

from .json_client import JSONClient, MalformedAnswer, RefusedRequest
from .protocol import Completion, Request, check_prompts, first_numbers, until_stop
from .streaming import Arrival, StreamingGenerator

__all__ = ["OpenAIGenerator"]

_USAGE = ("prompt_tokens", "completion_tokens")


class OpenAIGenerator(StreamingGenerator):
    """Generate with a model behind an OpenAI-compatible server.

    Prompts go out one a request, `concurrency` at a time. A server that gives fewer than `n` choices is asked again
    with another seed; one that refuses log-probabilities is asked without. Log-probabilities are the server's, by its
    own definition. Whether BOS opens the prompt, and what a model's generation settings do besides, is the server's
    decision: `transformers serve`, for one, samples only where they say `do_sample`.

    A `finish_reason` other than `"length"`, such as `"content_filter"`, counts as `"stop"`.

    Args:
        base_url (`str`):
            Address up to and including the version, such as `"http://localhost:8000/v1"`.
        model (`str`):
            Name under which the server knows the model.
        api_key (`str`, *optional*):
            Key; by default the environment variable `OPENAI_API_KEY`, if set.
        chat (`bool`, *optional*, defaults to `False`):
            Send each prompt as a user's message to `/chat/completions` instead of as text to `/completions`.
        concurrency (`int`, *optional*, defaults to `8`):
            Most requests under way together.
        timeout (`float`, *optional*, defaults to `60.0`):
            Seconds to wait for the server to send something; without streaming it sends nothing until it has finished,
            so allow for the longest completion.
        max_retries (`int`, *optional*, defaults to `5`):
            Repetitions of a request after status 429 or 5xx, a failed connection, a time-out or a malformed answer.
        backoff (`float`, *optional*, defaults to `1.0`):
            Seconds before the first repetition, doubled with each further one; `Retry-After` takes precedence.
        extra_body (`Mapping`, *optional*):
            Fields to add to each request, or to replace; `None` removes one.

    Attributes:
        requests (`int`): requests sent so far, repetitions included.
        tokens (`int`): tokens of prompts and completions so far, as the server counts them. Of a server that does not
            tell, completions alone count: by their log-probabilities or else, each, as `max_new_tokens`.

    Raises:
        ValueError: If an argument is outside its range.

    Example:

    ```python
    >>> from trl_akd.generation import OpenAIGenerator
    >>> generator = OpenAIGenerator("http://localhost:8000/v1", "Qwen/Qwen2.5-Coder-7B")
    >>> generator.requests, generator.tokens
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
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"`concurrency` is {concurrency}; allow at least one request at a time.")
        self.tokens = 0
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
        self._wants_logprobs = True
        self._lock = threading.Lock()

    @property
    def requests(self) -> int:
        """Requests sent so far, repetitions included."""
        return self._client.requests

    @property
    def model_name(self) -> str:
        """Name under which the server knows the model."""
        return self._model

    def stream(
        self,
        prompts: list[str],
        *,
        n: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_new_tokens: int = 512,
        stop: Sequence[str] = (),
        seed: int | None = None,
    ) -> Iterator[Arrival]:
        """Yield completions as answers come.

        Where it ends early, by an error or Ctrl-C, requests under way are waited for and their answers yielded.

        Raises:
            ValueError: If an argument is outside its range.
            GenerationError: If the server refuses or gives no usable answer.
        """
        request = Request(n, temperature, top_p, max_new_tokens, stop, seed)
        check_prompts(prompts)
        call = _Call(len(prompts) * n)
        with ThreadPoolExecutor(self._concurrency) as pool:
            try:
                for index, (prompt, first) in enumerate(zip(prompts, first_numbers(prompts, n), strict=True)):
                    pool.submit(call.follow, index, self._continue(prompt, first, request))
                yield from call.arrivals()
            except (Exception, KeyboardInterrupt):
                call.end(pool)
                yield from call.late_arrivals()
                raise
            finally:
                call.end(pool)

    def _continue(self, prompt: str, first: int, request: Request) -> Iterator[list[Completion]]:
        """Ask until all completions of a prompt are there."""
        done = 0
        while done < request.n:
            wanted = request.n - done
            body = self._body(prompt, wanted, request.sample_seed(prompt, first + done), request)
            found = self._ask(body, request)[:wanted]
            done += len(found)
            yield found

    def _ask(self, body: dict[str, Any], request: Request) -> list[Completion]:
        path = "/chat/completions" if self._chat else "/completions"
        if not self._wants_logprobs:
            body.pop("logprobs", None)
        try:
            return self._client.post(path, body, lambda answer: self._read(answer, request))
        except RefusedRequest as refusal:
            if "logprobs" not in body or "logprobs" not in refusal.excerpt:
                raise
        self._wants_logprobs = False
        return self._ask(body, request)

    def _body(self, prompt: str, n: int, seed: int, request: Request) -> dict[str, Any]:
        question = {"messages": [{"role": "user", "content": prompt}]} if self._chat else {"prompt": prompt}
        sampling = {"n": n, "top_p": request.top_p, "seed": seed} if request.temperature > 0 else {}
        body = {
            "model": self._model,
            **question,
            **sampling,
            "temperature": request.temperature,
            "max_tokens": request.max_new_tokens,
            "stop": list(request.stop) or None,
            "logprobs": True if self._chat else 1,
            **self._extra_body,
        }
        return {name: value for name, value in body.items() if value is not None}

    def _read(self, answer: Any, request: Request) -> list[Completion]:
        try:
            choices = answer["choices"]
            usage = answer.get("usage") or {}
            paid = int(usage.get("completion_tokens") or 0) if len(choices) == 1 else 0
            completions = [_completion(choice, paid or None, request.stop) for choice in choices]
            told = int(usage.get("total_tokens") or sum(int(usage.get(name) or 0) for name in _USAGE))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise MalformedAnswer(f"with an answer of another form ({type(error).__name__}: {error})") from None
        if not completions:
            raise MalformedAnswer("with an answer that holds no choice")
        with self._lock:
            self.tokens += told or sum(completion.num_tokens or request.max_new_tokens for completion in completions)
        return completions


class _Call:
    """Bring what the requests of one call find from their threads to the one that asked.

    Args:
        wanted (`int`):
            Completions that are to come.
    """

    def __init__(self, wanted: int) -> None:
        self._ended = False
        self._wanted = wanted
        self._queue: SimpleQueue[Arrival | Exception] = SimpleQueue()

    def follow(self, index: int, parts: Iterator[list[Completion]]) -> None:
        """Take the completions of a prompt as they come, in a thread."""
        try:
            for completions in parts:
                self._queue.put((index, completions))
                if self._ended:
                    return
        except Exception as error:
            self._queue.put(error)

    def end(self, pool: ThreadPoolExecutor) -> None:
        """Send no more requests, and wait for those under way."""
        self._ended = True
        pool.shutdown(cancel_futures=True)

    def arrivals(self) -> Iterator[Arrival]:
        """Yield all that is wanted, or raise the first error."""
        while self._wanted:
            found = self._queue.get()
            if isinstance(found, Exception):
                raise found
            self._wanted -= len(found[1])
            yield found

    def late_arrivals(self) -> Iterator[Arrival]:
        """Yield what has come since; errors have been one too many already."""
        while not self._queue.empty():
            found = self._queue.get()
            if not isinstance(found, Exception):
                yield found


def _completion(choice: Mapping[str, Any], paid: int | None, stop: Sequence[str]) -> Completion:
    written = choice["message"]["content"] or "" if "message" in choice else choice["text"]
    text, stopped_here = until_stop(written, stop)
    logprobs = _logprobs(choice.get("logprobs"))
    # Where the server wrote on behind a stop string, its log-probabilities are not those of the text.
    mean = sum(logprobs) / len(logprobs) if logprobs and not stopped_here else None
    cut = choice.get("finish_reason") == "length" and not stopped_here
    return Completion(text, mean, "length" if cut else "stop", paid or len(logprobs) or None)


def _logprobs(found: Mapping[str, Any] | None) -> list[float]:
    """Return one log-probability a token, of either form: that of texts or that of chats."""
    if not found:
        return []
    if found.get("content") is not None:
        return [float(token["logprob"]) for token in found["content"]]
    return [float(logprob) for logprob in found.get("token_logprobs") or () if logprob is not None]
