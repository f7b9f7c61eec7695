"""Strict mode: test and candidate run in two processes, which exchange only plain data.

    test's process ──── {"call": "f", "arguments": …} ───> candidate's process, forked before the test is read
                   <─── {"returned": …} or {"raised": …} ───

The test's process accepts only plain values, so the candidate can only return wrong ones. The candidate cannot access
the memory of the test's process, and does not have the socket for the verdict.
"""

import builtins
import contextlib
import importlib
import os
import select
import signal
import struct
import sys
import types
from collections.abc import Callable
from typing import Any

from . import exceptions, linux, plain_data

_LENGTH = struct.Struct("!I")
_MAX_MESSAGE = 64 << 20
_MAX_CONSTANT = 1 << 20
_read, _write, _exit, _own_id = os.read, os.write, os._exit, os.getpid


class Pipe:
    """Exchange of plain data over two descriptors.

    Args:
        reader, writer (`int`): Descriptors of the pipes.
        peer (`int`, *optional*): Process descriptor of the other process. Its end is the end of the data, even if
            another process still has the pipe.
    """

    def __init__(self, reader: int, writer: int, peer: int | None = None) -> None:
        self._reader, self._writer, self._peer = reader, writer, peer
        self._owner = os.getpid()

    def send(self, message: dict[str, Any]) -> None:
        """Send a dict of plain data; a forked copy of the process that created this pipe exits instead."""
        if _own_id() != self._owner:
            _exit(0)
        data = plain_data.encode(message)
        view = memoryview(_LENGTH.pack(len(data)) + data)
        while view:
            view = view[_write(self._writer, view) :]

    def receive(self) -> dict[str, Any]:
        """Wait for a dict of plain data.

        Raises:
            EOFError: If the other process has ended.
            ValueError: If its message is invalid.
        """
        (length,) = _LENGTH.unpack(self._take(_LENGTH.size))
        if length > _MAX_MESSAGE:
            raise ValueError(f"message of {length >> 20} MiB, more than the maximum of {_MAX_MESSAGE >> 20} MiB")
        message = plain_data.decode(self._take(length))
        if not isinstance(message, dict):
            raise ValueError("message that is not a dict")
        return message

    def _take(self, length: int) -> bytes:
        chunks = []
        while length:
            if self._peer is not None:
                ready, _, _ = select.select([self._reader, self._peer], [], [])
                if self._reader not in ready and not select.select([self._reader], [], [], 0)[0]:
                    raise EOFError
            chunk = _read(self._reader, min(length, 1 << 20))
            if not chunk:
                raise EOFError
            chunks.append(chunk)
            length -= len(chunk)
        return b"".join(chunks)


class CandidateError(Exception):
    """The candidate did not load; facts and message describe its exception."""

    def __init__(self, facts: dict[str, Any], message: str) -> None:
        super().__init__(message)
        self.candidate_facts = facts
        self.candidate_message = message


def start_candidate(run: Callable[[Pipe], None], closed_to_it: tuple[int, ...]) -> tuple[Pipe, int]:
    """Fork a process that calls `run`, without some descriptors; return the pipe to it and its id."""
    linux.set_dumpable(False)  # before the fork, so that the candidate can never read this memory
    requests, ask = os.pipe()
    answer, answers = os.pipe()
    candidate = os.fork()
    if candidate == 0:
        for fd in (ask, answer, *closed_to_it):
            os.close(fd)
        linux.set_dumpable(True)
        linux.die_with_parent(signal.SIGKILL)
        try:
            run(Pipe(requests, answers))
        finally:
            _exit(1)
    os.close(requests)
    os.close(answers)
    peer = os.pidfd_open(candidate) if hasattr(os, "pidfd_open") else None
    return Pipe(answer, ask, peer), candidate


def serve(pipe: Pipe, namespace: dict[str, Any], describe: Callable[[BaseException], dict[str, Any]]) -> None:
    """Send the names that the candidate defines, then answer calls; runs in the candidate's process."""
    functions = {name: value for name, value in namespace.items() if _is_function(value)}
    modules, constants, classes = {}, {}, []
    for name, value in namespace.items():
        if name.startswith("__") or name in functions:
            continue
        if isinstance(value, types.ModuleType):
            modules[name] = value.__name__
        elif isinstance(value, type):
            classes.append(name)
        else:
            with contextlib.suppress(TypeError, MemoryError):
                if len(plain_data.encode(value)) <= _MAX_CONSTANT:
                    constants[name] = value
    pipe.send({"functions": list(functions), "modules": modules, "constants": constants, "classes": classes})
    while True:
        try:
            request = pipe.receive()
        except EOFError:
            return
        pipe.send(_answer(functions, request, describe))


