"""GPUs: memory, throughput and bandwidth, from the data sheets of their vendors."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from time import perf_counter
from types import MappingProxyType

import torch

__all__ = ["GIB", "GPUS", "Gpu", "find_gpu", "measure_cpu"]

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """Memory and peak rates of a GPU.

    Args:
        name (`str`):
            Name for messages.
        memory_gib (`float`):
            Total memory in GiB, as `nvidia-smi` shows it.
        tflops (`float`):
            Dense half-precision matrix products in TFLOP/s, without sparsity.
        tflops_float32 (`float`):
            float32 in TFLOP/s, without TF32.
        bandwidth (`float`):
            Bandwidth of the memory in GB/s.
        link_bandwidth (`float`, *optional*, defaults to `25.0`):
            Bandwidth to the other GPUs in GB/s and direction; by default that of PCIe 4.0 with 16 lanes, in practice.
        has_bfloat16 (`bool`, *optional*, defaults to `True`):
            Whether it multiplies matrices of bfloat16.
    """

    name: str
    memory_gib: float
    tflops: float
    tflops_float32: float
    bandwidth: float
    link_bandwidth: float = 25.0
    has_bfloat16: bool = True

    @property
    def memory(self) -> int:
        """Total memory in bytes."""
        return int(self.memory_gib * GIB)


GPUS: Mapping[str, Gpu] = MappingProxyType(
    {
        gpu.name: gpu
        for gpu in (
            Gpu("b200", 179.0, 2250.0, 75.0, 8000.0, 900.0),
            Gpu("h200", 140.4, 989.0, 67.0, 4800.0, 450.0),
            Gpu("h100", 79.6, 989.0, 67.0, 3350.0, 450.0),
            Gpu("a100-80", 80.0, 312.0, 19.5, 2039.0, 300.0),
            Gpu("a100-40", 40.0, 312.0, 19.5, 1555.0, 300.0),
            Gpu("l40s", 45.0, 362.0, 91.6, 864.0),
            Gpu("l4", 22.5, 121.0, 30.3, 300.0),
            Gpu("a10g", 22.5, 70.0, 31.2, 600.0),
            Gpu("rtx4090", 24.0, 165.0, 82.6, 1008.0),
            Gpu("rtx3090", 24.0, 71.0, 35.6, 936.0),
            Gpu("v100-32", 32.0, 125.0, 15.7, 900.0, 150.0, has_bfloat16=False),
            Gpu("t4", 15.0, 65.0, 8.1, 320.0, has_bfloat16=False),
            Gpu("mi300x", 192.0, 1307.0, 163.4, 5300.0, 64.0),
        )
    }
)
"""Known GPUs by name. Those without NVLink have the bandwidth of PCIe as `link_bandwidth`."""

_DEFAULT = "h100"


def find_gpu(
    name: str | None = None,
    *,
    memory_gib: float | None = None,
    tflops: float | None = None,
    bandwidth: float | None = None,
    on_cpu: bool = False,
) -> Gpu:
    """Return a known GPU, with the given values in place of its own.

    Args:
        name (`str`, *optional*):
            One of `GPUS`. Defaults to the GPU of this machine, or to an H100 if there is none.
        memory_gib (`float`, *optional*):
            Memory in GiB.
        tflops (`float`, *optional*):
            Matrix products in TFLOP/s, in the precision of the run.
        bandwidth (`float`, *optional*):
            Bandwidth of the memory in GB/s.
        on_cpu (`bool`, *optional*, defaults to `False`):
            Whether to return the CPU of this machine, if no GPU is named.

    Raises:
        ValueError: If there is no such GPU, or a value is not positive.

    Example:

    ```python
    >>> find_gpu("a100-80", memory_gib=20.0).memory_gib
    20.0

    ```
    """
    for option, value in (("gpu_memory_gb", memory_gib), ("gpu_tflops", tflops), ("gpu_bandwidth", bandwidth)):
        if value is not None and not 0.0 < value < float("inf"):
            raise ValueError(f"`{option}` is {value}; give a positive number.")
    if name is not None:
        gpu = _known(name)
    else:
        gpu = measure_cpu() if on_cpu else _this_machine()
    return replace(
        gpu,
        memory_gib=gpu.memory_gib if memory_gib is None else memory_gib,
        tflops=gpu.tflops if tflops is None else tflops,
        tflops_float32=gpu.tflops_float32 if tflops is None else tflops,
        bandwidth=gpu.bandwidth if bandwidth is None else bandwidth,
    )


def measure_cpu() -> Gpu:
    """Return the memory of this machine, and the throughput of its CPU, measured with products of float32 matrices."""
    size = 512
    matrix, copy = torch.ones(size, size), torch.ones(16 * 2**20)
    seconds = [_fastest(lambda: torch.mm(matrix, matrix)), _fastest(copy.clone)]
    tflops = 2 * size**3 / seconds[0] / 1e12
    bandwidth = 2 * copy.numel() * copy.itemsize / seconds[1] / 1e9
    return Gpu("CPU", _physical_memory() / GIB, tflops, tflops, bandwidth)


def _physical_memory() -> int:
    if not hasattr(os, "sysconf"):
        raise ValueError("the memory of this machine is not known; name a GPU by `--gpu`.")
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _fastest(function: Callable[[], object], repeats: int = 5) -> float:
    """Return the seconds of the fastest of some calls."""
    seconds = []
    for _ in range(repeats):
        start = perf_counter()
        function()
        seconds.append(perf_counter() - start)
    return min(seconds)


def _known(name: str) -> Gpu:
    found = GPUS.get(name.lower())
    if found is None:
        close = get_close_matches(name.lower(), GPUS, n=1)
        hint = f" did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"`gpu` is {name!r}, which is not known;{hint} choose one of {', '.join(GPUS)}, or describe it by "
            "`gpu_memory_gb`, `gpu_tflops` and `gpu_bandwidth`."
        )
    return found


def _this_machine() -> Gpu:
    if not torch.cuda.is_available():
        return GPUS[_DEFAULT]
    device = torch.cuda.get_device_properties(0)
    plain = device.name.lower().replace(" ", "")
    memory = device.total_memory / GIB
    names = [name for name in GPUS if name.partition("-")[0] in plain]
    closest = min(names or [_DEFAULT], key=lambda name: abs(GPUS[name].memory_gib - memory))
    return replace(
        GPUS[closest], name=device.name if names else f"{device.name}, at the rates of {closest}", memory_gib=memory
    )
