"""Write the environment and the state of each process: `python -m tests.invariant.environment_worker FOLDER [FAILS]`.

With `FAILS`, the second process fails and the first one sleeps.
"""

import json
import os
import sys
import time
from pathlib import Path

from accelerate import PartialState

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    state = PartialState(cpu=True)
    record = {
        "environment": dict(os.environ),
        "state": [state.num_processes, state.local_process_index, state.distributed_type.value, state.backend],
        "hash": hash("trl_akd"),
    }
    (folder / f"rank{state.process_index}.json").write_text(json.dumps(record))
    if len(sys.argv) > 2:
        if state.process_index == 1:
            while not (folder / "rank0.json").exists():
                time.sleep(0.01)
            raise ArithmeticError("rank 1 fails")
        time.sleep(600)
