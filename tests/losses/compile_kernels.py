"""Compile the Triton kernels for GPUs, without one: `python -m tests.losses.compile_kernels`."""

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from trl_akd.losses import triton_kernels

TARGETS = [GPUTarget("cuda", 80, 32), GPUTarget("cuda", 90, 32), GPUTarget("hip", "gfx942", 64)]
INTEGERS = ("words", "stride", "tokens", "gradient_stride")
DEFAULTS: dict[str, Any] = {
    "HAS_TEACHER": True,
    "HAS_STUDENT_BIAS": False,
    "HAS_TEACHER_BIAS": False,
    "STUDENT_SCALE": 1.0,
    "STUDENT_CAP": 0.0,
    "TEACHER_SCALE": 1.0,
    "TEACHER_CAP": 0.0,
    "TEMPERATURE": 1.0,
    "CE_WEIGHT": 0.0,
    "HAS_CE_WEIGHTS": False,
    "LIMIT": 0.5,
    "BLOCK": 4096,
}
EVERYTHING = {
    "HAS_STUDENT_BIAS": True,
    "HAS_TEACHER_BIAS": True,
    "STUDENT_SCALE": 0.5,
    "STUDENT_CAP": 30.0,
    "TEACHER_SCALE": 2.0,
    "TEACHER_CAP": 50.0,
    "TEMPERATURE": 2.0,
    "CE_WEIGHT": 1.0,
    "HAS_CE_WEIGHTS": True,
}


def build(target: GPUTarget, kernel: str, logits: str, gradient: str, real: str, **constants: Any) -> None:
    """Compile a kernel for products, gradients and statistics of the given dtypes."""
    function = getattr(triton_kernels, kernel)
    constants = DEFAULTS | {"NARROW": logits != gradient} | constants
    if "FORMULA" in constants:
        constants["FORMULA"] = getattr(triton_kernels, constants["FORMULA"]).value
    pointers = {"student": logits, "teacher": logits, "gradient": gradient, "labels": "i64"}
    signature, values = {}, {}
    for index, name in enumerate(function.arg_names):
        if name in constants:
            signature[name], values[(index,)] = "constexpr", constants[name]
        else:
            signature[name] = "i32" if name in INTEGERS else "*" + pointers.get(name, real)
    triton.compile(ASTSource(function, signature, values), target=target, options={"num_warps": 8})


def main() -> None:
    for target in TARGETS:
        for logits, gradient in (("fp32", "bf16"), ("bf16", "bf16"), ("fp32", "fp32")):
            build(target, "statistics_kernel", logits, gradient, "fp32")
            build(target, "gradient_kernel", logits, gradient, "fp32", FORMULA="MIX")
    first = TARGETS[0]
    for real in ("fp32", "fp64"):
        dtypes = (real, real, real)
        build(first, "statistics_kernel", *dtypes, **EVERYTHING)
        build(first, "statistics_kernel", *dtypes, HAS_TEACHER=False)
        build(first, "head_kernel", *dtypes, **EVERYTHING)
        for formula in ("OVERLAP", "JSD", "TODI", "ALPHA"):
            build(first, "sums_kernel", *dtypes, FORMULA=formula)
        for formula in ("LIKELIHOOD", "MIX", "JSD", "TODI", "ALPHA"):
            build(first, "gradient_kernel", *dtypes, FORMULA=formula, **EVERYTHING)
    build(first, "probe_kernel", "fp32", "fp32", "fp32")


if __name__ == "__main__":
    main()
