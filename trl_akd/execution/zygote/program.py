"""Execution inside a program's process: load the candidate, run its test, and report the outcome."""

import ast
import atexit
import builtins
import contextlib
import dis
import gc
import json
import linecache
import os
import signal
import sys
from collections.abc import Callable
from types import CodeType, ModuleType
from typing import Any, NoReturn

from . import builtin_names, confinement, exceptions, plain_data, strict, test_runner, verdict

# Descriptors of a program's process; 0 to 2 are its standard streams.
CANDIDATE_FD, TEXT_FD, OUTPUT_FD, VERDICT_FD = 3, 4, 5, 6
LAST_FD = VERDICT_FD
TEST = "<test>"
_READ_BYTES = 1 << 16

_compile = compile  # a program may replace the built-in


def main(mode: str, function: str | None, preamble: str, discovered: dict[str, Any]) -> NoReturn:
    """Run a program and send its verdict.

    Args:
        mode (`str`): `test`, a test program in the candidate's namespace; `strict`, the same in another process;
            `script`, from standard input to standard output; `call`, one call of `function`.
        function (`str`, *optional*): Name of the function, or of a method of `Solution`, for `call`.
        preamble (`str`): Imports to run in the candidate's namespace before it, for `script` and `call`.
        discovered (`dict`): Tests of a test program, for `test_runner.TestRun`.
    """
    # Local names, as a program can walk up the stack and replace globals of these modules.
    report_passed, report_failed, exit_code, leave = verdict.send_passed, report, exceptions.exit_code, os._exit
    own_id, current_id = os.getpid(), os.getpid
    progress = Progress(lambda stage: verdict.send_stage(VERDICT_FD, stage))
    try:
        if mode == "script":
            run_script(progress, preamble)
        elif mode == "call":
            call(progress, function or "", preamble)
        elif mode == "strict":
            run_strict(progress, discovered)
        else:
            run_test(progress, discovered)
    except BaseException as error:
        if current_id() == own_id:
            report_failed(error, progress)
        else:
            flush_output()
        leave(exit_code(error) if isinstance(error, SystemExit) else 1)
    else:
        if current_id() == own_id:  # a forked copy must not take the nonce
            report_passed(VERDICT_FD)
        leave(0)
    finally:
        leave(1)


class Progress:
    """Current stage of a program, and its compilation units so far.

    Args:
        announce (`Callable`): Function that is called with the name of each stage at its start.
    """

    def __init__(self, announce: Callable[[str], None]) -> None:
        self.script = os.path.join(os.getcwd(), sys.argv[0])
        self.stage = "compile"
        self.sources: dict[str, exceptions.Source] = {}
        self._announce = announce

    def enter(self, stage: str) -> None:
        """Start a stage."""
        self.stage = stage
        self._announce(stage)

    def compile(self, source: str, file: str) -> CodeType:
        """Compile a source; all errors of the compiler are raised as SyntaxError."""
        self.enter("compile")
        self.sources[file] = exceptions.Source("test" if file == TEST else "candidate", source)
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        try:
            return _compile(source, file, "exec", dont_inherit=True)
        except SyntaxError as error:
            error.filename = error.filename or file
            raise
        except (ValueError, OverflowError, RecursionError, MemoryError) as error:
            reason = str(error) or "too large or too deeply nested to compile"
            raise SyntaxError(reason, (file, None, None, None)) from None

    def facts(self, error: BaseException) -> dict[str, Any]:
        """Describe an exception, and free the memory that it holds."""
        confinement.raise_memory_limit()
        sys.settrace(None)
        sys.setprofile(None)
        sys.setrecursionlimit(max(1000, sys.getrecursionlimit()))
        found = exceptions.facts(error, self.stage, self.sources)
        error.__traceback__ = error.__context__ = None
        gc.collect()
        return found


def run_test(progress: Progress, discovered: dict[str, Any]) -> None:
    """Load the candidate as a module, then run the test program in its namespace as the main program."""
    run = test_runner.TestRun(discovered, TEST, progress.script)
    compile_test, execute = progress.compile, run.execute  # local names, as in `main`
    source = read_text(TEXT_FD)  # before the candidate can change it
    module = load(progress)
    test = compile_test(source, TEST)
    progress.enter("test")
    execute(test, module)


def run_strict(progress: Progress, discovered: dict[str, Any]) -> None:
    """Load the candidate in another process, then run the test program here with proxies of its functions."""

    def serve(pipe: strict.Pipe) -> None:
        own = Progress(lambda stage: pipe.send({"stage": stage}))
        try:
            module = load(own)
        except BaseException as error:
            pipe.send({"facts": own.facts(error), "message": exceptions.message(error)})
        else:
            own.stage = "test"
            strict.serve(pipe, module.__dict__, own.facts)

    progress.enter("compile")
    pipe, candidate = strict.start_candidate(serve, closed_to_it=(TEXT_FD, VERDICT_FD))
    module = new_module("test", TEST)
    module.__dict__.update(strict.receive_namespace(pipe, candidate, progress.enter))
    run = test_runner.TestRun(discovered, TEST, progress.script)
    test = progress.compile(read_text(TEXT_FD), TEST)  # read only after the fork of the candidate
    progress.enter("test")
    run.execute(test, module)


def run_script(progress: Progress, preamble: str) -> None:
    """Run the candidate as the main program, to the end of its threads and exit handlers."""
    source = read_candidate(progress.script)
    try:
        code = progress.compile(source, progress.script)
    except SyntaxError as error:
        if error.msg != "'return' outside function":
            raise
        code = compile_with_returns(source, progress.script)
    progress.enter("test")
    try:
        sys.path.insert(0, os.path.dirname(progress.script))
        exec(code, new_module("__main__", progress.script, preamble).__dict__)
    except SystemExit as error:
        if exceptions.exit_code(error) != 0:
            raise
    # Not after a failure, which is reported at once.
    if (threading := sys.modules.get("threading")) is not None:
        threading._shutdown()
    atexit._run_exitfuncs()
    flush_output()


