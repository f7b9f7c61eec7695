"""Launch training on two processes many times in a row and count the exits: `python -m tests.invariant.soak 100`.

Alternates DDP and ZeRO-3, each by `accelerate launch`. A launch that does not exit with 0, or that ends with
a thread of Gloo, is an error, see `trl_akd.distributed.leave_process_groups`.
"""

import sys
import tempfile
import time
from pathlib import Path

from tests import tiny

from .launch import accelerate_launch, run


def main(launches: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        student, teacher = tiny.save_pair(Path(folder))
        settings = {"student": student, "teacher_model_name_or_path": teacher, "max_steps": 2}
        for number in range(1, launches + 1):
            for backend in ("ddp", "zero3"):
                started = time.monotonic()
                with tempfile.TemporaryDirectory(dir=folder) as results:
                    run(Path(results), backend, timeout=900, start=accelerate_launch, **settings)
                seconds = time.monotonic() - started
                print(f"{number} of {launches}: {backend} exited with 0, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
