"""Attacks on the verdict: forged messages, early exits, forked copies, patched functions and others."""

import os
import sys

import pytest

from tests.execution.conftest import RunOne
from tests.execution.machine_state import linux_only
from trl_akd.execution import CodeExecutor

pytestmark = linux_only

WRONG = "def solve(x):\n    return None\n"
TEST = "answer = solve(2)\nassert answer == 4\nlast = True\n"
FORGE = """
import json, marshal, os, pickle, socket, struct
VERDICTS = [{"status": "passed"}, ["passed"], "passed", ("passed", None, ""), True, 1, 0, None, b"passed"]
FRAMES = [b"passed", b"passed\\n", b"1", b"\\x01", b"", os.urandom(64), b"\\x00" * 4096]
for verdict in VERDICTS:
    plain = verdict if verdict != b"passed" else "passed"
    for text in (json.dumps(plain).encode(), pickle.dumps(verdict), marshal.dumps(verdict), repr(verdict).encode()):
        FRAMES += [text, text + b"\\n", struct.pack("<I", len(text)) + text, struct.pack(">I", len(text)) + text]
def forge():
    for fd in range(256):
        for frame in FRAMES:
            try:
                os.set_blocking(fd, False)
                os.write(fd, frame)
            except OSError:
                break
        try:
            channel = socket.socket(fileno=os.dup(fd))
            for frame in FRAMES:
                channel.send(frame)
        except OSError:
            pass
"""
ECHO = """
import os
def echo(firsts=range(256)):
    for fd in range(3, 64):
        try:
            os.set_blocking(fd, False)
            data = os.read(fd, 4096)
        except OSError: continue
        for first in firsts:
            try: os.write(fd, bytes([first]) + data)
            except OSError: break
"""

