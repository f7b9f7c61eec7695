"""Run modules, one after another, in forks of a process that has imported what they need.

    python -m tests.invariant.rank_server
    python -m tests.invariant.rank_server FOLDER MODULE ARGUMENTS...

The first form reads requests from standard input, one per line in JSON (see `_Server.run` in `launch`). It prints 0
when it can serve, then the number of each process, and its exit status when it has ended. The second form runs one
module itself, and is for `accelerate launch`.

A process runs its module as `python -m` does, and writes the names of the native threads that exist when the
interpreter shuts down to `threads-RANK.json`. Each rank has a server of its own, so that ranks have different hash
seeds. Unlike processes that are started, those of a server have its hash seed and what its environment decided during
imports, and have imported DeepSpeed before there is a process group. Objects are not exempt from garbage collection
(`gc.freeze`), since `trl_akd.distributed.leave_process_groups` searches them.
"""

import atexit
import importlib
import json
import os
import runpy
import select
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO
from unittest import mock

PRELOADED = """
    accelerate.commands.launch deepspeed.runtime.superoffload.superoffload_stage3
    peft pytest torch._inductor.compile_fx
    transformers.models.qwen2.modeling_qwen2 transformers.models.t5.modeling_t5 trl.generation.vllm_generation
    trl_akd.akd.cache_creation trl_akd.evaluation.callback trl_akd.iterkd.pair_trainer
    tests.akd.vllm_double tests.codeplan.world tests.iterkd.cycle_world tests.iterkd.world
"""
"""Modules that take long to import and do not read the environment of a rank."""

REQUEST: dict[str, Any] = {}
"""The request that this process runs; empty in the server."""


@atexit.register  # before other modules register anything, so that it is called last
def record_threads() -> None:
    if not REQUEST:
        return
    names = []
    for thread in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):  # the thread has ended meanwhile
            names.append(thread.read_text().strip())
    path = Path(REQUEST["folder"]) / f"threads-{os.environ.get('RANK', 0)}.json"
    path.write_text(json.dumps(names))


def serve(answers: TextIO) -> None:
    """Serve requests until standard input ends; in the process for a request, return with it."""
    for line in iter(sys.stdin.buffer.raw.readline, b""):  # type: ignore[attr-defined]
        child = os.fork()
        if child == 0:
            answers.close()
            REQUEST.update(json.loads(line))
            return
        print(child, file=answers, flush=True)
        ended = os.pidfd_open(child)
        ready, _, _ = select.select([0, ended], [], [])
        os.close(ended)
        if 0 in ready:  # the client sends nothing during a run, so it has ended
            _kill_session(child)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def _kill_session(child: int) -> None:
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:  # it has not made its session yet, or has ended
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def become_rank() -> None:
    """Give this process a session, an environment and an output of its own."""
    os.setsid()
    output = os.open(REQUEST["output"], os.O_WRONLY | os.O_APPEND)
    for source, target in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.environ.clear()
    os.environ.update(REQUEST["environment"])
    if REQUEST["config"] is not None:
        os.environ.update(_accelerate_environment(REQUEST["config"]))
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()


def _accelerate_environment(config: str) -> dict[str, str]:
    """Return the environment in which accelerate calls PyTorch's launcher."""
    from accelerate.commands.launch import launch_command, launch_command_parser

    args = launch_command_parser().parse_args(["--config_file", config, "-m", REQUEST["module"]])
    found: dict[str, str] = {}
    with mock.patch("torch.distributed.run.run", lambda _: found.update(os.environ)):
        launch_command(args)
    assert found, f"{config}: accelerate did not call PyTorch's launcher"
    return found


def run_module() -> dict[str, Any]:
    """Run the module of the request, and return its global variables."""
    sys.argv[1:] = REQUEST["arguments"]
    return runpy.run_module(REQUEST["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        folder, module, *arguments = sys.argv[1:]
        REQUEST.update(folder=folder, module=module, arguments=arguments)
    else:
        answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # some modules print when they are imported
        for module in PRELOADED.split():
            importlib.import_module(module)
        sys.stdout.flush()
        print(os.EX_OK, file=answers, flush=True)
        serve(answers)
        if REQUEST:
            become_rank()
    if REQUEST:
        variables = run_module()  # which live until the interpreter shuts down, as those of a script
