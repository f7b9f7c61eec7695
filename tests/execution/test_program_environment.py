"""Programs see the same environment as under `python candidate.py`, which is the oracle."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.execution.conftest import HONEST, RunOne
from tests.execution.machine_state import ROOT, linux_only

pytestmark = linux_only

PROGRAMS = {
    "argv": "import sys\nprint(len(sys.argv), sys.argv[0].rsplit('/')[-1], sys.argv[1:])",
    "orig_argv": "import os, sys\nprint(len(sys.orig_argv), [os.path.basename(word) for word in sys.orig_argv[1:]])",
    "argv changed": "import sys\nsys.argv += ['5']\nprint(sum(map(int, sys.argv[1:])))",
    "fileinput": "import fileinput\nprint([line.strip() for line in fileinput.input()])",
    "argparse": "import argparse\nparser = argparse.ArgumentParser()\n"
    "parser.add_argument('--n', type=int, default=3)\nparser.add_argument('names', nargs='*')\n"
    "print(parser.parse_args())",
    "usage": "import argparse\nprint(argparse.ArgumentParser().format_usage())",
    "optparse": "import optparse\nprint(optparse.OptionParser().parse_args()[1])",
    "getopt": "import getopt, sys\nprint(getopt.getopt(sys.argv[1:], 'x:'))",
    "file or input": "import sys\nsource = open(sys.argv[1]) if len(sys.argv) > 1 else sys.stdin\n"
    "print(source.read())",
    "no command line": "import sys\nif len(sys.argv) != 1:\n    sys.exit('usage')\nprint(sys.stdin.readline())",
    "name and file": "import os\nprint(__name__, os.path.basename(__file__), os.path.isabs(__file__), __doc__)",
    "own folder": "import os\nhere = os.path.dirname(os.path.abspath(__file__))\nprint(here == os.getcwd())",
    "own module": "open('helper_of_mine.py', 'w').write('x = 7')\nimport helper_of_mine\nprint(helper_of_mine.x)",
    "path": "import os, sys\nprint(os.path.realpath(sys.path[0]) == os.path.realpath(os.getcwd()))",
    "main module": "import sys\nx = 5\nprint(sys.modules['__main__'].x)",
    "input": "print(input(), input())\ntry:\n    input()\nexcept EOFError:\n    print('end')",
    "standard streams": "import sys\nprint(sys.stdin.fileno(), sys.stdout.fileno(), sys.stdin.isatty(), "
    "sys.stdin.encoding)",
    "stdin by number": "print(open(0).read())",
    "stdin as bytes": "import sys\nprint(sys.stdin.buffer.read(), sys.stdin.buffer.read())",
    "stdin by name": "print(open('/dev/stdin').read())",
    "encodings": "import locale, sys\nprint(sys.getdefaultencoding(), sys.getfilesystemencoding(), 'ä'.encode())",
    "recursion": "import sys\nprint(sys.getrecursionlimit(), sys.getswitchinterval())",
    "optimization": "import sys\nprint(__debug__, sys.flags.optimize, sys.flags.isolated, sys.flags.inspect)",
    "threads": "import threading\nt = threading.current_thread()\nprint(t is threading.main_thread(), t.name, "
    "threading.active_count())",
    "collector": "import gc\nprint(gc.isenabled(), gc.get_threshold())",
    "signals": "import signal\nodd = [s.name for s in signal.Signals if s not in (signal.SIGPIPE, signal.SIGXFSZ, "
    "signal.SIGINT) and signal.getsignal(s) not in (signal.SIG_DFL, None)]\n"
    "print(odd, signal.getsignal(signal.SIGPIPE), signal.pthread_sigmask(signal.SIG_BLOCK, []))",
    "umask": "import os\nprint(oct(os.umask(0)))",
    "hooks": "import sys\nprint(sys.gettrace(), sys.getprofile(), sys.excepthook is sys.__excepthook__)",
    "warnings": "import warnings\nwarnings.warn('x')\nprint(warnings.filters != None)",
    "source": "import inspect\ndef f(x):\n    return x + 1\nclass A:\n    y = 2\n"
    "print(inspect.getsource(f), inspect.getsource(A))",
    "traceback": "import traceback\ntry:\n    1 / 0\nexcept ZeroDivisionError:\n"
    "    print(traceback.format_exc().count('1 / 0'), traceback.extract_stack()[0].name)",
    "exit": "print(1)\nexit()\nprint(2)",
    "at exit": "import atexit\natexit.register(print, 'last')\nprint('first')",
    "children": "import os\nprint(os.getpid() != os.getppid(), flush=True)\nif os.fork() == 0:\n    print('child')\n"
    "    raise SystemExit(3)\nprint(os.waitstatus_to_exitcode(os.wait()[1]))",
    "child that ends well": "import os\nif os.fork() == 0:\n    pass\nelse:\n    print(os.wait()[1])",
    "child that fails": "import os\nif os.fork() == 0:\n    1 / 0\nprint(os.waitstatus_to_exitcode(os.wait()[1]))",
    "child's signals": "import subprocess\nprint(subprocess.run(['sh', '-c', 'kill -TERM $$']).returncode)",
    "own text": "import inspect, sys\nhere = open(__file__).read()\n"
    "print(here == open(sys.argv[0]).read(), len(here))\ndef f(): pass\n"
    "print(inspect.getfile(f) == inspect.getsourcefile(f) == __file__, inspect.getmodule(f).__name__)",
    "own traceback": "import traceback\ntry:\n    int('x')\nexcept ValueError:\n"
    "    print(traceback.format_exc().replace(__file__, 'candidate.py'))",
    "runs itself": "import subprocess, sys\nif len(sys.argv) > 1:\n    print('again', sys.argv[1:])\nelse:\n"
    "    print(subprocess.check_output([sys.executable, __file__, '7'], text=True))",
    **{
        f"processes by {method}": "import multiprocessing\ndef square(x):\n    return x * x\n"
        f"if __name__ == '__main__':\n    with multiprocessing.get_context('{method}').Pool(1) as pool:\n"
        "        print(pool.map(square, [1, 2]))"
        for method in ("fork", "spawn", "forkserver")
    },
    "help": "print(callable(help), callable(copyright), callable(credits), callable(license))",
    "standard output closed": "import sys\nprint(1)\nsys.stdout.close()",
    "dataclass": "import dataclasses, pickle\n@dataclasses.dataclass\nclass A:\n    x: int\n"
    "print(pickle.loads(pickle.dumps(A(3))), A.__module__)",
}


def _default_signals() -> None:
    """Reset the signal handlers that a shell sets for background jobs."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize("name", PROGRAMS)