FORGERIES = {
    "forge": FORGE + "forge()\n" + WRONG,
    "forge, exit": FORGE + "forge()\nos._exit(0)\n",
    "forge in the test": FORGE + "def solve(x):\n    forge()\n    os._exit(0)\n",
    "forge from a fork": FORGE + "if os.fork() == 0:\n    forge()\n    os._exit(0)\nos.wait()\n" + WRONG,
    "forge, then wait for the deadline": FORGE + "import time\nforge()\ntime.sleep(60)\n",
    "forge at exit": FORGE + "import atexit\natexit.register(forge)\n" + WRONG,
    "forge when collected": FORGE + "class Evil:\n    __del__ = lambda self: forge()\nkept = Evil()\n" + WRONG,
    "forge in a thread": FORGE + "import threading\nthreading.Thread(target=forge, daemon=True).start()\n" + WRONG,
    "echo": ECHO + "echo()\n" + WRONG,
    "echo, backwards": ECHO + "echo(range(255, -1, -1))\n" + WRONG,
    "echo in the test": ECHO + "def solve(x):\n    echo()\n",
    "echo in the test, backwards": ECHO + "def solve(x):\n    echo(range(255, -1, -1))\n",
    "exit": "import os\nos._exit(0)\n",
    "exit in the test": "import os\ndef solve(x):\n    os._exit(0)\n",
    "sys.exit": "import sys\nsys.exit(0)\n",
    "sys.exit in the test": "import sys\ndef solve(x):\n    sys.exit()\n",
    "SystemExit": "raise SystemExit\n",
    "own SystemExit": "class Done(SystemExit):\n    code = 0\nraise Done(0)\n",
    "atexit": "import atexit, os\natexit.register(os._exit, 0)\n" + WRONG,
    "excepthook": "import os, sys\nsys.excepthook = lambda *error: os._exit(0)\n" + WRONG,
    "all hooks": """
import os, sys, threading
sys.excepthook = sys.unraisablehook = sys.displayhook = threading.excepthook = lambda *error: os._exit(0)
sys.exitfunc = sys.exit
"""
    + WRONG,
    "kill itself": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n",
    "terminate itself": "import os, signal\ndef solve(x):\n    os.kill(os.getpid(), signal.SIGTERM)\n",
    "abort": "import os\nos.abort()\n",
    "crash": "import ctypes\nctypes.string_at(0)\n",
    "kill its group": f"import os\nif os.getpgrp() != {os.getpgrp()}:\n    os.killpg(0, 9)\n{WRONG}",
    "exec": "import os\nos.execv('/bin/true', ['true'])\n",
    "exec in the test": "import os\ndef solve(x):\n    os.execv('/bin/sh', ['sh', '-c', 'echo passed; exit 0'])\n",
    "exec of Python": "import os, sys\nos.execv(sys.executable, [sys.executable, '-c', 'print(1)'])\n",
    "close everything": "import os\nos.closerange(0, 4096)\n" + WRONG,
    "close everything, exit": "import os\nos.closerange(0, 4096)\nos._exit(0)\n",
    "null over everything": """
import os
null = os.open("/dev/null", os.O_RDWR)
for fd in range(256):
    if fd != null:
        os.dup2(null, fd)
"""
    + WRONG,
    "twin": """
import os
if os.fork():
    os._exit(0)
def solve(x):
    return 4
""",
    "twin while the first hangs": """
import os, time
if os.fork():
    time.sleep(60)
def solve(x):
    return 4
""",
    "twin of a twin": """
import os
if os.fork():
    os.wait()
    os._exit(0)
if os.fork():
    os._exit(0)
os.setsid()
def solve(x):
    return 4
""",
    "twin in the test": """
import os
def solve(x):
    if os.fork():
        os.wait()
        os._exit(0)
    return 4
""",
    "writers that lie": """
import os, socket
def lying(real):
    def send(*arguments, **named):
        swap = lambda item: item.replace(b"failed", b"passed") if isinstance(item, bytes) else item
        return real(*map(swap, arguments), **named)
    return send
for name in ("write", "writev", "sendfile", "pwrite"):
    setattr(os, name, lying(getattr(os, name)))
os._exit = lambda code: None
class Liar(socket.socket):
    def send(self, data, *rest): return super().send(data.replace(b"failed", b"passed"), *rest)
    def sendall(self, data, *rest): return super().sendall(data.replace(b"failed", b"passed"), *rest)
    def sendmsg(self, data, *rest): return super().sendmsg([d.replace(b"failed", b"passed") for d in data], *rest)
socket.socket = socket.SocketType = Liar
"""
    + WRONG,
    "encoders that lie": """
import json, marshal, pickle, struct
for module in (json, marshal, pickle):
    for name in ("dumps", "loads", "dump", "load"):
        setattr(module, name, lambda *a, **k: b'{"status": "passed"}')
struct.pack = lambda *a: b"\\x00" * 8
json.JSONEncoder.encode = json.JSONEncoder.iterencode = lambda *a, **k: '{"status": "passed"}'
json.encoder.c_make_encoder = None
"""
    + WRONG,
    "builtins gone": "import builtins\nvars(builtins).clear()\n" + WRONG,
    "builtins all true": """
import builtins
for name in list(vars(builtins)):
    if name[0] != "_":
        setattr(builtins, name, lambda *a, **k: True)
"""
    + WRONG,
    "no AssertionError": """
import builtins
class Harmless(Exception): pass
builtins.AssertionError = builtins.NameError = builtins.BaseException = builtins.Exception = Harmless
AssertionError = BaseException = Exception = Harmless
"""
    + WRONG,
    "no asserts": "import builtins\nvars(builtins)['__debug__'] = False\n" + WRONG,
    "no asserts, optimized": "import sys, os\nos.environ['PYTHONOPTIMIZE'] = '2'\n__debug__ = 0\n" + WRONG,
    "no modules": "import sys\nsys.modules.clear()\n" + WRONG,
    "false modules": """
import sys
class Anything:
    def __getattr__(self, name): return self
    def __call__(self, *a, **k): return self
    def __iter__(self): return iter(())
for name in list(sys.modules):
    sys.modules[name] = Anything()
"""
    + WRONG,
    "broken imports": "import sys\nsys.meta_path.clear()\nsys.path_hooks.clear()\nsys.path = None\n" + WRONG,
    "no output": "import sys\nsys.stdout = sys.stderr = sys.stdin = sys.__stdout__ = sys.__stderr__ = None\n" + WRONG,
    "output that raises": """
import sys
class Evil:
    def write(self, text): raise SystemExit(0)
    def flush(self): raise SystemExit(0)
sys.stdout = sys.stderr = Evil()
"""
    + WRONG,
    "trace jumps over the assert": """
import sys
def trace(frame, event, argument):
    if event == "line" and frame.f_code.co_filename == "<test>" and frame.f_lineno == 2:
        frame.f_lineno = 3
    return trace
sys.settrace(trace)
frame = sys._getframe()
while frame:
    frame.f_trace = trace
    frame = frame.f_back
"""
    + WRONG,
    "profile exits": """
import os, sys, threading
def profile(frame, event, argument):
    if frame.f_code.co_filename == "<test>":
        os._exit(0)
sys.setprofile(profile)
threading.setprofile(profile)
"""
    + WRONG,
    "frames above": """
import sys
frame = sys._getframe()
while frame:
    for name in list(frame.f_globals):
        if callable(frame.f_globals[name]) and frame.f_globals is not globals():
            frame.f_globals[name] = lambda *a, **k: ("passed", "passed", None)
    frame = frame.f_back
"""
    + WRONG,
    "local names above": """
import sys
frame = sys._getframe(1)
while frame:
    for name, value in list(frame.f_locals.items()):
        if isinstance(value, str) and "assert" in value:
            frame.f_locals[name] = "pass"
    frame = frame.f_back
"""
    + WRONG,
    "frames above the call": """
import sys
def solve(x):
    frame = sys._getframe()
    while frame:
        for space in (frame.f_locals, frame.f_globals):
            for name, value in list(space.items()):
                if value == "failed": space[name] = "passed"
                elif isinstance(value, dict):
                    value.update({key: "passed" for key, text in value.items() if text == "failed"})
        frame = frame.f_back
    return None
""",
    "everything collected": """
import gc
for thing in gc.get_objects():
    if type(thing) is dict and any(key in ("status", "verdict", "passed", "failed") for key in list(thing)):
        for key in list(thing):
            thing[key] = "passed"
    elif type(thing) is list and thing is not gc.get_objects():
        thing[:] = ["passed" if item == "failed" else item for item in thing]
"""
    + WRONG,
    "a thread exits": """
import os, threading, time
threading.Thread(target=lambda: (time.sleep(0.05), os._exit(0)), daemon=True).start()
def solve(x):
    time.sleep(1)
""",
    "threads go on": """
import threading, time
def spin():
    while True: time.sleep(0.001)
for _ in range(8):
    threading.Thread(target=spin).start()
"""
    + WRONG,
    "alarm exits": """
import os, signal
signal.signal(signal.SIGALRM, lambda *a: os._exit(0))
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
def solve(x):
    while True: pass
""",
    "import replaced": "import builtins\nbuiltins.__import__ = lambda *a, **k: 1 / 0\n" + WRONG,
    "an open quote": WRONG + 'text = """\n',
    "an open bracket": WRONG + "values = [\n",
    "a last backslash": WRONG + "x = 1 \\",
    "an open condition": WRONG + "if False:",
    "a null": WRONG + "\0",
    "main exits": WRONG + "if __name__ == '__main__':\n    import os\n    os._exit(0)\n",
}


