"""Every kernel and configuration compiled for GPUs that are not here: no spills, and Hopper's matrix instructions."""

import json
import os
from contextlib import contextmanager
from itertools import product

import pytest
import torch
import triton

from dattn import Neighborhood, Pyramid, Radial, TokenGrid
from dattn.apps import benchmark_compiled
from dattn.apps.benchmark import main
from dattn.backends import run
from dattn.backends.problem import Problem
from dattn.backends.triton_lists import lists_of
from dattn.kernels import antidiagonal, block_weights, launch, options
from dattn.kernels.ahead import KERNELS, Recorder, _signature, compile_call, recorded

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels are Python: nothing to compile"
)
SHARED = {80: 163, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB of shared memory that a program may have
SPILLED = 0 if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9) else 64  # older ones: a few words
MASKS = {
    "full": lambda block: Radial(block_size=block),
    "partial": lambda block: Neighborhood((3, 9, 9), tile=(1, block // 8, 8)),
    "pooled": lambda block: Radial(block_size=block, decay=0.2, tail=16),
    "all": lambda block: Neighborhood((3, 9, 9), tile=(1, block // 8, 8), tail=16),
    "levels": lambda block: Pyramid((0.2, 0.4, 0.6, 0.8), by="blocks", block_size=block),
}
WANTED = {
    "full": {"forward", "deltas", "grad_query", "grad_key"},
    "partial": {"forward", "grad_query", "grad_key", "reorder"},
    "pooled": {"forward", "grad_query", "grad_key", "grad_pool", "run_means", "spread_means"},
    "all": {"forward", "grad_query", "grad_key", "grad_pool", "reorder", "run_means", "spread_means"},
    "levels": {"forward", "grad_query", "grad_key", "grad_pool", "run_means", "spread_means"},
}
LONG = {("all", 64, 100), ("levels", 64, 100)}  # minutes in all: compiling for Blackwell takes longest
GRID = TokenGrid(5, 16, 16, text=7)
ROWS = dict.fromkeys(("forward", "grad_query", "antidiagonal", "block_weights"), "M") | dict.fromkeys(
    ("grad_key", "grad_pool"), "N"
)  # of what products of matrices give; Hopper's instructions begin at 64


def inputs_on(grid, dim, dtype=torch.bfloat16):
    """In memory as models have them."""
    make = lambda: torch.zeros(1, grid.tokens, 2, dim, dtype=dtype).transpose(1, 2)
    return [make().requires_grad_() for _ in range(3)]


def check_usage(calls, architecture, wanted, half=True, spilled=SPILLED):
    """Compile the noted calls; print and check what they take.

    ``wanted``: kernels that must be among them. None may spill more than ``spilled`` bytes, and those of ``half``
    precision must use Hopper's matrix instructions there.
    """
    names = set()
    for kernel, args, constants in calls:
        usage, name = compile_call(kernel, args, constants, architecture), kernel.__name__
        names.add(name)
        tile = constants["TILE"]
        print(f"sm{architecture} d{tile.DIM} block {tile.SIZE} {name:12} {usage}")
        assert 0 < usage.registers <= 255 and usage.spilled <= spilled, (name, usage)
        assert usage.shared <= SHARED[architecture] << 10, (name, usage)
        if half and architecture == 90 and name in ROWS and getattr(tile, ROWS[name]) >= 64:
            assert usage.wgmma > 0, (name, usage)
    assert names >= wanted, names


def attend(pattern, dim, dtype=torch.bfloat16, padded=False):
    """Forward and backward pass."""
    inputs = inputs_on(GRID, dim, dtype)
    mask = pattern.mask(GRID) if pattern.static else pattern.mask_for(*inputs[:2], GRID)
    key_mask = torch.ones(1, GRID.tokens, dtype=torch.bool) if padded else None
    output, lse = run("triton", Problem(*inputs, mask, 1.0, key_mask))
    torch.autograd.grad(output.sum() + lse.sum(), inputs)


def score_blocks(dim, dtype):
    """All kernels of scores."""
    mask = MASKS["partial"](128).mask(GRID)
    lists, (query, key, _) = lists_of(mask), inputs_on(GRID, dim, dtype)
    visits, kept = lists.visits, torch.ones(1, 1, GRID.tokens, dtype=torch.uint8)
    for stride in (8, 16):
        antidiagonal.antidiagonal_scores(query, key, visits.own, visits.other, visits.sets, kept, 128, stride)
    lse = torch.zeros(1, 2, GRID.tokens)
    for listed in (visits.full, visits.partial):
        block_weights.weights_of_blocks(query, key, lse, visits, listed, kept, 128, lists.ragged, 1.0)


def check_attention(kind, architecture, block, dim, dtype=torch.bfloat16):
    """Forward and backward pass of attention under a mask of this kind; "all" has padded keys too."""
    with recorded(architecture) as calls:
        attend(MASKS[kind](block), dim, dtype, padded=kind == "all")
    few = dtype == torch.float32 or dim > 128 or architecture in (89, 120)  # the latter have the table's rows of 80
    check_usage(calls, architecture, WANTED[kind], dtype != torch.float32, 64 if few else SPILLED)


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize(
    ("kind", "block", "architecture"),
    [
        pytest.param(*case, marks=pytest.mark.slow if case in LONG else ())
        for case in product(MASKS, (64, 128), (80, 90, 100))
    ],
)
def test_no_spills_and_tensor_cores(kind, block, architecture, dim):
    check_attention(kind, architecture, block, dim)


def test_tiles_with_a_tail_in_small_blocks():
    """Without padded keys: a mask of its own to the compiler."""
    with recorded(100) as calls:
        pattern = Neighborhood((3, 9, 9), tile=(1, 8, 8), tail=16)
        run("triton", Problem(*inputs_on(GRID, 64), pattern.mask(GRID), 1.0))
    check_usage([call for call in calls if call.kernel.__name__ == "forward"], 100, {"forward"})


def test_float16_has_hopper_instructions_too():
    check_attention("full", 90, 128, 128, torch.float16)


@pytest.mark.parametrize(
    ("architecture", "switch"),
    [
        (90, "lazy"),
        (90, "descriptors"),
        (100, "descriptors"),
        pytest.param(
            *(100, "specialized"),
            marks=pytest.mark.skipif(bool(SPILLED), reason="the compiler of older Triton fails on specialised warps"),
        ),
    ],
)
def test_switches_compile_without_spills(monkeypatch, architecture, switch):
    """What ``dattn bench sweep`` tries; descriptors read by the tensor memory accelerator there."""
    plain = launch.configs

    def configs(*asked):
        row = plain(*asked)
        return row._replace(forward=row.forward._replace(**{switch: True}))

    monkeypatch.setattr(launch, "configs", configs)
    with recorded(architecture) as calls:
        run("triton", Problem(*inputs_on(GRID, 128), MASKS["partial"](128).mask(GRID), 1.0))
    check_usage(calls, architecture, {"forward"})


def test_stages_are_as_many_buffers_of_keys_and_values():
    """A turn's list entry is read a turn ahead: read inside of it, it would take stages of the pipeline for itself."""
    with recorded(90) as calls:
        run("triton", Problem(*inputs_on(GRID, 128), MASKS["full"](128).mask(GRID), 1.0))
    kernel, args, constants = calls[-1]
    assert constants["num_stages"] == 3 and kernel.__name__ == "forward"
    shared = [compile_call(kernel, args, constants | {"num_stages": n}, 90).shared for n in (2, 3)]
    tile = constants["TILE"]
    assert shared[1] - shared[0] == 2 * 2 * tile.N * tile.WIDTH


@pytest.mark.parametrize(("architecture", "dim"), [(80, 72), (90, 72), (90, 80), (90, 96)])
def test_heads_that_are_no_power_of_two(architecture, dim):
    """Of 72, as PixArt has them: loads of 16 bytes, or registers would go into addresses."""
    check_attention("partial", architecture, 128, dim)


@pytest.mark.parametrize("architecture", [80, 89, 90])
def test_the_widest_heads_spill_little_and_fit(architecture):
    check_attention("full", architecture, 128, 256)


@pytest.mark.parametrize(("kind", "dim"), [("partial", 64), ("full", 256)])
def test_float32_spills_little_and_fits(kind, dim):
    check_attention(kind, 89, 128, dim, torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("architecture", [89, 90])
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_float32_at_any_head_dim(monkeypatch, precision, architecture, dim):
    for module in (launch, options):
        monkeypatch.setattr(module, "precision", lambda dtype: precision)
    check_attention("pooled", architecture, 128, dim, torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [16, 32, 72, 128])
@pytest.mark.parametrize("block", [16, 64, 128])
@pytest.mark.parametrize("architecture", SHARED)
@pytest.mark.parametrize("kind", MASKS)
def test_no_spills_at_any_head_dim_in_float16(kind, architecture, block, dim):
    check_attention(kind, architecture, block, dim, torch.float16)


@pytest.mark.parametrize(
    ("architecture", "dtype", "dim"),
    [
        *product([80, 90, 100], [torch.bfloat16], [64, 128]),
        (90, torch.float32, 64),
        (89, torch.float32, 256),
        (89, torch.bfloat16, 256),
    ],
    ids=str,
)
def test_kernels_of_block_scores(architecture, dtype, dim):
    with recorded(architecture) as calls:
        score_blocks(dim, dtype)
    half = dtype != torch.float32
    check_usage(calls, architecture, {"antidiagonal", "block_weights"}, half, SPILLED if half else max(SPILLED, 64))


def test_launches_are_on_the_device_of_their_tensors(monkeypatch):
    guarded, launched = [], {}

    @contextmanager
    def device_of(tensor):
        guarded.append(tensor)
        yield
        guarded.pop()

    def noted(recorder, grid):
        return lambda *args, **constants: launched.setdefault(recorder.kernel.__name__, []).append(list(guarded))

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(Recorder, "__getitem__", noted)
    with recorded(90):
        for kind in ("partial", "pooled"):
            attend(MASKS[kind](128), 64)
        score_blocks(64, torch.bfloat16)
    assert set(launched) == {name for names in KERNELS.values() for name in names}
    assert all(len(guards) == 1 for each in launched.values() for guards in each)


def test_integers_are_typed_as_a_launch_types_them():
    """1 is a constant, so that a single set of lists has a kernel of its own; strides beyond 32 bits are longer."""
    fixed, attributes = {}, {}
    types = [_signature(value, (at,), fixed, attributes) for at, value in enumerate((1, 2, 1 << 30, 1 << 31))]
    assert types == ["constexpr", "i32", "i32", "i64"]
    assert fixed == {(0,): 1} and set(attributes) == {(2,), (3,)}


def test_the_benchmark_lists_what_kernels_take(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark_compiled, "ARCHITECTURES", (90,))
    monkeypatch.setattr(benchmark_compiled, "PATTERNS", benchmark_compiled.PATTERNS[:1])
    asked = ["compiled", "--head-dims", "128", "--dtypes", "float16", "--blocks", "128"]
    assert main([*asked, "--output", str(tmp_path / "compiled.json")]) == 0
    rows = json.loads((tmp_path / "compiled.json").read_text())["compiled"]
    assert [row["kernel"] for row in rows] == ["forward", "deltas", "grad_query", "grad_key"]
    assert all(row["spilled"] == 0 and row["registers"] > 0 for row in rows)
    assert all(row["wgmma"] > 0 and row["shared"] > 0 for row in rows if row["kernel"] != "deltas")
    assert "registers" in capsys.readouterr().out and launch.INTERPRETED_ARCHITECTURE == 80


def test_the_benchmark_refuses_interpreted_kernels(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        benchmark_compiled.compiled(None, None)
