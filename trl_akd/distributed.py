"""What differs between one process, DDP, FSDP and DeepSpeed ZeRO, behind a few calls.

Uses private parts of TRL; `tests/test_trl_contract.py` names them.
"""

import atexit
import gc
import logging
import os
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FunctionType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard, SkipBatchSampler
from accelerate.utils import DistributedType, DynamoBackend, broadcast_object_list
from torch._C._distributed_c10d import Logger, ProcessGroup, Reducer
from trl.models import prepare_deepspeed
from trl.models.utils import _ForwardRedirection, prepare_fsdp
from trl.trainer.utils import maybe_gather_lm_head_ctx

Result = TypeVar("Result")


def keep_off_stdout(record: logging.LogRecord) -> bool:
    """Move a logger's output from stdout, where commands print their results, to stderr; a filter of that logger.

    DeepSpeed gives its logger a handler when it is first imported, which may be late in a run.
    """
    for handler in logging.getLogger(record.name).handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            handler.setStream(sys.stderr)
    return True


logging.getLogger("DeepSpeed").addFilter(keep_off_stdout)


def default_device() -> torch.device:
    """Return this machine's accelerator, or the CPU where there is none, as with a CUDA build without a GPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if found is None else found


def widest_float(device: torch.device) -> torch.dtype:
    """Return the most precise floating-point type of a device: float64, but float32 on Apple's GPUs."""
    return torch.float32 if device.type in _WITHOUT_FLOAT64 else torch.float64


_WITHOUT_FLOAT64 = {"mps"}


def unwrapped(engine: Any, model: Any, accelerator: Accelerator) -> Any:
    """Return the model inside `engine`, which `accelerator` is asked for only where it is not `model`.

    `Accelerator.unwrap_model` searches for installed packages each time.
    """
    if engine is model or getattr(engine, "module", None) is model:
        return model
    return accelerator.unwrap_model(engine)


def own_rows(accelerator: Accelerator) -> tuple[int, int] | None:
    """Return the number of rows of a process's last batch, and how many of these the other batches do not have.

    accelerate fills up the last batches of an epoch with its first rows, so that all processes get batches of the same
    size. Call after the batch was fetched, before the next one is.

    Args:
        accelerator (`Accelerator`):
            What the data loader was prepared by.

    Returns:
        `tuple[int, int]`, or `None` where no row is repeated, or the length of the data is unknown.
    """
    state = accelerator.gradient_state
    if not state.end_of_dataloader:
        return None
    loader = state.active_dataloader
    sampler = loader.batch_sampler
    while isinstance(sampler, SkipBatchSampler):  # a resumed epoch
        sampler = sampler.batch_sampler
    if not isinstance(sampler, BatchSamplerShard) or sampler.num_processes == 1:
        return None
    if sampler.drop_last or not sampler.even_batches or sampler.batch_size is None:
        return None  # nothing is filled up, or batches of any size are filled up by whole ones
    rows = sampler.batch_size // sampler.num_processes if sampler.split_batches else sampler.batch_size
    indices = getattr(sampler.batch_sampler, "sampler", loader.dataset)  # may pick fewer rows, or rows twice
    remainder = len(indices) % (rows * sampler.num_processes)
    own = min(max(remainder - sampler.process_index * rows, 0), rows)
    return None if remainder == 0 or own == rows else (rows, own)


def through_forward(wrapper: Any, model: Any, function: Callable[[], Result]) -> Result:
    """Call `function` inside the forward of `wrapper`, the distributed engine around `model`.

    Engines gather shards, cast inputs and arm gradient reduction in their forward. A loss that reads the LM head's
    weight must therefore run inside it: under ZeRO-3 the weight is empty outside, and its gradient would be lost.

    Args:
        wrapper (`torch.nn.Module`):
            What `accelerator.prepare` returned for `model`; may be `model` itself.
        model (`torch.nn.Module`):
            The model inside `wrapper`.
        function (`Callable`):
            Returns a tensor or a tuple of tensors, so that engines find them. It takes no arguments, which engines
            might cast.
    """
    result: Result = _ForwardRedirection()(wrapper, model, function)
    return result


def take_compilation(accelerator: Accelerator) -> dict[str, Any] | None:
    """Return the options of `torch.compile` that a run asks for, if it does, and keep `accelerator` from compiling.

    It would compile the forward of the whole engine, in which the loss runs as well.
    """
    plugin = accelerator.state.dynamo_plugin
    if plugin.backend == DynamoBackend.NO:
        return None
    options: dict[str, Any] = plugin.to_kwargs()
    plugin.backend = DynamoBackend.NO
    return options


def gathered(parameters: Iterable[torch.Tensor]) -> AbstractContextManager[Any]:
    """Make parameters that ZeRO-3 shards whole for reading, without gradients, inside the context."""
    sharded = [parameter for parameter in parameters if hasattr(parameter, "ds_status")]
    return maybe_gather_lm_head_ctx(*sharded) if sharded else nullcontext()


