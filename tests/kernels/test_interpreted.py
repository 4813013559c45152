"""The Triton backend, interpreted on a CPU, against float64 oracles; with few tokens, for it is slow."""

import os
from dataclasses import replace
from itertools import product

import pytest
import torch

from dattn import (
    Alike,
    Anchor,
    Clustered,
    CrossShaped,
    Dense,
    Neighborhood,
    PerHead,
    Pyramid,
    Radial,
    TokenGrid,
    attention,
)
from dattn.backends import choose, run, triton_lists
from dattn.backends.problem import Problem
from dattn.block_mask import BlockList, BlockMask, pack_bits
from dattn.grid import Layout
from dattn.kernels import arguments
from dattn.kernels.config import SWITCHES
from dattn.spec import Call
from tests import wrong_masks
from tests.kernels.rule import check_error, packed, turn_on, without_keys
from tests.oracles import attention_oracle, tail_oracle

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="the interpreter is chosen before import: TRITON_INTERPRET=1"
)
RADIAL = Radial(block_size=32, decay=0.5, sink=False), TokenGrid(9, 3, 5, text=(3, 20))
TAIL = Radial(block_size=32, decay=0.3, sink=False, tail=16), TokenGrid(17, 3, 3, text=(3, 5))
CASES = {
    "dense": (Dense(), TokenGrid(2, 4, 5, text=6)),
    "radial": RADIAL,
    "neighborhood": (Neighborhood(3, tile=(2, 3, 4)), TokenGrid(3, 5, 7, text=4)),
    "neighborhood-causal-dilated": (
        Neighborhood((3, None, 2), (1, 2, 1), (1, 1, 2), causal=(True, False, False)),
        TokenGrid(4, 4, 5),
    ),
    "head-groups": (PerHead((RADIAL[0], Neighborhood(3, tile=(1, 3, 4)))), TokenGrid(3, 5, 7, text=(3, 4))),
    "cross-shaped": (CrossShaped(3), TokenGrid(2, 5, 9, text=2)),
}


def tensors(grid, dim, dtype=torch.float64, batch=1, heads=2):
    generator = torch.Generator().manual_seed(dim)
    shape = (batch, heads, grid.tokens, dim)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for _ in range(3)]


def padding(grid, batch=1):
    mask = torch.rand(batch, grid.tokens, generator=torch.Generator().manual_seed(1)) > 0.3
    mask[:, 0] = True
    return mask


def loss(output, lse):
    """Weighs every element of the output and of the finite LSE differently."""
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in (output, lse)]
    return (output.double() * weights[0]).sum() + (lse.double().masked_fill(lse == -torch.inf, 0) * weights[1]).sum()


def compare(ours_of, oracle, exact):
    """Output, LSE and gradients of ``ours_of`` at float32 against ``oracle`` at float64, within 32 roundings."""
    ours = [t.detach().float().requires_grad_() for t in exact]
    output, lse = ours_of(*ours)
    expected, expected_lse = oracle(*[t.float().double() for t in exact])
    assert output.dtype == lse.dtype == torch.float32
    unit = 32 * torch.finfo(torch.float32).eps
    near = lambda a, b: torch.testing.assert_close(a.double(), b, rtol=0, atol=unit * max(1, b.abs().max().item()))
    near(output, expected)
    assert torch.equal(lse == -torch.inf, expected_lse == -torch.inf)
    near(lse.masked_fill(lse == -torch.inf, 0), expected_lse.masked_fill(expected_lse == -torch.inf, 0))
    reference = [t.float().double().requires_grad_() for t in exact]
    theirs = torch.autograd.grad(loss(*oracle(*reference)), reference)
    for a, b in zip(torch.autograd.grad(loss(output, lse), ours), theirs, strict=True):
        near(a, b)


@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
@pytest.mark.parametrize("case", CASES)
def test_forward_lse_and_gradients(case, padded):
    pattern, grid = CASES[case]
    key_mask = padding(grid, 2) if padded else None
    compare(
        lambda *t: attention(*t, pattern, grid, scale=0.4, key_mask=key_mask, backend="triton", return_lse=True),
        lambda *t: attention_oracle(*t, pattern.allowed(grid), 0.4, key_mask),
        [t.detach() for t in tensors(grid, 16, batch=2)],
    )