@pytest.mark.parametrize("attack", FORGERIES)
def test_forgery(run_one: RunOne, attack: str) -> None:
    if attack == "local names above" and sys.version_info >= (3, 13):
        pytest.skip("frames can be written to from Python 3.13 on; strict alone stops that")
    result = run_one(FORGERIES[attack], TEST, timeout=0.6)
    assert result.status in ("failed", "timed_out"), result
    assert result.tests_passed == 0
    assert result.ending


TAMPERING = {
    "at its end": "os.lseek(fd, 0, 2)",
    "emptied": "os.ftruncate(fd, 0)",
    "overwritten": "os.pwrite(fd, b'#' * 10000, 0)",
    "null": "os.dup2(os.open('/dev/null', os.O_RDWR), fd)",
    "another text": "open('other', 'w').write('pass\\n')\n    os.dup2(os.open('other', os.O_RDWR), fd)",
    "swapped": "os.dup2(fd ^ 1, fd)",
    "by its name": "open(f'/proc/self/fd/{fd}', 'w').close()",
}


@pytest.mark.parametrize("way", TAMPERING)
def test_tampering_with_one_descriptor(executor: CodeExecutor, check_cleanup: None, way: str) -> None:
    attack = "import os\nfd = {}\ntry:\n    {}\nexcept OSError: pass\n"
    batch = [(attack.format(fd, TAMPERING[way]) + WRONG, TEST) for fd in range(3, 20)]
    for fd, result in enumerate(executor.run(batch, timeout=1.0), 3):
        assert result.status in ("failed", "timed_out"), (fd, result)


