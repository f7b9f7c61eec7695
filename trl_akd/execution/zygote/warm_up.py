"""Preparation of the interpreter of a helper, so that its forks have less to do."""

import ast
import contextlib
import gc
import importlib
import linecache
import os
import socket
import sys
from functools import cache

from . import channel, program, verdict

_PRELOADED = (
    "__future__ abc array base64 bisect calendar cmath collections collections.abc contextlib copy dataclasses "
    "datetime decimal enum fractions functools heapq io itertools json math numbers operator re string struct "
    "textwrap time traceback types typing"
).split()  # not `random` and `threading`, whose hooks would make every fork 0.5 ms slower
_TRIVIAL = b"def number():\n    return 1\n"
_TESTS = (b"assert number() == 1\n", b"assert number() == 2\n")
_RUNS = 12  # enough for the interpreter to specialize code


def import_common_modules() -> None:
    """Import modules that programs often use."""
    for name in _PRELOADED:
        importlib.import_module(name)


@cache
def import_modules_of(preamble: str) -> None:
    """Import the modules that a preamble of programs imports, as far as they exist."""
    nodes = list(ast.walk(ast.parse(preamble)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    freeze_objects()


def freeze_objects() -> None:
    """Exclude all objects from garbage collection, which would copy the memory that they are in."""
    gc.collect()
    gc.freeze()


def run_trivial_programs() -> None:
    """Run trivial programs in this process, which fills the interpreter's caches and specializes the harness."""
    path, modules = list(sys.path), dict(sys.modules)
    for test in _TESTS * _RUNS:
        _move(channel.make_file(_TRIVIAL), program.CANDIDATE_FD)
        _move(channel.make_file(test), program.TEXT_FD)
        receiver, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with receiver:
            _move(sender.detach(), program.VERDICT_FD)
            receiver.send(bytes(verdict.NONCE_BYTES))
            progress = program.Progress(lambda stage: verdict.send_stage(program.VERDICT_FD, stage))
            progress.script = os.devnull
            try:
                program.run_test(progress, {"functions": [], "runners": [], "exits": []})
                verdict.send_passed(program.VERDICT_FD)
            except AssertionError as error:
                program.report(error, progress)
    for number in (program.CANDIDATE_FD, program.TEXT_FD, program.VERDICT_FD):
        _move(os.open(os.devnull, os.O_RDONLY), number)
    sys.path[:] = path
    sys.modules.clear()
    sys.modules.update(modules)
    linecache.clearcache()


def _move(fd: int, number: int) -> None:
    if fd != number:
        os.dup2(fd, number, inheritable=False)
        os.close(fd)