@pytest.fixture(params=[*SWITCHES, "all"])
def switched(request, monkeypatch):
    """One switch of the forward kernel turned on in every configuration, or all of them."""
    turn_on(monkeypatch, SWITCHES if request.param == "all" else [request.param])


@pytest.mark.parametrize("case", ["radial", "neighborhood", "tail"])
def test_switches_change_nothing(switched, case):
    """Ragged blocks, text, tiles, padded keys and rows without any key, at a head dim that is padded."""
    pattern, grid = CASES.get(case, TAIL)
    key_mask = padding(grid, 2)
    key_mask[1] = False
    oracle = lambda *t: attention(*t, pattern, grid, key_mask=key_mask, backend="reference", return_lse=True)
    compare(
        lambda *t: attention(*t, pattern, grid, key_mask=key_mask, backend="triton", return_lse=True),
        oracle,
        [t.detach() for t in tensors(grid, 24, batch=2)],
    )


def test_descriptors_are_used_where_rows_lie_in_steps_of_16_bytes(monkeypatch):
    used = []
    plain = arguments.TensorDescriptor
    monkeypatch.setattr(arguments, "TensorDescriptor", lambda *given: used.append(given) or plain(*given))
    for dim, wanted in ((24, True), (23, False)):
        tensor = torch.zeros(2, 3, 40, dim)
        assert (arguments.Heads.of(tensor).described(32, 32) is not None) == wanted
    assert [given[1:] for given in used] == [([2, 3, 40, 24], [2880, 960, 24, 1], [1, 1, 32, 32])]


@pytest.mark.parametrize("dim", [8, 16, 40, 64, 72, 80, 96, 128, 160, 256])
def test_head_dims(dim):
    pattern, grid = RADIAL
    compare(
        lambda *t: attention(*t, pattern, grid, backend="triton", return_lse=True),
        lambda *t: attention_oracle(*t, pattern.allowed(grid), dim**-0.5),
        [t.detach() for t in tensors(grid, dim, heads=1)],
    )


@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
@pytest.mark.parametrize("case", [*CASES, "tail"])
def test_error_in_float16_is_at_most_twice_that_of_plain_pytorch(case, padded):
    pattern, grid = CASES.get(case, TAIL)
    inputs = [t.detach().half() for t in tensors(grid, 64, batch=2)]
    check_error(inputs, pattern, grid, padding(grid, 2) if padded else None)


def test_error_in_float32_of_packed_tensors_and_a_sample_without_keys():
    """Of head groups with masks of their own, as on a GPU."""
    pattern, grid = CASES["head-groups"]
    check_error(packed(grid, 24, torch.float32, "cpu"), pattern, grid, without_keys(grid, "cpu"))


@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
@pytest.mark.parametrize(
    ("pattern", "grid", "run"),
    [
        (*TAIL, 16),
        (Neighborhood(3, tile=(2, 3, 4), tail=True), TokenGrid(4, 5, 7, text=2), 32),
    ],
)
def test_tail(pattern, grid, run, padded):
    key_mask = padding(grid) if padded else None
    compare(
        lambda *t: attention(*t, pattern, grid, scale=0.4, key_mask=key_mask, backend="triton", return_lse=True),
        lambda *t: tail_oracle(*t, pattern.mask(grid), grid, run, 0.4, key_mask),
        [t.detach() for t in tensors(grid, 16)],
    )


@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
def test_tail_of_head_groups_with_layouts_of_their_own(padded):
    """Against the reference backend: one side has fewer blocks, and its empty ones are pooled into nothing."""
    pattern = PerHead((replace(TAIL[0], tail=16), Neighborhood(3, tile=(1, 3, 3), tail=16)))
    grid, key_mask = TAIL[1], padding(TAIL[1]) if padded else None
    call = lambda backend: lambda *t: attention(*t, pattern, grid, key_mask=key_mask, backend=backend, return_lse=True)
    compare(call("triton"), call("reference"), [t.detach() for t in tensors(grid, 16)])


LISTS = [("anchor", False), *product(["alike", "clustered", "pyramid"], [False, True, 16])]
LONG = [one for one in product(LISTS, [False, True]) if one[0][0] == "pyramid" and one != (("pyramid", 16), True)]