def release_engine(engine: Any, model: Any, accelerator: Accelerator) -> None:
    """Take the training engine off `model`, so that another can be built around it.

    DeepSpeed's own `destroy` leaves two of its hooks on the model, which fire again and keep the engine alive with its
    optimizer's states, and a reference from each sharded parameter. DDP's wrapper serves again.

    Args:
        engine (`torch.nn.Module`):
            What `accelerator.prepare` returned for `model`; may be `model` itself.
        model (`torch.nn.Module`):
            The model inside.
        accelerator (`Accelerator`):
            The run's accelerator, which forgets what it prepared.
    """
    for name in ("module_forward_pre_hook", "module_forward_post_hook"):
        if getattr(engine, name, None) is not None:
            getattr(engine, name).remove()
    accelerator.free_memory()
    for parameter in model.parameters():
        if hasattr(parameter, "_z3_optimizer"):
            del parameter._z3_optimizer


@contextmanager
def rewriting(model: Any) -> Iterator[None]:
    """Make what ZeRO-3 shards of `model` whole inside the context, and spread what the first rank made of it."""
    sharded = [parameter for parameter in model.parameters() if hasattr(parameter, "ds_status")]
    if not sharded:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(sharded, modifier_rank=0):
        yield


def prepare_frozen(model: Any, accelerator: Accelerator, device: str | None = None) -> Any:
    """Place a model that is only read: on `device` if given, else sharded or moved as the run's backend has it.

    Under ZeRO-3 the model gets an engine of its own. A quantised or already dispatched model stays where it is.
    """
    model.requires_grad_(False)
    model.eval()
    if getattr(model, "is_quantized", False) or getattr(model, "hf_device_map", None):
        return model
    if device is not None:
        return model.to(device)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return prepare_deepspeed(model, accelerator)
    if accelerator.distributed_type == DistributedType.FSDP:
        return prepare_fsdp(model, accelerator)
    return accelerator.prepare_model(model, evaluation_mode=True)


def is_main_process(accelerator: Any) -> bool:
    """Return whether this is the process that writes files; the only one is."""
    return accelerator is None or bool(accelerator.is_main_process)


def run_on_main_and_broadcast(accelerator: Any, make: Callable[[], Result]) -> Result:
    """Call a function on the main process, and return its result, or raise its error, on every one.

    All processes call this, none waits for another in vain.

    Args:
        accelerator (`Accelerator`, *optional*):
            That of the processes; without one, or with one process, the function is called here.
        make (`Callable`):
            Takes nothing and returns what pickle knows.

    Example:

    ```python
    >>> run_on_main_and_broadcast(None, lambda: "known")
    'known'

    ```
    """
    if accelerator is None or accelerator.num_processes == 1:
        return make()
    outcome: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            outcome = [(make(), None)]
        except Exception as error:
            outcome = [(None, picklable_error(error))]
    [(result, failure)] = broadcast_object_list(outcome)
    if failure is not None:
        raise failure
    return result  # type: ignore[no-any-return]


def picklable_error(error: Exception) -> Exception:
    """Return an error that other processes can be told of: itself, or its name and text where pickle fails.

    Example:

    ```python
    >>> class Odd(Exception):
    ...     def __init__(self, one, two):
    ...         super().__init__(f"{one} and {two}")
    >>> picklable_error(KeyError("x")), picklable_error(Odd(1, 2))
    (KeyError('x'), RuntimeError('Odd: 1 and 2'))

    ```
    """
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def leave_process_groups() -> None:
    """Destroy this process's Gloo groups, and drop what still refers to them, so that their threads end.

    Registered with `atexit` when this module is imported. A Gloo thread that releases the last reference to a tensor
    while the interpreter shuts down aborts the process ("terminate called without an active exception").
    `torch.distributed.destroy_process_group` alone does not end the threads: they live as long as an engine, such as
    `DistributedDataParallel`, refers to the group. Nothing can be communicated afterwards.
    """
    if dist.is_initialized():
        if dist.get_backend() != "gloo":  # NCCL has no such threads, and waits for the other processes when destroyed
            return
        dist.destroy_process_group()
    elif "WORLD_SIZE" not in os.environ:
        return
    objects = gc.get_objects()
    # Of extension types and tuples of them the collector knows nothing, but it knows what refers to them.
    found = {id(thing): thing for thing in gc.get_referents(*objects) if type(thing) in _HOLDING_GROUPS}
    groups = [thing for thing in found.values() if type(thing) is ProcessGroup]
    for holder in gc.get_referrers(*found.values()):
        if holder is not found and holder is not groups:
            _drop_references(holder)
    for function in objects:  # of a module imported after the group was made: `group=dist.group.WORLD`
        defaults = function.__defaults__ or () if type(function) is FunctionType else ()
        if any(type(default) in _HOLDING_GROUPS for default in defaults):
            function.__defaults__ = tuple(None if type(each) in _HOLDING_GROUPS else each for each in defaults)
    # The groups go last: a group that ends with a reducer would wait for its threads with the interpreter's lock held,
    # which these may need; as the group's own Python object ends, the lock is released.
    found.clear()
    groups.clear()


_HOLDING_GROUPS = frozenset({ProcessGroup, Reducer, Logger})


def _drop_references(holder: Any) -> None:
    """Replace process groups, and what holds them, by `None` in a list, a dictionary or an object's attributes."""
    if isinstance(holder, list):
        holder[:] = [None if type(entry) in _HOLDING_GROUPS else entry for entry in holder]
        return
    entries = holder if isinstance(holder, dict) else getattr(holder, "__dict__", None)
    if isinstance(entries, dict):
        for name in [name for name, entry in entries.items() if type(entry) in _HOLDING_GROUPS]:
            entries[name] = None


atexit.register(leave_process_groups)
