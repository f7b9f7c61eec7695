"""Run modules, one after another, in forks of a process that has imported what they need.

    python -m tests.invariant.rank_server

Reads requests from standard input, one per line in JSON: `module`, `arguments`, `environment`, `output`, a file for
both output streams, and `threads`, a file for the names of the native threads that exist when the interpreter shuts
down. Prints 0 when it can serve, then the number of each process, and its exit status when it has ended. The process
runs the module as `python -m` does, and ends as Python does. Each rank has a server of its own, so that ranks have
different hash seeds.
"""

import atexit
import importlib
import json
import os
import runpy
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

PRELOADED = """
    deepspeed.runtime.superoffload.superoffload_stage3 peft pytest torch._inductor.compile_fx
    transformers.models.qwen2.modeling_qwen2 transformers.models.t5.modeling_t5 trl.generation.vllm_generation
    trl_akd.akd.cache_creation trl_akd.evaluation.callback trl_akd.iterkd.pair_trainer
    tests.akd.vllm_double tests.codeplan.world tests.iterkd.cycle_world tests.iterkd.world
"""

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
    Path(REQUEST["threads"]).write_text(json.dumps(names))


def preload() -> None:
    """Import what training needs, except modules that read the environment of their rank."""
    for module in PRELOADED.split():
        importlib.import_module(module)


def serve(answers: TextIO) -> None:
    """Serve requests until standard input ends; in the process for a request, return with it."""
    for line in iter(sys.stdin.buffer.raw.readline, b""):  # type: ignore[attr-defined]
        child = os.fork()
        if child == 0:
            REQUEST.update(json.loads(line))
            return
        print(child, file=answers, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def run_module() -> None:
    """Run the module of the request in a session of its own."""
    os.setsid()
    output = os.open(REQUEST["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for source, target in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.environ.clear()
    os.environ.update(REQUEST["environment"])
    sys.argv[1:] = REQUEST["arguments"]
    runpy.run_module(REQUEST["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # some modules print when they are imported
    preload()
    print(os.EX_OK, file=answers, flush=True)
    serve(answers)
    if REQUEST:
        run_module()
