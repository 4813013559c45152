"""Every kernel and configuration compiled for GPUs that are not here: no spills, and Hopper's matrix instructions."""

import os

import pytest
import torch

from dattn import Neighborhood, Radial, TokenGrid
from dattn.backends import run
from dattn.backends.problem import Problem
from dattn.backends.triton_lists import lists_of
from dattn.kernels import antidiagonal, block_weights, launch, pool, reorder
from dattn.kernels.ahead import compile_call

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels are Python: nothing to compile"
)
SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # bytes of shared memory that a program may have
MASKS = {
    "full": Radial(block_size=128),
    "partial": Neighborhood((3, 9, 9), tile=(1, 16, 8)),
    "pooled": Radial(block_size=128, decay=0.2, tail=16),
}
GRID = TokenGrid(5, 16, 16, text=7)
KERNELS = {
    launch: ("forward", "deltas", "grad_query", "grad_key", "grad_pool"),
    reorder: ("reorder",),
    pool: ("run_means", "spread_means"),
    antidiagonal: ("antidiagonal",),
    block_weights: ("block_weights",),
}
PRODUCTS = {"forward", "grad_query", "grad_key", "grad_pool", "antidiagonal", "block_weights"}  # of matrices


class Recorder:
    """Stands in for a kernel: notes how it is called."""

    def __init__(self, kernel, calls):
        self.kernel, self.calls = kernel, calls

    def __getitem__(self, grid):
        return lambda *args, **constants: self.calls.append((self.kernel, args, constants))


@pytest.fixture
def calls(monkeypatch):
    """Where every kernel call lands instead of on a GPU, as (kernel, arguments, constants)."""
    noted = []
    for module, names in KERNELS.items():
        for name in names:
            monkeypatch.setattr(module, name, Recorder(getattr(module, name), noted))
    return noted


def inputs_on(grid, dim, dtype=torch.bfloat16):
    return [torch.zeros(1, 2, grid.tokens, dim, dtype=dtype, requires_grad=True) for _ in range(3)]


def check_usage(calls, architecture, wanted):
    """Compile the noted calls; print and check what they take. ``wanted``: kernels that must be among them."""
    names = set()
    for kernel, args, constants in calls:
        usage, name = compile_call(kernel, args, constants, architecture), kernel.__name__
        names.add(name)
        print(f"sm{architecture} d{constants['TILE'].DIM} {name:12} {usage}")
        assert 0 < usage.registers <= 255 and usage.spilled == 0, (name, usage)
        assert usage.shared <= SHARED[architecture], (name, usage)
        assert usage.wgmma > 0 or architecture != 90 or name not in PRODUCTS, (name, usage)
    assert names >= wanted, names


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize("kind", MASKS)
def test_no_spills_and_tensor_cores(monkeypatch, calls, kind, architecture, dim):
    monkeypatch.setattr(launch, "INTERPRETED_ARCHITECTURE", architecture)
    inputs = inputs_on(GRID, dim)
    output, lse = run("triton", Problem(*inputs, MASKS[kind].mask(GRID), 1.0))
    torch.autograd.grad(output.sum() + lse.sum(), inputs)
    wanted = {"forward", "deltas", "grad_query", "grad_key"}
    tail = {"grad_pool", "run_means", "spread_means"}
    check_usage(calls, architecture, wanted | {"full": set(), "partial": {"reorder"}, "pooled": tail}[kind])


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_kernels_of_block_scores(calls, architecture, dim):
    mask = MASKS["partial"].mask(GRID)
    lists, (query, key, _) = lists_of(mask), inputs_on(GRID, dim)
    visits, kept = lists.visits, torch.ones(1, 1, GRID.tokens, dtype=torch.uint8)
    for stride in (8, 16):
        antidiagonal.antidiagonal_scores(query, key, visits.own, visits.other, visits.sets, kept, 128, stride)
    lse = torch.zeros(1, 2, GRID.tokens)
    for listed in (visits.full, visits.partial):
        block_weights.weights_of_blocks(query, key, lse, visits, listed, kept, 128, lists.ragged, 1.0)
    check_usage(calls, architecture, {"antidiagonal", "block_weights"})
