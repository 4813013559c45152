"""Both backends against float64 oracles: forward, LSE, gradients, odd sizes, text, padding, precision, head dims."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from dattn import Dense, Neighborhood, PerHead, Radial, TokenGrid, attention
from dattn.backends import choose, run
from dattn.backends.plan import same_groups
from dattn.backends.problem import Problem
from dattn.block_mask import BlockList, BlockMask
from dattn.grid import Layout
from tests import wrong_masks
from tests.oracles import attention_oracle, tail_oracle

CASES = {
    "dense": (Dense(), TokenGrid(3, 4, 5, text=6)),
    "radial": (Radial(block_size=16), TokenGrid(7, 3, 5, text=(3, 20))),
    "radial-no-text": (Radial(block_size=32, decay=0.3, sink=False), TokenGrid(19, 3, 5)),
    "neighborhood-3d": (Neighborhood(3), TokenGrid(5, 7, 9, text=4)),
    "neighborhood-causal": (Neighborhood((3, None, 5), (1, 2, 2), causal=(True, False, False)), TokenGrid(6, 5, 9)),
    "neighborhood-2d": (Neighborhood(3, dilation=2), TokenGrid(1, 17, 13, text=2, text_first=True)),
    "neighborhood-1d": (Neighborhood(5), TokenGrid(131, 1, 1)),
}


def tensors(grid, batch=2, heads=3, dim=8, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, heads, grid.tokens, dim)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for _ in range(3)]


def padding(grid, batch=2):
    """A random key mask; at least one token stays."""
    mask = torch.rand(batch, grid.tokens, generator=torch.Generator().manual_seed(1)) > 0.3
    mask[:, 0] = True
    return mask


def gradients(output, lse, inputs):
    """Gradients of a loss that weighs every element of the output and of the finite LSE differently."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    lse_weight = torch.randn(lse.shape, generator=generator, dtype=torch.float64)
    loss = (output.double() * weight).sum() + (lse.double().masked_fill(lse == -torch.inf, 0) * lse_weight).sum()
    return torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("case", CASES)