def test_script_behaves_as_under_python(run_one: RunOne, tmp_path: Path, name: str) -> None:
    program, given = PROGRAMS[name] + "\n", "3 4\nfive\n"
    (tmp_path / "candidate.py").write_text(program)
    command = [sys.executable, "candidate.py"]
    surroundings = {"LANG": "C.UTF-8", "PATH": "/usr/bin:/bin"}
    oracle = subprocess.run(
        command,
        cwd=tmp_path,
        env=surroundings,
        input=given,
        capture_output=True,
        text=True,
        preexec_fn=_default_signals,
    )
    result = run_one(program, {"inputs": [given], "outputs": [oracle.stdout]}, timeout=10.0)
    if name not in ("child that fails",):
        assert oracle.returncode == 0, oracle.stderr
    assert result.passed, (result.message, oracle.stdout)


@pytest.mark.parametrize(
    "look",
    [
        "repr(sys.argv) + repr(sys.orig_argv) + repr(sys.path)",
        "repr(dict(os.environ))",
        "open('/proc/self/cmdline').read() + open('/proc/self/environ').read()",
        "repr([(m, getattr(m, '__file__', ''), getattr(m, '__path__', '')) for m in sys.modules.values()])",
        "repr([frame.filename for frame in traceback.extract_stack()])",
        "repr([os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd') if os.path.lexists("
        "f'/proc/self/fd/{fd}')])",
        "repr(sys.meta_path) + repr(sys.path_importer_cache) + repr(vars(sys.modules['__main__']))",
        "repr([c.co_filename for c in map(lambda f: getattr(f, '__code__', None), gc.get_objects()) if c])",
    ],
)
def test_no_path_of_the_caller_is_visible(run_one: RunOne, look: str) -> None:
    candidate = f"import gc, os, sys, traceback\nseen = {look}\nassert {str(ROOT)!r} not in seen, seen\n{HONEST[0]}"
    result = run_one(candidate)
    assert result.passed, result.message
