"""Operations that differ between one process, DDP, FSDP and DeepSpeed ZeRO.

Uses private parts of TRL, which `tests/test_trl_contract.py` lists.
"""

import atexit
import gc
import logging
import os
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from types import FunctionType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.data_loader import BatchSamplerShard, SkipBatchSampler
from accelerate.utils import DistributedType, DynamoBackend, broadcast_object_list, gather_object, reduce
from torch._C._distributed_c10d import Logger, ProcessGroup, Reducer
from transformers.trainer_utils import has_length
from trl.models import prepare_deepspeed
from trl.models.utils import _ForwardRedirection, prepare_fsdp
from trl.trainer.utils import maybe_gather_lm_head_ctx

Result = TypeVar("Result")


def keep_off_stdout(record: logging.LogRecord) -> bool:
    """Redirect a logger's output from stdout, where commands print their results, to stderr.

    This is a filter of the logger, because DeepSpeed adds a handler when it is first imported, which may be late in a
    run.
    """
    for handler in logging.getLogger(record.name).handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            handler.setStream(sys.stderr)
    return True


logging.getLogger("DeepSpeed").addFilter(keep_off_stdout)


def default_device() -> torch.device:
    """Return this machine's accelerator, or the CPU if there is none, for example with a CUDA build without a GPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if found is None else found


def widest_float(device: torch.device) -> torch.dtype:
    """Return the widest floating-point dtype of a device: float64, or float32 on Apple's GPUs."""
    return torch.float32 if device.type in _WITHOUT_FLOAT64 else torch.float64


_WITHOUT_FLOAT64 = {"mps"}


class HostCopy:
    """Copy of a tensor to the host that is under way while the device continues.

    Args:
        tensor (`torch.Tensor`):
            Tensor to copy, which must not be changed afterwards.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._copy = tensor.detach().to("cpu", non_blocking=tensor.is_cuda)  # into pinned memory
        self._done = torch.cuda.current_stream(tensor.device).record_event() if tensor.is_cuda else None

    @cached_property
    def values(self) -> Any:
        """The tensor as a nested list; the first access waits for the copy."""
        if self._done is not None:
            self._done.synchronize()
        return self._copy.tolist()


def unwrapped(engine: Any, model: Any, accelerator: Accelerator) -> Any:
    """Return the model inside `engine`, by `Accelerator.unwrap_model` only if it is not `model`.

    `Accelerator.unwrap_model` is slow, since it looks for installed packages in each call.
    """
    if engine is model or getattr(engine, "module", None) is model:
        return model
    return accelerator.unwrap_model(engine)


def own_rows(accelerator: Accelerator) -> tuple[int, int] | None:
    """Return the number of rows of a process's last batch, and the number of those that are not duplicates.

    accelerate fills up the last batches of an epoch with its first rows, so that all processes get batches of the same
    size. Call this after the batch is fetched and before the next one.

    Returns:
        `tuple[int, int]`, or `None` if no row is repeated or the length of the data is unknown.
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
        return None  # batches are not filled up, or only with whole batches
    rows = sampler.batch_size // sampler.num_processes if sampler.split_batches else sampler.batch_size
    indices = getattr(sampler.batch_sampler, "sampler", loader.dataset)  # may select fewer rows, or rows twice
    remainder = len(indices) % (rows * sampler.num_processes)
    own = min(max(remainder - sampler.process_index * rows, 0), rows)
    return None if remainder == 0 or own == rows else (rows, own)


def require_batch(loader: Any, args: Any) -> None:
    """Raise a ValueError if a training dataloader has no batch, for which transformers would train no step.

    Args:
        loader (`DataLoader`):
            Dataloader of one process.
        args (`TrainingArguments`):
            Its settings, for the message.
    """
    if args.dataloader_drop_last and has_length(loader) and len(loader) == 0:
        raise ValueError(
            f"the training data has {len(loader.dataset)} rows, which fill no batch of `per_device_train_batch_size` "
            f"{args.per_device_train_batch_size} on each of {args.world_size} processes, and `dataloader_drop_last` "
            "is on; turn that off, lower the batch size, or give more rows."
        )


def through_forward(wrapper: Any, model: Any, function: Callable[[], Result]) -> Result:
    """Call `function` inside the forward of `wrapper`, the distributed engine around `model`.

    Engines gather shards, cast inputs and prepare gradient reduction in their forward. A loss that reads the LM head's
    weight must therefore run inside it: under ZeRO-3, the weight is empty outside, and its gradient would be lost.

    Args:
        wrapper (`torch.nn.Module`):
            Result of `accelerator.prepare` for `model`; may be `model` itself.
        model (`torch.nn.Module`):
            The model inside `wrapper`.
        function (`Callable`):
            Function without arguments, which engines might cast. It returns a tensor or a tuple of tensors, so that
            engines find them.
    """
    result: Result = _ForwardRedirection()(wrapper, model, function)
    return result


def take_compilation(accelerator: Accelerator) -> dict[str, Any] | None:
    """Return the options of `torch.compile` if the run uses it, and prevent `accelerator` from compiling.

    The accelerator would compile the forward of the whole engine, including the loss.
    """
    plugin = accelerator.state.dynamo_plugin
    if plugin.backend == DynamoBackend.NO:
        return None
    options: dict[str, Any] = plugin.to_kwargs()
    plugin.backend = DynamoBackend.NO
    return options


