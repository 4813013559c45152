"""The Triton backend on a GPU: at most twice the error of plain PyTorch; head dims, blocks, switches; determinism."""

import pytest
import torch

from dattn import (
    Alike,
    Anchor,
    Clustered,
    Dense,
    Neighborhood,
    PerHead,
    Pyramid,
    Radial,
    Rectified,
    Selected,
    SignificanceTail,
    SparseVideoGen,
    TokenGrid,
    VMoBA,
    XAttention,
    attention,
)
from dattn.backends import run
from dattn.backends.problem import Problem
from dattn.kernels.config import SWITCHES
from dattn.orders import Curve, Tiled
from dattn.scores import Pooled, Sampled
from dattn.selection import TopK, TopP
from tests.kernels.rule import check_error, packed, turn_on, without_keys

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
CASES = {
    "dense": (Dense(), TokenGrid(3, 16, 20, text=77)),
    "radial": (Radial(block_size=128), TokenGrid(9, 12, 20, text=(30, 77))),
    "radial-tail": (Radial(block_size=64, decay=0.3, sink=False, tail=16), TokenGrid(21, 9, 11)),
    "neighborhood": (Neighborhood((3, 5, 9)), TokenGrid(9, 15, 17, text=40)),
    "neighborhood-strided": (Neighborhood((3, 10, 12), (1, 5, 4), tile=(1, 5, 4)), TokenGrid(5, 15, 16)),
}
PER_HEAD = {
    tail: PerHead((Radial(block_size=64, tail=tail), Neighborhood(3, tile=(1, 8, 8), tail=tail)))
    for tail in (False, 16)
}
PER_HEAD_GRID = TokenGrid(9, 12, 20)


def tensors(grid, dim, dtype, batch=2, heads=3):
    generator = torch.Generator("cuda").manual_seed(dim)
    shape = (batch, grid.tokens, heads, dim)
    make = lambda: torch.randn(shape, generator=generator, device="cuda").to(dtype).transpose(1, 2).detach()
    return [make().requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_error_is_at_most_twice_that_of_plain_pytorch(case, dtype, padded):
    pattern, grid = CASES[case]
    inputs = tensors(grid, 64, dtype)
    key_mask = torch.rand(2, grid.tokens, device="cuda") > 0.3 if padded else None
    check_error(inputs, pattern, grid, key_mask)


@pytest.mark.parametrize("dim", [16, 32, 40, 64, 72, 80, 96, 128, 160, 256])
def test_head_dims(dim):
    pattern, grid = CASES["radial"]
    check_error(tensors(grid, dim, torch.bfloat16), pattern, grid)


BLOCKS = {
    "radial": lambda block: Radial(block_size=block),
    "radial-tail": lambda block: Radial(block_size=block, decay=0.3, tail=16),
    "neighborhood": lambda block: Neighborhood((3, 9, 9), tile=(1, block // 8, 8)),
    "neighborhood-tail": lambda block: Neighborhood((3, 9, 9), tile=(1, block // 8, 8), tail=16),
}


@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
@pytest.mark.parametrize("dim", [32, 64, 96, 128])
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("kind", BLOCKS)
def test_rows_of_the_table(kind, block, dim, padded):
    grid = TokenGrid(7, 12, 20, text=(30, 77))
    key_mask = torch.rand(2, grid.tokens, device="cuda") > 0.3 if padded else None
    check_error(tensors(grid, dim, torch.bfloat16), BLOCKS[kind](block), grid, key_mask)


@pytest.mark.parametrize("case", ["radial", "radial-tail", "per-head"])
def test_packed_tensors_and_a_sample_without_keys(case):
    pattern, grid = CASES.get(case, (PER_HEAD[False], PER_HEAD_GRID))
    check_error(packed(grid, 64, torch.bfloat16, "cuda"), pattern, grid, without_keys(grid, "cuda"))


@pytest.mark.parametrize("case", ["radial-tail", "neighborhood"])
@pytest.mark.parametrize("switch", SWITCHES)
def test_switches(monkeypatch, switch, case):
    major, minor = torch.cuda.get_device_capability()
    if 10 * major + minor < SWITCHES[switch]:
        pytest.skip(f"{switch} begins at {SWITCHES[switch] / 10}")
    turn_on(monkeypatch, [switch])
    pattern, grid = CASES[case]
    check_error(tensors(grid, 128, torch.bfloat16), pattern, grid)


@pytest.mark.parametrize("case", ["neighborhood", "radial-tail", "per-head"])
def test_the_same_twice(case):
    pattern, grid = CASES.get(case, (PER_HEAD[16], PER_HEAD_GRID))
    inputs = tensors(grid, 64, torch.bfloat16)
    results = []
    for _ in range(2):
        output, lse = run("triton", Problem(*inputs, pattern.mask(grid).to("cuda"), 0.125))
        results.append([output, lse, *torch.autograd.grad(output.float().sum() + lse.sum(), inputs)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


DYNAMIC = {
    "selected": Selected(Pooled(), TopK(0.3), Curve(), block_size=64),
    "antidiagonal": XAttention(8, 0.6, 64),
    "gated": VMoBA(1, (4, 4), (2, 4, 4), votes=0.5),
    "sampled": Selected(Sampled(), TopP(0.5), Tiled((1, 8, 8)), block_size=64, tail=True),
    "alike": Alike(0.2, tail=16),
    "sparse-video-gen": SparseVideoGen(0.3, block_size=64),
    "clustered": Clustered(20, 40, top_p=0.5, block_size=64, tail=True),
    "rectified": Rectified(Selected(Pooled(), TopK(0.3), block_size=64)),
    "anchor": Anchor(1.0, 2, block_size=64),
    "pyramid": Pyramid((0.2, 0.4, 0.6, 0.8), guards=(0.0, 0.0, 0.0), block_size=64, tail=True),
    "significance": SignificanceTail(XAttention(8, 0.4, 64)),
}


@pytest.mark.parametrize("name", DYNAMIC)
def test_what_looks_at_queries_and_keys(name):
    """The same mask twice, and the kernels as the torch backend has it; both in float32 on the same device."""
    pattern, grid = DYNAMIC[name], TokenGrid(9, 12, 20, text=(30, 77))
    inputs = tensors(grid, 64, torch.float32)
    results = [attention(*inputs, pattern, grid, backend=name) for name in ("triton", "torch", "triton")]
    assert torch.equal(results[0], results[2])
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-3)
    for a, b in zip(*(torch.autograd.grad(out.square().sum(), inputs) for out in results[:2]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)


def test_auto_is_triton_here():
    pattern, grid = CASES["radial"]
    inputs = tensors(grid, 64, torch.bfloat16)
    auto, asked = (attention(*inputs, pattern, grid, backend=name) for name in ("auto", "triton"))
    assert torch.equal(auto, asked)