@pytest.mark.parametrize(
    ("kind", "tail", "padded"),
    [
        pytest.param(*one, padded, marks=pytest.mark.slow if (one, padded) in LONG else ())
        for one, padded in product(LISTS, [False, True])
    ],
)
def test_lists_of_every_sample_and_head(kind, tail, padded):
    """Against the reference backend: masks that are made from queries and keys, layouts and all."""
    grid = TokenGrid(3, 5, 7, text=(3, 4))
    key_mask = padding(grid, 2) if padded else None
    pattern = {
        "anchor": Anchor(1.2, 1, keep=(), block_size=32),
        "alike": Alike(0.4, tail=tail, block_size=32),
        "clustered": Clustered(4, 6, 0.5, block_size=32, tail=tail),
        "pyramid": Pyramid((0.15, 0.35, 0.55, 0.75), by="blocks", block_size=16, tail=tail),
    }[kind]
    exact = [t.detach() for t in tensors(grid, 16, batch=2)]
    given = [t.float() for t in exact]
    mask = pattern.mask_in(Call(*given, grid, {}, 16**-0.5, key_mask, "auto"))
    seen = mask.pooled_rows(0, 0, 0, mask.query.blocks).flatten(1).any(1)
    assert seen.all() and len(seen) == bool(tail) + 3 * (kind == "pyramid")
    assert mask.repeats == (kind == "anchor")
    call = lambda backend: lambda *t: run(backend, Problem(*t, mask, 16**-0.5, key_mask))
    compare(call("triton"), call("reference"), exact)


@pytest.mark.filterwarnings("ignore:overflow")  # in rows of keys that are not there, which nobody stores
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("level", [-30.0, -300.0])
def test_rows_of_very_low_logits_in_a_ragged_block(dtype, level):
    """A slot without a token has a logit of 0, which dwarfs those of the tokens: it may not be looked at."""
    grid = TokenGrid(1, 5, 8)
    query, key, value = (t.detach().abs() + 0.1 for t in tensors(grid, 16))
    key = -key * (level / (query @ -key.mT).mean())
    inputs = [t.to(dtype).requires_grad_() for t in (query, -key.abs(), value)]
    wide = [t.detach().double().requires_grad_() for t in inputs]
    results = []
    for tensors_, backend in ((inputs, "triton"), (wide, "reference")):
        output, lse = attention(*tensors_, Radial(block_size=32), grid, scale=1.0, backend=backend, return_lse=True)
        results.append([output, lse, *torch.autograd.grad(output.double().square().sum(), tensors_)])
    assert results[1][1].max() < -7
    for ours, exact in zip(*results, strict=True):
        assert torch.isfinite(ours).all()
        assert (ours.double() - exact).abs().max() <= 0.02 * exact.abs().max()


def grouped_mask(tokens=70, size=32, groups=2, tail=0):
    """Lists, tiles, lengths and orders of their own for every group; one query block that sees nothing."""
    generator = torch.Generator().manual_seed(5)
    lengths = torch.tensor([[32, 30, 8], [20, 32, 18]], dtype=torch.int32)[None]
    order = torch.stack([torch.randperm(tokens, generator=generator) for _ in range(groups)])[None]
    layout = Layout(order, lengths, torch.ones(3, dtype=torch.bool))
    tiles = torch.rand(3, size, size, generator=generator) > 0.5
    full = BlockList(torch.tensor([[[0, 1, 1, 1], [0, 2, 3, 3]]]).int(), torch.tensor([[[2, 0, 0], [0, 1, 2]]]).int())
    partial = BlockList(
        torch.tensor([[[0, 1, 1, 2], [0, 0, 1, 3]]]).int(), torch.tensor([[[0, 1, 0], [0, 0, 2]]]).int()
    )
    tile = torch.tensor([[[0, 2, 0], [1, 0, 2]]]).int()
    return BlockMask(layout, layout, full, partial, tile, pack_bits(tiles), size, tail)


@pytest.mark.parametrize("what", wrong_masks.WRONG)
def test_a_mask_that_does_not_fit_is_refused(what):
    pattern, said = wrong_masks.WRONG[what]
    with pytest.raises(ValueError, match=said):
        attention(*wrong_masks.inputs(), pattern, wrong_masks.GRID, backend="triton")


def test_masks_for_a_call_are_looked_through_unless_they_are_our_own(monkeypatch):
    grid, looked = TokenGrid(3, 5, 7), []
    monkeypatch.setattr(triton_lists, "check_lists", looked.append)
    query, key, value = (t.detach().float() for t in tensors(grid, 16))
    ours = Alike(0.4, block_size=32).mask_for(query, key, grid)
    theirs = replace(ours)
    for mask in (ours, theirs):
        run("triton", Problem(query, key, value, mask, 0.25))
    assert ours.passing and theirs.passing and looked == [theirs]