def gathered(parameters: Iterable[torch.Tensor]) -> AbstractContextManager[Any]:
    """Gather parameters that ZeRO-3 shards inside the context, for reading without gradients."""
    sharded = [parameter for parameter in parameters if hasattr(parameter, "ds_status")]
    return maybe_gather_lm_head_ctx(*sharded) if sharded else nullcontext()


def release_engine(engine: Any, model: Any, accelerator: Accelerator) -> None:
    """Remove the training engine from `model`, so that another one can be created for it.

    DeepSpeed's `destroy` leaves two hooks on the model, which run again and keep the engine and its optimizer states
    alive, and a reference from each sharded parameter. DDP's wrapper can be reused.
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
    """Gather the parameters that ZeRO-3 shards inside the context, and keep the changes of the first rank."""
    sharded = [parameter for parameter in model.parameters() if hasattr(parameter, "ds_status")]
    if not sharded:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(sharded, modifier_rank=0):
        yield


def prepare_frozen(model: Any, accelerator: Accelerator, device: str | None = None) -> Any:
    """Freeze a model and place it on `device` or, by default, as the distributed backend of the run requires.

    Under ZeRO-3, the model gets a separate engine. A quantized or already dispatched model is not moved.
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
    """Return whether this is the main process, which writes files; a single process is."""
    return accelerator is None or bool(accelerator.is_main_process)


def run_on_main_and_broadcast(accelerator: Any, make: Callable[[], Result]) -> Result:
    """Call a function on the main process, and return its result or raise its error on all processes.

    All processes must call this.

    Args:
        accelerator (`Accelerator`, *optional*):
            Accelerator of the processes. Without one, or with one process, the function is just called.
        make (`Callable`):
            Function without arguments that returns a picklable value.

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


def raise_on_all(make: Callable[[], Result]) -> Result:
    """Call a function on every process and return its result, or raise an error on all processes if one fails.

    A process that fails alone would leave the others waiting in their next collective operation. All processes must
    call this. The function must not communicate with other processes.

    Example:

    ```python
    >>> raise_on_all(lambda: "known")
    'known'

    ```
    """
    failure: Exception | None = None
    try:
        result = make()
    except Exception as error:
        failure = error
    state = PartialState()
    if state.num_processes > 1:
        number = torch.tensor(int(failure is not None), device=state.device)
        if reduce(number, "sum") > 0:
            failures = gather_object([None if failure is None else picklable_error(failure)])
            failure = failure or next(error for error in failures if error is not None)
    if failure is not None:
        raise failure
    return result


def picklable_error(error: Exception) -> Exception:
    """Return an error that can be sent to other processes: the error itself or, if it cannot be pickled, its text.

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
    """Destroy the Gloo process groups of this process and all references to them, so that their threads end.

    Registered with `atexit` when this module is imported. A Gloo thread that releases the last reference to a tensor
    while the interpreter shuts down aborts the process ("terminate called without an active exception").
    `torch.distributed.destroy_process_group` does not end the threads, which live as long as an engine, such as
    `DistributedDataParallel`, refers to the group. No communication is possible afterwards.
    """
    if dist.is_initialized():
        if dist.get_backend() != "gloo":  # NCCL has no such threads, and destroying it waits for the other processes
            return
        dist.destroy_process_group()
    elif "WORLD_SIZE" not in os.environ:
        return
    objects = gc.get_objects()
    # The garbage collector does not track extension types and tuples of them, but it tracks their referrers.
    found = {id(thing): thing for thing in gc.get_referents(*objects) if type(thing) in _HOLDING_GROUPS}
    groups = [thing for thing in found.values() if type(thing) is ProcessGroup]
    for holder in gc.get_referrers(*found.values()):
        if holder is not found and holder is not groups:
            _drop_references(holder)
    # Modules imported after the group was created have functions with defaults such as `group=dist.group.WORLD`.
    for function in objects:
        defaults = function.__defaults__ or () if type(function) is FunctionType else ()
        if any(type(default) in _HOLDING_GROUPS for default in defaults):
            function.__defaults__ = tuple(None if type(each) in _HOLDING_GROUPS else each for each in defaults)
    # The groups must be released last: a group that is destroyed with a reducer waits for its threads while holding
    # the GIL, which they may need; destroying the group's Python object releases the GIL.
    found.clear()
    groups.clear()


_HOLDING_GROUPS = frozenset({ProcessGroup, Reducer, Logger})


def _drop_references(holder: Any) -> None:
    """Replace process groups and their holders by `None` in a list, a dictionary or the attributes of an object."""
    if isinstance(holder, list):
        holder[:] = [None if type(entry) in _HOLDING_GROUPS else entry for entry in holder]
        return
    entries = holder if isinstance(holder, dict) else getattr(holder, "__dict__", None)
    if isinstance(entries, dict):
        for name in [name for name, entry in entries.items() if type(entry) in _HOLDING_GROUPS]:
            entries[name] = None


atexit.register(leave_process_groups)
