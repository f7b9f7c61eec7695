"""Helpers for processes, batches and devices."""

import os
import subprocess
import sys
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, SkipBatchSampler
from torch.utils.data import BatchSampler, SequentialSampler

from trl_akd.distributed import own_rows, unwrapped, widest_float


@pytest.mark.parametrize("split_batches", [False, True])
@pytest.mark.parametrize("skipped", [0, 1])
@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_every_row_counts_once(batch_size: int, processes: int, skipped: int, split_batches: bool) -> None:
    for length in range(1, 32):
        counted = []
        size = batch_size * processes if split_batches else batch_size
        for process in range(processes):
            sampler = BatchSamplerShard(
                BatchSampler(SequentialSampler(range(length)), size, drop_last=False),
                processes,
                process,
                split_batches,
            )
            batches = list(sampler)
            loader = SimpleNamespace(batch_sampler=SkipBatchSampler(sampler, skipped), dataset=range(length))
            state = SimpleNamespace(end_of_dataloader=True, active_dataloader=loader)
            found = own_rows(SimpleNamespace(gradient_state=state))
            if found is not None:
                assert found[0] == len(batches[-1])
                batches[-1] = batches[-1][: found[1]]
            counted += chain.from_iterable(batches)
        assert sorted(counted) == list(range(length)), length


def _last_batch(batches: BatchSampler, dataset: range, **settings: Any) -> Any:
    loader = SimpleNamespace(batch_sampler=BatchSamplerShard(batches, 2, 1, **settings), dataset=dataset)
    return SimpleNamespace(gradient_state=SimpleNamespace(end_of_dataloader=True, active_dataloader=loader))


def test_length_of_a_sampler_is_used() -> None:
    batches = BatchSampler(SequentialSampler(range(7)), 2, drop_last=False)
    assert own_rows(_last_batch(batches, range(12))) == (2, 1)


def test_no_repetition_without_filling_up() -> None:
    batches = BatchSampler(SequentialSampler(range(5)), 2, drop_last=False)
    assert own_rows(_last_batch(batches, range(5), even_batches=False)) is None
    batches.batch_size = None  # type: ignore[assignment]
    assert own_rows(_last_batch(batches, range(5))) is None


def test_batches_before_the_last_have_no_repetitions() -> None:
    assert own_rows(SimpleNamespace(gradient_state=SimpleNamespace(end_of_dataloader=False))) is None


def test_widest_float_of_devices() -> None:
    assert widest_float(torch.device("cpu")) is torch.float64
    assert widest_float(torch.device("mps", 0)) is torch.float32


def test_unwrapping_is_cheap() -> None:
    class Refusing:
        def unwrap_model(self, engine: object) -> object:
            return "searched"

    model = torch.nn.Linear(1, 1)
    assert unwrapped(model, model, Refusing()) is model  # type: ignore[arg-type]
    assert unwrapped(SimpleNamespace(module=model), model, Refusing()) is model  # type: ignore[arg-type]
    assert unwrapped(torch.nn.Sequential(), model, Refusing()) == "searched"  # type: ignore[arg-type]


_SCRIPT = """
import atexit, sys
from pathlib import Path

@atexit.register  # called last
def print_threads():
    names = [thread.read_text().strip() for thread in Path("/proc/self/task").glob("*/comm")]
    print([name for name in names if "gloo" in name])

import torch
import torch.distributed as dist
dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
import torch.distributed.nn  # whose functions have the group as a default
engine = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
engine(torch.ones(1, 2)).sum().backward()
if "trl_akd" in sys.argv:
    import trl_akd.distributed
if "destroyed" in sys.argv:
    dist.destroy_process_group()
"""


@pytest.mark.distributed
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the names of threads in /proc")
@pytest.mark.parametrize(
    ("settings", "ends"), [(["destroyed"], False), (["trl_akd"], True), (["trl_akd", "destroyed"], True)]
)
def test_threads_of_gloo_end_before_the_interpreter_shuts_down(settings: list[str], ends: bool) -> None:
    """Destroying the group does not end its threads while an engine refers to it, so this package does more."""
    finished = subprocess.run(
        [sys.executable, "-c", _SCRIPT, *settings],
        capture_output=True,
        text=True,
        env={**os.environ, "WORLD_SIZE": "1"},
        check=True,
    )
    assert (finished.stdout.strip().splitlines()[-1] == "[]") == ends, finished.stdout


_TWO_PROCESSES = """
import atexit, os, sys

children = []

@atexit.register  # called last
def print_status_of_the_other():
    for child in children:
        print(os.waitpid(child, 0)[1])

import torch
import torch.distributed as dist
import trl_akd.distributed
child = os.fork()
if child:
    children.append(child)
dist.init_process_group("gloo", rank=int(child > 0), world_size=2, init_method="file://" + sys.argv[1])
engine = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(8, 8))
engine(torch.ones(1, 8)).sum().backward()
for _ in range(300):
    dist.all_reduce(torch.ones(1000), async_op=True)
"""


@pytest.mark.distributed
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks a process")
def test_processes_leave_while_reductions_are_under_way(tmp_path: Path) -> None:
    """The processes neither abort nor wait with the GIL for threads that need it."""
    finished = subprocess.run(
        [sys.executable, "-c", _TWO_PROCESSES, str(tmp_path / "store")], capture_output=True, text=True, timeout=600
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert finished.stdout.strip().splitlines()[-1] == "0"