def compile_with_returns(source: str, file: str) -> CodeType:
    """Compile a script in which a `return` at the top level ends it.

    APPS's reference solutions contain such statements, as its harness runs them as functions.
    """
    tree = _ReturnsToExits().visit(ast.parse(source, file))
    return compile(ast.fix_missing_locations(tree), file, "exec", dont_inherit=True)


class _ReturnsToExits(ast.NodeTransformer):
    def visit_Return(self, node: ast.Return) -> ast.Raise:
        return ast.copy_location(ast.Raise(ast.Name("SystemExit", ast.Load())), node)

    def _skip(self, node: ast.AST) -> ast.AST:
        return node

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = visit_ClassDef = _skip


def flush_output() -> None:
    """Flush the buffers of standard output."""
    for stream in (sys.stdout, sys.__stdout__):
        if stream is not None and not stream.closed:
            stream.flush()


def call(progress: Progress, name: str, preamble: str) -> None:
    """Load the candidate, call one function, and write the returned value as plain data."""
    module = load(progress, preamble)
    arguments = read_arguments()
    progress.enter("test")
    owner = module.Solution() if hasattr(module, "Solution") else module
    function = getattr(owner, name, None)
    if function is None or (owner is module and is_from_preamble(function, name, preamble, progress)):
        raise NameError(f"name {name!r} is not defined", name=name)
    returned = function(*arguments)
    write_all(OUTPUT_FD, plain_data.encode(returned))


def is_from_preamble(function: object, name: str, preamble: str, progress: Progress) -> bool:
    """Return whether a function comes from the preamble and the candidate does not bind its name."""
    # Not a symbol table: from Python 3.12 it has the variables of comprehensions, too (PEP 709).
    code = _compile(progress.sources[progress.script].text, progress.script, "exec", dont_inherit=True)
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("STORE_NAME", "STORE_GLOBAL") and instruction.argval == name:
            return False
    namespace: dict[str, Any] = {}
    exec(preamble, namespace)
    return namespace.get(name) is function


def read_arguments() -> list[Any]:
    """Read arguments from JSON, with the keys of the first converted to integers where possible, as APPS does."""
    arguments: list[Any] = json.loads(read_text(TEXT_FD))
    if arguments and isinstance(arguments[0], dict):
        with contextlib.suppress(ValueError):
            arguments[0] = {int(key): value for key, value in arguments[0].items()}
    return arguments


def load(progress: Progress, preamble: str = "") -> ModuleType:
    """Run the candidate's top level as a module, and restore the interpreter's state."""
    code = progress.compile(read_candidate(progress.script), progress.script)
    sys.path.insert(0, os.path.dirname(progress.script))
    module = new_module(test_runner.CANDIDATE, progress.script, preamble)
    namespace, restore, true_builtins = module.__dict__, snapshot_interpreter(), builtins
    progress.enter("load")
    exec(code, namespace)
    restore()
    namespace["__builtins__"] = true_builtins
    return module


def new_module(name: str, file: str, preamble: str = "") -> ModuleType:
    """Register a module with the imports of a preamble, so that pickling, dataclasses and `inspect` find it."""
    module = ModuleType(name)
    module.__file__ = file
    module.__dict__["__builtins__"] = builtins
    sys.modules[name] = module
    exec(preamble, module.__dict__)
    return module


def snapshot_interpreter() -> Callable[[], None]:
    """Return a function that restores the state of the interpreter that test programs rely on.

    The recursion limit and signal handlers are kept, as candidates set them for their own functions.
    """
    restore_builtins = builtin_names.current().restore
    streams = sys.stdin, sys.stdout, sys.stderr
    arguments = list(sys.argv)  # unittest.main() takes the tests to run from them

    def restore() -> None:
        sys.argv = list(arguments)
        sys.settrace(None)
        sys.setprofile(None)
        if (threading := sys.modules.get("threading")) is not None:
            threading.settrace(None)
            threading.setprofile(None)
        signal.setitimer(signal.ITIMER_REAL, 0)
        restore_builtins()
        sys.stdin, sys.stdout, sys.stderr = streams

    return restore


def report(error: BaseException, progress: Progress) -> None:
    """Report an exception: first its facts, then its message, which may run code of the program."""
    verdict.send_failed(VERDICT_FD, progress.facts(error) | getattr(error, "candidate_facts", {}))
    text = getattr(error, "candidate_message", None)
    verdict.send_message(VERDICT_FD, exceptions.message(error) if text is None else text)


def read_candidate(script: str) -> str:
    """Read the candidate, and write it to its `__file__`, which spawned processes read."""
    source = read_file(CANDIDATE_FD)
    try:
        file = os.open(script, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            write_all(file, source)
        finally:
            os.close(file)
    except OSError:
        pass  # a full disk is ignored
    return source.decode("utf-8", "surrogatepass")


def read_text(fd: int) -> str:
    """Read a file of the caller, and close it."""
    return read_file(fd).decode("utf-8", "surrogatepass")


def read_file(fd: int) -> bytes:
    """Read the bytes of a file of the caller, and close it."""
    parts = []
    while part := os.read(fd, _READ_BYTES):
        parts.append(part)
    os.close(fd)
    return b"".join(parts)


def write_all(fd: int, data: bytes) -> None:
    """Write bytes to a descriptor."""
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]
