"""Compiling a kernel for a GPU that is not there: registers, spills, shared memory, tensor-core instructions."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from . import antidiagonal, block_weights, launch, pool, reorder

KERNELS: dict[ModuleType, tuple[str, ...]] = {
    launch: ("forward", "deltas", "grad_query", "grad_key", "grad_pool"),
    reorder: ("reorder",),
    pool: ("run_means", "spread_means"),
    antidiagonal: ("antidiagonal",),
    block_weights: ("block_weights",),
}
"""The modules that launch, and the kernels that each of them launches."""
TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.uint8: "*u8",
}
OPTIONS = ("num_warps", "num_stages")


@dataclass(frozen=True)
class Usage:
    """What a compiled kernel takes.

    Attributes:
        registers: 32-bit registers of a thread.
        spilled: bytes that a thread keeps in memory for want of registers.
        shared: bytes of shared memory of a program.
        wgmma: Hopper's warp-group matrix instructions in the code.
    """

    registers: int
    spilled: int
    shared: int
    wgmma: int


class Call(NamedTuple):
    """A launch that was not made: ``kernel[grid](*args, **constants)``."""

    kernel: Any
    args: tuple[Any, ...]
    constants: dict[str, Any]


@dataclass(frozen=True)
class Recorder:
    """Stands in for a kernel: notes how it is called."""

    kernel: Any
    calls: list[Call]

    def __getitem__(self, grid: Any) -> Any:
        """What takes the arguments of a launch."""
        return lambda *args, **constants: self.calls.append(Call(self.kernel, args, constants))


@contextmanager
def recorded(architecture: int) -> Iterator[list[Call]]:
    """Launches on CPU tensors, set up for compute capability ``architecture`` (90 is 9.0), are listed, not made.

    What they would have written is left as it is.
    """
    calls: list[Call] = []
    kept = {(module, name): getattr(module, name) for module, names in KERNELS.items() for name in names}
    instead = {place: Recorder(kernel, calls) for place, kernel in kept.items()}
    kept[launch, "INTERPRETED_ARCHITECTURE"] = launch.INTERPRETED_ARCHITECTURE
    try:
        _put({**instead, (launch, "INTERPRETED_ARCHITECTURE"): architecture})
        yield calls
    finally:
        _put(kept)


def _put(values: Mapping[tuple[ModuleType, str], Any]) -> None:
    for (module, name), value in values.items():
        setattr(module, name, value)


def compile_call(kernel: Any, args: Sequence[Any], constants: Mapping[str, Any], architecture: int) -> Usage:
    """Compile the call ``kernel[grid](*args, **constants)`` for compute capability ``architecture`` (90 is 9.0).

    Not under ``TRITON_INTERPRET=1``, where kernels are Python.
    """
    names = kernel.arg_names
    signature: dict[str, Any] = {}
    fixed: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for at, (name, value) in enumerate(zip(names, args, strict=False)):
        signature[name] = _signature(value, (at,), fixed, attributes)
    for name in names[len(args) :]:
        signature[name] = "constexpr"
        fixed[(names.index(name),)] = constants[name]
    source = ASTSource(kernel, signature, constexprs=fixed, attrs=attributes)
    options = {name: constants[name] for name in OPTIONS if name in constants}
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    return _usage(compiled, architecture)


def _signature(value: Any, at: tuple[int, ...], fixed: dict[Any, Any], attributes: dict[Any, Any]) -> Any:
    if isinstance(value, TensorDescriptor):
        return f"tensordesc<{TYPES[value.base.dtype][1:]}{value.block_shape}>".replace(" ", "")
    if isinstance(value, tuple):
        return type(value)(*[_signature(v, (*at, i), fixed, attributes) for i, v in enumerate(value)])
    if value is None or (isinstance(value, int) and value == 1):  # of these every value is a kernel of its own
        fixed[at] = value
        return "constexpr"
    if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
        attributes[at] = [["tt.divisibility", 16]]
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    if isinstance(value, int):
        return "i32" if value < 1 << 31 else "i64"
    return "fp32"


def _usage(compiled: Any, architecture: int) -> Usage:
    """Read what the assembler says; Triton itself counts spills only where there is a GPU."""
    name = f"sm_{architecture}a" if architecture >= 90 else f"sm_{architecture}"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(compiled.asm["ptx"])
        file.flush()
        command = [get_ptxas(architecture).path, "-v", "--gpu-name", name, file.name, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    found = (re.search(pattern, said) for pattern in (r"Used (\d+) registers", r"(\d+) bytes spill stores"))
    registers, spilled = (int(match.group(1)) if match else -1 for match in found)
    return Usage(registers, spilled, compiled.metadata.shared, compiled.asm["ptx"].count("wgmma.mma_async"))