def test_head_groups_with_lists_and_orders_of_their_own_and_a_blind_block():
    mask, grid = grouped_mask(), TokenGrid(70, 1, 1)
    compare(
        lambda *t: run("triton", Problem(*t, mask, 0.3)),
        lambda *t: attention_oracle(*t, mask.to_dense().repeat_interleave(2, 0), 0.3),
        [t.detach() for t in tensors(grid, 16, heads=4)],
    )


def test_pooled_keys_of_head_groups():
    mask, grid = grouped_mask(tail=16), TokenGrid(70, 1, 1)
    compare(
        lambda *t: run("triton", Problem(*t, mask, 0.3)),
        lambda *t: run("reference", Problem(*t, mask, 0.3)),
        [t.detach() for t in tensors(grid, 16)],
    )


@pytest.mark.parametrize("case", ["radial", "neighborhood", "tail"])
def test_a_sample_whose_keys_are_all_hidden_gives_zero(case):
    pattern, grid = CASES.get(case, TAIL)
    inputs, key_mask = tensors(grid, 16, torch.float32, batch=2), padding(grid, 2)
    key_mask[1] = False
    output, lse = attention(*inputs, pattern, grid, key_mask=key_mask, backend="triton", return_lse=True)
    assert (output[1] == 0).all() and (lse[1] == -torch.inf).all()
    assert output[0].abs().min() > 0 and lse[0].isfinite().all()
    for gradient in torch.autograd.grad(loss(output, lse), inputs):
        assert gradient.isfinite().all() and (gradient[1] == 0).all() and gradient[0].abs().sum() > 0


@pytest.mark.parametrize("width", [8, 40])
@pytest.mark.parametrize("case", ["plain", "tail", "listed again"])
def test_values_of_another_width(case, width):
    pattern, grid = TAIL if case == "tail" else RADIAL
    pattern = Anchor(1.2, 1, keep=(), block_size=32) if case == "listed again" else pattern
    query, key, _ = exact = [t.detach() for t in tensors(grid, 16)]
    value = tensors(grid, width)[2].detach()
    assert attention(*[t.float() for t in (query, key, value)], pattern, grid, backend="triton").shape[-1] == width
    call = lambda backend: lambda *t: attention(*t, pattern, grid, backend=backend, return_lse=True)
    compare(call("triton"), call("reference"), [*exact[:2], value])


def test_strided_inputs():
    pattern, grid = RADIAL
    inputs = [t.detach().float().transpose(1, 2).contiguous().transpose(1, 2) for t in tensors(grid, 24)]
    rolled = [t.mT.contiguous().mT for t in inputs]
    parts = [torch.nn.functional.pad(t, (0, 3))[..., :24] for t in inputs]
    assert rolled[0].stride(-1) != 1 and parts[0].stride(2) == 27
    first, *others = (attention(*t, pattern, grid, backend="triton") for t in (inputs, rolled, parts))
    assert all(torch.equal(first, other) for other in others)


def test_more_groups_than_heads_are_refused():
    mask, grid = grouped_mask(), TokenGrid(70, 1, 1)
    with pytest.raises(ValueError, match="2 head groups for 1 heads"):
        run("triton", Problem(*(t.detach().float() for t in tensors(grid, 16, heads=1)), mask, 0.3))


def test_refusals():
    with pytest.raises(ValueError, match="float64"):
        choose("triton", "cpu", torch.float64, 64)
    with pytest.raises(ValueError, match="head dim 272 is above 256"):
        choose("triton", "cpu", torch.float32, 272)
    with pytest.raises(ValueError, match="wrong in bfloat16: use float32 or float16"):
        choose("triton", "cpu", torch.bfloat16, 64)
    (query, *_), wide = tensors(RADIAL[1], 16, torch.float32), tensors(RADIAL[1], 264, torch.float32)[2]
    with pytest.raises(ValueError, match="head dim 264 is above 256"):
        attention(query, query, wide, *RADIAL, backend="triton")
    many = torch.zeros(2, 1, RADIAL[1].tokens, 16).expand(-1, 32768, -1, -1)
    with pytest.raises(ValueError, match="2 samples of 32768 heads: a launch serves at most 65535; split the batch"):
        attention(many, many, many, *RADIAL, backend="triton")
