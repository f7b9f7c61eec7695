"""HTTP sessions in which a request ends by a deadline, however slowly the bytes of its answer arrive."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

__all__ = ["Deadline", "deadline", "session"]


class Deadline:
    """Cut off the connection of a request once its time is over.

    Args:
        seconds (`float`):
            Time from now until then.

    Attributes:
        expired (`bool`): whether that has happened.
    """

    def __init__(self, seconds: float) -> None:
        self.expired = False
        self._socket: Any = None
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True
        self._timer.start()

    def watch(self, connected: Any) -> None:
        """Take the socket that the request uses."""
        self._socket = connected
        if self.expired:
            self._cut()

    def cancel(self) -> None:
        """Let the connection live, as its request has ended."""
        self._timer.cancel()

    def _cut(self) -> None:
        self.expired = True
        if self._socket is not None:
            with suppress(OSError):  # it may be closed
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


@contextmanager
def deadline(seconds: float) -> Iterator[Deadline]:
    """Give the requests that this thread sends inside the context, in a session of [`session`], so many seconds."""
    limit = Deadline(seconds)
    _current.deadline = limit
    try:
        yield limit
    finally:
        _current.deadline = None
        limit.cancel()


def session(connections: int) -> requests.Session:
    """Return a session that keeps so many connections open and knows deadlines."""
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
        _watch(self)  # it may be open from the last request
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
