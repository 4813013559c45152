"""Every kernel and configuration compiled for GPUs that are not here: no spills, and Hopper's matrix instructions."""

import os

import pytest
import torch

from dattn import Neighborhood, Radial, TokenGrid
from dattn.backends import run
from dattn.backends.problem import Problem
from dattn.kernels import launch
from dattn.kernels.ahead import compile_call

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels are Python: nothing to compile"
)
SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # bytes of shared memory that a program may have
MASKS = {
    "full": Radial(block_size=128),
    "partial": Neighborhood((3, 9, 9), tile=(1, 8, 16)),
    "pooled": Radial(block_size=128, decay=0.2, tail=16),
}


class Recorder:
    """Stands in for a kernel: notes how it is called."""

    def __init__(self, kernel, calls):
        self.kernel, self.calls = kernel, calls

    def __getitem__(self, grid):
        return lambda *args, **constants: self.calls.append((self.kernel, args, constants))


def calls_of(monkeypatch, pattern, architecture, dim, dtype):
    """All kernel calls of one forward and backward pass, as (kernel, arguments, constants)."""
    calls = []
    for name in ("forward", "deltas", "grad_query", "grad_key", "grad_pool"):
        monkeypatch.setattr(launch, name, Recorder(getattr(launch, name), calls))
    monkeypatch.setattr(launch, "INTERPRETED_ARCHITECTURE", architecture)
    grid = TokenGrid(5, 16, 16, text=7)
    inputs = [torch.zeros(1, 2, grid.tokens, dim, dtype=dtype, requires_grad=True) for _ in range(3)]
    output, lse = run("triton", Problem(*inputs, pattern.mask(grid), 1.0))
    torch.autograd.grad(output.sum() + lse.sum(), inputs)
    return calls


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize("kind", MASKS)
def test_no_spills_and_tensor_cores(monkeypatch, kind, architecture, dim):
    rows = []
    for kernel, args, constants in calls_of(monkeypatch, MASKS[kind], architecture, dim, torch.bfloat16):
        usage = compile_call(kernel, args, constants, architecture)
        rows.append((kernel.__name__, usage))
        print(f"sm{architecture} d{dim} {kind:8} {kernel.__name__:11} {usage}")
    assert {name for name, _ in rows} >= {"forward", "deltas", "grad_query", "grad_key"}
    for name, usage in rows:
        assert 0 < usage.registers <= 255 and usage.spilled == 0, (name, usage)
        assert usage.shared <= SHARED[architecture], (name, usage)
        if architecture == 90 and name != "deltas":
            assert usage.wgmma > 0, (name, usage)