def test_forward_lse_and_gradients(case, backend, padded):
    pattern, grid = CASES[case]
    inputs = tensors(grid)
    key_mask = padding(grid) if padded else None
    output, lse = attention(*inputs, pattern, grid, scale=0.4, key_mask=key_mask, backend=backend, return_lse=True)
    expected, expected_lse = attention_oracle(*inputs, pattern.allowed(grid), 0.4, key_mask)
    assert output.dtype == lse.dtype == torch.float64
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(lse, expected_lse, rtol=0, atol=1e-12)
    for ours, theirs in zip(gradients(output, lse, inputs), gradients(expected, expected_lse, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)
    alone = attention(*inputs, pattern, grid, scale=0.4, key_mask=key_mask, backend=backend)
    torch.testing.assert_close(alone, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize(
    ("pattern", "grid", "run"),
    [
        (Radial(block_size=16, tail=True), TokenGrid(17, 3, 3, text=(3, 5)), 16),
        (Radial(block_size=32, decay=0.3, tail=16), TokenGrid(33, 2, 3), 16),
        (Neighborhood(3, tile=(2, 3, 4), tail=True), TokenGrid(5, 5, 7, text=2), 32),
        (Neighborhood(3, tile=(2, 3, 4), tail=16), TokenGrid(5, 5, 7), 16),
    ],
)
def test_tail(pattern, grid, run, backend, padded):
    inputs = tensors(grid, heads=2, dim=4)
    key_mask = padding(grid) if padded else None
    mask = pattern.mask(grid)
    assert mask.density < 0.9
    assert mask.tail_share > 0
    output, lse = attention(*inputs, pattern, grid, scale=0.4, key_mask=key_mask, backend=backend, return_lse=True)
    expected, expected_lse = tail_oracle(*inputs, mask, grid, run, 0.4, key_mask)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(lse, expected_lse, rtol=0, atol=1e-12)
    for ours, theirs in zip(gradients(output, lse, inputs), gradients(expected, expected_lse, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def grouped(masks):
    """Masks of equal block size as the head groups of one mask; lists are padded to the longest."""

    def lists(name, field):
        parts = [getattr(getattr(m, name), field) if field else getattr(m, name) for m in masks]
        longest = max(p.shape[-1] for p in parts)
        return torch.cat([torch.nn.functional.pad(p, (0, longest - p.shape[-1])) for p in parts], 1)

    shift = [0, len(masks[0].tiles)]
    tile = [replace(m, tile=m.tile + s) for m, s in zip(masks, shift, strict=True)]
    side = Layout(
        torch.cat([m.key.order for m in masks], 1), torch.cat([m.key.lengths for m in masks], 1), masks[0].key.pooled
    )
    masks = tile
    full, partial = (BlockList(lists(n, "offsets"), lists(n, "index")) for n in ("full", "partial"))
    tiles = torch.cat([m.tiles for m in masks])
    return BlockMask(side, side, full, partial, lists("tile", None), tiles, masks[0].block_size)


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
def test_head_groups_have_masks_and_orders_of_their_own(backend, padded):
    """Group g of G serves the heads h with ⌊h·G/H⌋ = g: of 5 heads, the first 3 have one mask, the other 2 another."""
    grid = TokenGrid(4, 4, 8, text=3)
    patterns = Neighborhood((3, 3, 3), tile=(2, 2, 4)), Neighborhood((2, 4, 5), tile=(1, 4, 4))
    mask = grouped([p.mask(grid) for p in patterns])
    allowed = torch.stack([p.allowed(grid) for p in patterns])
    assert torch.equal(mask.to_dense(), allowed)
    inputs = tensors(grid, heads=5)
    key_mask = padding(grid) if padded else None
    output, lse = run(backend, Problem(*inputs, mask, 0.4, key_mask))
    expected, expected_lse = attention_oracle(*inputs, allowed[[0, 0, 0, 1, 1]][None], 0.4, key_mask)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(lse, expected_lse, rtol=0, atol=1e-12)
    for ours, theirs in zip(gradients(output, lse, inputs), gradients(expected, expected_lse, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
def test_heads_with_equal_masks_are_walked_together(padded):
    """Wherever they are; windows with partial tiles, a batch of 2, gradients too."""
    grid = TokenGrid(4, 4, 8, text=3)
    one, other = Neighborhood((3, 3, 3), tile=(2, 2, 4)), Neighborhood((2, 4, 5), tile=(1, 4, 4))
    pattern = PerHead((one, other, one, one))
    mask = pattern.mask(grid)
    assert mask.partial.index.numel() and same_groups(mask, 0) == [[0, 2, 3], [1]]
    assert same_groups(one.mask(grid), 1) == [[0]]
    inputs, key_mask = tensors(grid, heads=4), padding(grid) if padded else None
    found, expected = ([*run(name, Problem(*inputs, mask, 0.4, key_mask))] for name in ("torch", "reference"))
    grads = (gradients(*both, inputs) for both in (found, expected))
    for ours, theirs in zip([*found, *next(grads)], [*expected, *next(grads)], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)
    in_parts = attention(*inputs, pattern, grid, scale=0.4, key_mask=key_mask, backend="torch")
    torch.testing.assert_close(in_parts, expected[0], rtol=0, atol=1e-11)
    weight = torch.randn(in_parts.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    pairs = (
        torch.autograd.grad((out * weight).sum(), inputs)
        for out in (in_parts, run("reference", Problem(*inputs, mask, 0.4, key_mask))[0])
    )
    for ours, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def test_tail_is_exact_where_the_tokens_of_a_block_are_alike():
    grid, pattern = TokenGrid(32, 4, 4), Radial(block_size=16, tail=True)
    query, key, value = tensors(grid)
    key, value = (t.unflatten(2, (-1, 16))[:, :, :, :1].expand(-1, -1, -1, 16, -1).flatten(2, 3) for t in (key, value))
    assert pattern.mask(grid).density < 0.6
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(attention(query, key, value, pattern, grid), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("case", CASES)
def test_error_is_at_most_twice_that_of_plain_pytorch(case, backend, dtype):
    """Error against float64 at most 2 x that of PyTorch at the same precision, plus a tiny absolute term."""
    pattern, grid = CASES[case]
    inputs = tensors(grid, dim=40, dtype=dtype)
    allowed = pattern.allowed(grid)
    exact, exact_lse = attention_oracle(*inputs, allowed, 40**-0.5)
    plain = torch.nn.functional.scaled_dot_product_attention(*inputs, attn_mask=allowed, scale=40**-0.5)
    output, lse = attention(*inputs, pattern, grid, backend=backend, return_lse=True)
    assert output.dtype == dtype
    assert lse.dtype == torch.float32
    tiny = torch.finfo(dtype).eps * 1e-2 + 1e-7

    def error(tensor, truth):
        return (tensor.double() - truth).square().mean().sqrt().item()

    assert error(output, exact) <= 2 * error(plain, exact) + tiny
    assert error(lse, exact_lse) <= 4 * torch.finfo(dtype).eps
    weight = torch.randn(exact.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    truth, naive, ours = (
        torch.autograd.grad((o.double() * weight).sum(), inputs, retain_graph=True) for o in (exact, plain, output)
    )
    for t, n, o in zip(truth, naive, ours, strict=True):
        # gradients come back in the inputs' precision, so even the exact ones are rounded once
        assert error(o, t.double()) <= 2 * error(n, t.double()) + tiny * 10


@pytest.mark.parametrize("dim", [16, 40, 72, 80, 96, 160, 256])
def test_head_dims(dim):
    grid, pattern = TokenGrid(9, 4, 5, text=3), Radial(block_size=16)
    inputs = tensors(grid, dim=dim)
    expected, _ = attention_oracle(*inputs, pattern.allowed(grid), dim**-0.5)
    torch.testing.assert_close(attention(*inputs, pattern, grid), expected, rtol=0, atol=1e-12)


def test_values_may_have_another_width():
    grid, pattern = TokenGrid(9, 4, 5), Radial(block_size=16)
    query, key, value = tensors(grid)
    wide = torch.cat([value, value * 2, value - 1], -1)
    expected, _ = attention_oracle(query, key, wide, pattern.allowed(grid), 0.5)
    torch.testing.assert_close(attention(query, key, wide, pattern, grid, scale=0.5), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("case", ["dense", "radial", "neighborhood-3d"])
def test_rows_that_see_nothing_give_zero(case, backend):
    pattern, grid = CASES[case]
    inputs = tensors(grid)
    key_mask = padding(grid)
    key_mask[1] = False
    output, lse = attention(*inputs, pattern, grid, key_mask=key_mask, backend=backend, return_lse=True)
    assert (output[1] == 0).all()
    assert (lse[1] == -torch.inf).all()
    assert (attention(*inputs, pattern, grid, key_mask=key_mask, backend=backend)[1] == 0).all()
    for gradient in gradients(output, lse, inputs):
        assert gradient.isfinite().all()
        assert (gradient[1] == 0).all()


def test_batches_do_not_mix():
    grid, pattern = TokenGrid(9, 4, 5), Radial(block_size=16, tail=True)
    inputs = tensors(grid)
    together = attention(*inputs, pattern, grid)
    apart = torch.cat([attention(*(t[b : b + 1] for t in inputs), pattern, grid) for b in range(2)])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-13)


def test_same_call_twice_is_bit_identical():
    grid, pattern = TokenGrid(9, 4, 5), Neighborhood(3, tail=True)
    inputs = tensors(grid, dtype=torch.float32)
    first, second = (attention(*inputs, pattern, grid, return_lse=True) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    for a, b in zip(gradients(*first, inputs), gradients(*second, inputs), strict=True):
        assert torch.equal(a, b)


def test_under_autocast_mixed_inputs_become_one_precision():
    grid, pattern = TokenGrid(9, 4, 5), Radial(block_size=16, tail=True)
    query, key, value = tensors(grid, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = attention(query, key.half(), value.bfloat16(), pattern, grid)
        output.float().sum().backward()
    assert output.dtype == torch.bfloat16
    expected = attention(query.bfloat16(), key.half().bfloat16(), value.bfloat16(), pattern, grid)
    assert torch.equal(output, expected)
    assert query.grad.isfinite().all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"query": torch.zeros(1, 1, 11, 4)}, "equally long"),
        ({"key": torch.zeros(1, 1, 12, 4, dtype=torch.float16)}, "dtype"),
        ({"key": torch.zeros(1, 1, 12, 4, device="meta")}, "differ in device"),
        ({"grid": TokenGrid(2, 2, 2)}, "12 tokens on a grid of 8"),
        ({"pattern": "radial"}, "pattern='radial'"),
        ({"pattern": Neighborhood(9)}, "window 9"),
        ({"key_mask": torch.ones(1, 11, dtype=torch.bool)}, "key_mask"),
        ({"key_mask": torch.ones(1, 12)}, "key_mask"),
        ({"key_mask": torch.ones(1, 12, dtype=torch.bool, device="meta")}, "key_mask on meta, query on cpu"),
        ({"backend": "fast"}, "unknown backend 'fast'"),
    ],
)
def test_bad_input(change, said):
    arguments = {name: torch.zeros(1, 1, 12, 4) for name in ("query", "key", "value")}
    arguments |= {"pattern": Dense(), "grid": TokenGrid(3, 2, 2), **change}
    with pytest.raises(ValueError, match=said):
        attention(**arguments)


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("what", wrong_masks.WRONG)
def test_a_mask_that_does_not_fit_is_refused(what, backend):
    pattern, said = wrong_masks.WRONG[what]
    with pytest.raises(ValueError, match=said):
        attention(*wrong_masks.inputs(), pattern, wrong_masks.GRID, backend=backend)


def test_backend_choice_says_why():
    assert choose("auto", "cpu", torch.float32, 64).name == "torch"
    assert choose("reference", "cpu", torch.float32, 64).reason == "asked for"


CHOOSING = (
    "XAttention()",
    "MeanSim(guard=0.1)",
    "Routing()",
    "ProxyHeads()",
    "Selected(Sampled(), TopK(0.2), Curve())",
    "Selected(Pooled(), TopP(0.9, across='layer'), Tiled((2, 5, 8)), reuse=0.9)",
    "Alike()",
    "SparseVideoGen()",
    "Clustered(60, 200, first_steps=1)",
    "Clustered(60, 200, first_steps=1, route='error', tail=True)",
    "Pyramid(guards=(0.7, 0.65, 0.6))",
    "Anchor(0.5)",
    "LearnedGate(gate)",
    "VMoBA().at(2, 3, 0, 1)",
    "Selected(order=ByCluster(64, rounds=1), keep=())",
)


OPERATORS = ("Rectified()", "SignificanceTail(Radial())", "FirstOrder(Radial())")


@pytest.mark.parametrize(
    ("names", "bound", "call"),
    [
        (CHOOSING, 400, "{}.mask_for(q, k, grid)"),
        (OPERATORS, 400, "attention(q, k, k, {}, grid)"),
    ],
    ids=["choosing", "operators"],
)
def test_memory_grows_with_the_tokens(names, bound, call, tmp_path):
    """At 75 600 tokens, of a head: N x N bits alone would be 680 MiB, floats 21 GiB."""
    script = (
        "import torch, resource\n"
        "from dattn import *\n"
        "from dattn.orders import *\n"
        "from dattn.scores import *\n"
        "from dattn.selection import *\n"
        "from safetensors.torch import save_file\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "grid = TokenGrid(21, 45, 80)\n"
        f"gate = {str(tmp_path / 'gate.safetensors')!r}\n"
        "save_file({'layers.0.query': torch.randn(1, 32, 8), 'layers.0.key': torch.randn(1, 96, 8)}, gate)\n"
        "q, k = (torch.randn(1, 1, grid.tokens, 32) for _ in range(2))\n"
        "Alike().mask_for(q[:, :, :4096], k[:, :, :4096], TokenGrid(16, 16, 16))\n"
        "base = peak()\n"
        f"for name in {names!r}:\n"
        f"    eval({call!r}.format(name))\n"
        "    print(peak() - base)\n"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    grown = dict(zip(names, map(float, out.split()), strict=True))  # the peak up to then
    assert max(grown.values()) < bound, grown  # MiB


def test_memory_grows_linearly():
    """Twice the tokens with the same neighborhood: about twice the memory, where N x N would need four times."""
    script = (
        "import torch, resource\n"
        "from dattn import attention, Neighborhood, TokenGrid\n"
        "def peak(frames):\n"
        "    grid = TokenGrid(frames, 16, 16)\n"
        "    q = torch.zeros(1, 1, grid.tokens, 32)\n"
        "    attention(q, q, q, Neighborhood((3, None, None)), grid)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "peak(4); base = peak(16); print(peak(128) - base)\n"
    )
    grown = float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
    assert grown < 400  # MiB; 32 768 x 32 768 floats alone would be 4096


def test_import_has_no_side_effects():
    script = (
        "import os, sys, torch\n"
        "before = dict(os.environ)\n"
        "import dattn\n"
        "assert dict(os.environ) == before\n"
        "assert not torch.cuda.is_initialized()\n"
        "heavy = {'diffusers', 'transformers', 'matplotlib', 'triton'} & (set(sys.modules) - {'triton'})\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