def receive_namespace(pipe: Pipe, candidate: int, enter: Callable[[str], None]) -> dict[str, Any]:
    """Wait until the candidate is loaded, and return a namespace of proxies; runs in the test's process.

    A candidate could redefine built-ins that the test uses, such as `abs`. Names of built-ins are therefore left out,
    except that of a candidate's only function, which must be the function under test.

    Raises:
        CandidateError: If it did not load.
    """
    while "functions" not in (message := _receive(pipe, candidate)):
        if "stage" in message:
            enter(str(message["stage"]))
        elif "facts" in message:
            raise CandidateError(message["facts"], str(message.get("message", "")))
    functions = message["functions"]
    namespace: dict[str, Any] = dict(message["constants"])
    namespace.update({name: _make_refusal(name) for name in message["classes"]})
    for name, module in message["modules"].items():
        if module in sys.modules or module.partition(".")[0] in sys.stdlib_module_names:
            with contextlib.suppress(ImportError):
                namespace[name] = importlib.import_module(module)  # imported here, not taken from the candidate
    namespace.update({name: _make_proxy(pipe, candidate, name) for name in functions if len(functions) > 1})
    namespace = {name: value for name, value in namespace.items() if not hasattr(builtins, name)}
    if len(functions) == 1:
        namespace[functions[0]] = _make_proxy(pipe, candidate, functions[0])
    return {name: value for name, value in namespace.items() if not name.startswith("__")}


def _receive(pipe: Pipe, candidate: int) -> dict[str, Any]:
    """Receive a message; if the candidate's process has ended, end this process in the same way."""
    try:
        return pipe.receive()
    except EOFError:
        _, status = os.waitpid(candidate, 0)
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            with contextlib.suppress(OSError):  # SIGKILL has no handler
                signal.signal(-code, signal.SIG_DFL)
            os.kill(os.getpid(), -code)
        _exit(code)


def _answer(
    functions: dict[str, Any], request: dict[str, Any], describe: Callable[[BaseException], dict[str, Any]]
) -> dict[str, Any]:
    arguments, keywords = request["arguments"], request["keywords"]
    try:
        returned = functions[request["call"]](*arguments, **keywords)
    except BaseException as error:
        return {
            "raised": describe(error),
            "message": exceptions.message(error),
            "arguments": [arguments, keywords],
        }
    try:
        plain_data.encode(returned)
        plain_data.encode([arguments, keywords])
    except (TypeError, MemoryError) as error:
        return {"refused": str(error) or "a value that is too large"}
    return {"returned": returned, "arguments": [arguments, keywords]}


def _make_proxy(pipe: Pipe, candidate: int, name: str) -> Callable[..., Any]:
    def proxy(*arguments: Any, **keywords: Any) -> Any:
        with contextlib.suppress(BrokenPipeError):  # receiving says more
            pipe.send({"call": name, "arguments": list(arguments), "keywords": keywords})
        answer = _receive(pipe, candidate)
        if "refused" in answer:
            raise TypeError(f"strict mode supports only plain data; {name} returned or changed {answer['refused']}")
        _apply_changes([list(arguments), keywords], answer["arguments"])
        if "raised" in answer:
            raise _as_exception(answer["raised"], str(answer["message"]))
        return answer["returned"]

    proxy.__name__ = proxy.__qualname__ = name
    return proxy


def _make_refusal(name: str) -> Callable[..., Any]:
    def refuse(*arguments: Any, **keywords: Any) -> Any:
        raise TypeError(f"strict mode supports only plain data, and {name} is a class of the candidate")

    return refuse


def _as_exception(facts: dict[str, Any], message: str) -> BaseException:
    """Create the built-in exception of that name, or else a RuntimeError subclass of that name."""
    name = str(facts.get("error_type"))
    kind: Any = getattr(builtins, name, None)
    if not (isinstance(kind, type) and issubclass(kind, BaseException)):
        kind = type(name, (RuntimeError,), {})
    error: BaseException
    try:
        error = kind(message)
    except TypeError:  # such as UnicodeDecodeError, which takes five arguments
        error = type(name, (ValueError,), {})(message)
    error.__dict__["candidate_facts"] = facts
    error.__dict__["candidate_message"] = message
    return error


def _apply_changes(here: Any, there: Any) -> None:
    """Apply the changes that the candidate made to its copies of containers."""
    if type(here) is not type(there):
        return
    if isinstance(here, list):
        here[:] = [_merged(old, new) for old, new in zip(here, there, strict=False)] + there[len(here) :]
    elif isinstance(here, dict):
        merged = {key: _merged(here[key], new) if key in here else new for key, new in there.items()}
        here.clear()
        here.update(merged)
    elif isinstance(here, set):
        here.clear()
        here.update(there)
    elif isinstance(here, bytearray):
        here[:] = there
    elif isinstance(here, tuple):
        for old, new in zip(here, there, strict=False):
            _apply_changes(old, new)


def _merged(old: Any, new: Any) -> Any:
    """Return the old object with the new content if it is mutable, else the new object."""
    if type(old) is type(new) and isinstance(old, list | dict | set | bytearray | tuple):
        _apply_changes(old, new)
        return old if not isinstance(old, tuple) or old == new else new
    return new


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, type)