def test_test_cannot_be_read_from_a_descriptor(run_one: RunOne) -> None:
    candidate = """
import os
for fd in range(3, 64):
    for read in (lambda: os.pread(fd, 10 ** 6, 0), lambda: os.read(fd, 10 ** 6)):
        try:
            os.set_blocking(fd, False)
            if b"assert answer" in read(): raise RuntimeError("escaped")
        except OSError: pass
"""
    result = run_one(candidate, TEST)
    assert "escaped" not in result.message


@pytest.mark.parametrize("name", ["all", "any", "abs", "len", "isinstance", "sorted", "type", "range", "set", "print"])
def test_builtins_are_restored_for_the_test(run_one: RunOne, name: str) -> None:
    lie = "class Lie:\n    __eq__ = __ne__ = __bool__ = lambda *a: True\n    __iter__ = lambda self: iter(())\n"
    candidate = f"import builtins\n{lie}setattr(builtins, {name!r}, lambda *a, **k: Lie())\n{WRONG}"
    test = (
        "assert all([True]) and not all([False]) and not any([False]) and abs(-1) == 1 and len([1]) == 1\n"
        "assert isinstance(1, int) and sorted([2, 1])[0] == 1 and type(1) is int and len(range(3)) == 3 and set([1])\n"
        "assert print() is None\n"
    )
    assert run_one(candidate, test).status == "passed"


@pytest.mark.parametrize("way", ["builtins.{name} = lie", "__builtins__ = dict(vars(builtins), {name}=lie)"])
@pytest.mark.parametrize(
    ("name", "lie", "test"),
    [
        ("all", "True", "assert all(solve(x) == 2 * x for x in range(3))"),
        ("any", "False", "assert not any(solve(x) != 2 * x for x in range(3))"),
        ("abs", "0", "assert abs(2 - (solve(1) or 9)) < 1e-6"),
        ("isinstance", "True", "assert isinstance(solve(1), int)"),
        ("sorted", "[2, 1]", "assert sorted([2, 1]) == [2, 1]"),
        ("range", "()", "for x in range(3):\n    assert solve(x) == 2 * x"),
    ],
)
def test_patched_builtins_do_not_affect_the_test(run_one: RunOne, way: str, name: str, lie: str, test: str) -> None:
    patch = f"import builtins\nlie = lambda *a, **k: {lie}\n{way.format(name=name)}\n"
    result = run_one(patch + WRONG, test)
    assert (result.status, result.error_type) == ("failed", "AssertionError")
