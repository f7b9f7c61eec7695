"""HTTP client of JSON services with retries, and sessions in which requests have a deadline."""

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from .protocol import GenerationError

__all__ = ["Deadline", "JSONClient", "MalformedAnswer", "RefusedRequest", "check_url", "deadline", "session"]

Answer = TypeVar("Answer")

_LONGEST_WAIT = 300.0  # seconds
_EXCERPT = 300  # maximum number of characters of a response in a message
_TRANSIENT = (408, 409, 425, 429)  # in addition to 5xx
_OF_ONE_REQUEST = (400, 413, 422)


class MalformedAnswer(Exception):
    """A response has unexpected content; a retry may help."""


class RefusedRequest(GenerationError):
    """The service refused the request; a retry cannot help."""

    def __init__(self, message: str, status: int, excerpt: str) -> None:
        super().__init__(message)
        self.status = status
        self.excerpt = excerpt

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.status, self.excerpt)

    @property
    def concerns_one_request(self) -> bool:
        """Whether another request to the same service may be accepted."""
        return self.status in _OF_ONE_REQUEST


class _TransientFault(Exception):
    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class JSONClient:
    """Post requests to a service, with retries.

    Requests are retried with exponential backoff and jitter after status 408, 409, 425, 429 and 5xx, connection
    errors, timeouts and malformed responses. A `Retry-After` header takes precedence over the backoff. Any other
    status is a refusal.

    Args:
        base_url (`str`): Base URL.
        api_key (`str`, *optional*): Bearer token; never part of a message.
        timeout (`float`): Timeout in seconds of the connection, and of the whole response.
        max_retries (`int`): Maximum number of retries of a request.
        backoff (`float`): Seconds before the first retry, doubled with each further retry.
        connections (`int`): Number of open connections.
        names (`Mapping[str, str]`, *optional*): Names of these arguments in messages, where they differ.

    Raises:
        ValueError: If an argument is outside its range, or the URL or key is malformed.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None,
        timeout: float,
        max_retries: int,
        backoff: float,
        connections: int,
        names: Mapping[str, str] | None = None,
    ) -> None:
        self._names = names or {}
        check_url(base_url, self._name("base_url"), self._name("api_key"))
        if timeout <= 0:
            raise ValueError(f"{self._name('timeout')} is {timeout}; give more than 0 seconds.")
        if max_retries < 0:
            raise ValueError(f"{self._name('max_retries')} is {max_retries}; give 0 or more.")
        if backoff < 0:
            raise ValueError(f"`backoff` is {backoff}; give 0 seconds or more.")
        self.requests = 0
        self._base_url = base_url.rstrip("/")
        self._key = self._checked_key(api_key)
        self._timeout = timeout
        self._max_retries = max_retries
        self._backoff = backoff
        self._jitter = random.Random()  # does not affect the caller's random state
        self._lock = threading.Lock()
        self._session = session(connections)
        self._session.auth = self._sign  # credentials in .netrc would override a header

    def post(
        self,
        path: str,
        body: Mapping[str, Any],
        read: Callable[[Any], Answer],
        before_attempt: Callable[[], None] = lambda: None,
        max_retries: int | None = None,
        pause: Callable[[float], Any] | None = None,
    ) -> Answer:
        """Post a body and return the result of `read` on the response.

        `max_retries` replaces the client's for this request, and `pause` the `time.sleep` between attempts.

        Raises:
            RefusedRequest: If the service refuses.
            GenerationError: If all attempts fail.
        """
        url = f"{self._base_url}{path}"
        max_retries = self._max_retries if max_retries is None else max_retries
        for attempt in range(max_retries + 1):
            before_attempt()
            try:
                return read(self._post_once(url, body))
            except (_TransientFault, MalformedAnswer) as error:
                fault = error
            if attempt < max_retries:
                (pause or time.sleep)(self._pause(attempt, getattr(fault, "retry_after", None)))
        raise GenerationError(
            f"{url} gave no valid response in {max_retries + 1} attempts, the last of which failed {fault}; check "
            "that the server runs and is not overloaded, or raise "
            f"{self._name('max_retries')} or {self._name('timeout')}."
        )

    def _post_once(self, url: str, body: Mapping[str, Any]) -> Any:
        with self._lock:
            self.requests += 1
        with deadline(self._timeout) as limit:
            try:
                response = self._session.post(url, json=body, timeout=self._timeout, allow_redirects=False)
            except requests.RequestException as error:
                if limit.expired or isinstance(error, requests.Timeout):
                    raise self._too_late() from None
                raise _TransientFault(f"because of {type(error).__name__}: {self._excerpt(str(error))}") from None
        if limit.expired:  # the response may be incomplete
            raise self._too_late()
        if response.status_code in _TRANSIENT or response.status_code >= 500:
            raise _TransientFault(
                f"with status {response.status_code}: {self._excerpt(response.text)}", _retry_after(response)
            )
        if not 200 <= response.status_code < 300:
            raise self._refusal(url, response)
        try:
            return response.json()
        except (ValueError, RecursionError):
            raise MalformedAnswer(f"because its response is not JSON: {self._excerpt(response.text)}") from None

    def _too_late(self) -> _TransientFault:
        return _TransientFault(f"because no response arrived within {self._timeout} s")

    def _refusal(self, url: str, response: requests.Response) -> RefusedRequest:
        excerpt = self._excerpt(response.text)
        key = f"{self._name('api_key')}, or its environment variable, such as OPENAI_API_KEY"
        address = self._name("base_url")
        remedy = {
            401: f"check {key}",
            403: f"check {key}, and what the key may use",
            404: f"check {address}, which usually ends in /v1, and the model's name",
        }.get(
            response.status_code,
            f"check {address}, {self._name('model')} and the request, whose fields `extra_body` can replace or remove",
        )
        return RefusedRequest(
            f"{url} refused with status {response.status_code}: {excerpt}; {remedy}.", response.status_code, excerpt
        )

    def _pause(self, attempt: int, retry_after: float | None) -> float:
        if retry_after is None:
            return min(self._backoff * 2.0**attempt, _LONGEST_WAIT) * self._jitter.uniform(0.5, 1.0)
        if retry_after > _LONGEST_WAIT:
            raise GenerationError(
                f"{self._base_url} asks to retry after {retry_after:.0f} s, which is too long to wait; run again then."
            )
        return retry_after

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key is not None:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def _name(self, argument: str) -> str:
        return f"`{self._names.get(argument, argument)}`"

    def _checked_key(self, key: str | None) -> str | None:
        key = (key or "").strip()
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ValueError(
                f"{self._name('api_key')} contains characters that are not allowed in a key; check that it was copied "
                "correctly."
            )
        return key or None

    def _excerpt(self, text: str) -> str:
        text = text if self._key is None else text.replace(self._key, "***")
        return repr(text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]}…")


def check_url(url: str, name: str, key: str) -> None:
    """Refuse an address of a server that is no URL, or that contains a password.

    Args:
        url (`str`): The address.
        name (`str`): Name of the address in messages.
        key (`str`): Name of the API key in messages.

    Raises:
        ValueError: If the address is malformed or contains a user name or password.
    """
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise ValueError(f"{name} contains a user name or password, which messages would show; use {key}.")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{name} is {url!r}; give an address such as 'http://localhost:8000/v1'.")


def _retry_after(response: requests.Response) -> float | None:
    """Return the delay in seconds of a `Retry-After` header, which contains seconds or a date."""
    value = response.headers.get("Retry-After", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


class Deadline:
    """Deadline of a request, which shuts down its connection."""

    def __init__(self, seconds: float) -> None:
        self.expired = False
        self._socket: Any = None
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True
        self._timer.start()

    def watch(self, connected: Any) -> None:
        """Set the socket that the request uses."""
        self._socket = connected
        if self.expired:
            self._cut()

    def cancel(self) -> None:
        """Cancel the deadline because the request has ended."""
        self._timer.cancel()

    def _cut(self) -> None:
        self.expired = True
        if self._socket is not None:
            with suppress(OSError):  # already closed
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


@contextmanager
def deadline(seconds: float) -> Iterator[Deadline]:
    """Limit the requests that this thread sends inside the context, in a session of [`session`], to `seconds`."""
    limit = Deadline(seconds)
    _current.deadline = limit
    try:
        yield limit
    finally:
        _current.deadline = None
        limit.cancel()


def session(connections: int) -> requests.Session:
    """Return a session that supports deadlines and keeps up to `connections` connections open."""
    made = requests.Session()
    for scheme in ("http://", "https://"):
        made.mount(scheme, _Adapter(pool_maxsize=connections))
    return made


_current = threading.local()


def _watch(connection: Any) -> None:
    limit = getattr(_current, "deadline", None)
    if limit is not None and connection.sock is not None:
        limit.watch(connection.sock)


class _HTTPConnection(HTTPConnection):
    def connect(self) -> None:
        super().connect()
        _watch(self)

    def request(self, *args: Any, **kwargs: Any) -> None:
        _watch(self)  # reused from an earlier request
        super().request(*args, **kwargs)


class _HTTPSConnection(HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        _watch(self)

    def request(self, *args: Any, **kwargs: Any) -> None:
        _watch(self)
        super().request(*args, **kwargs)


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
        return manager
