import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dattn import Neighborhood, TokenGrid
from dattn.tiles import choose_tile
from tests.oracles import natten_axis


@st.composite
def cases(draw, longest=9):
    """A grid and a legal pattern on it, every argument per axis."""
    shape = [draw(st.integers(1, longest)) for _ in range(3)]
    text = draw(st.tuples(st.integers(0, 5), st.integers(0, 5)))
    windows = [draw(st.one_of(st.none(), st.integers(1, n))) for n in shape]
    sizes = [n if w is None else w for w, n in zip(windows, shape, strict=True)]
    strides = [draw(st.integers(1, w)) for w in sizes]
    dilations = [draw(st.integers(1, n // w)) for w, n in zip(sizes, shape, strict=True)]
    causal = [draw(st.booleans()) for _ in shape]
    tile = draw(st.one_of(st.just("auto"), st.tuples(*[st.integers(1, 5)] * 3)))
    pattern = Neighborhood(*(tuple(x) for x in (windows, strides, dilations, causal)), tile)
    return TokenGrid(*shape, text), pattern, list(zip(shape, sizes, strides, dilations, causal, strict=True))


@settings(max_examples=150)
@given(cases())
def test_allowed_and_mask_are_nattens_definition(case):
    grid, pattern, axes = case
    t, h, w = (natten_axis(*axis) for axis in axes)
    expected = torch.ones(grid.tokens, grid.tokens, dtype=torch.bool)
    visual = slice(grid.text_before, grid.text_before + grid.visual)
    product = t[:, None, None, :, None, None] & h[:, None, None, :, None] & w[:, None, None, :]
    expected[visual, visual] = product.reshape(grid.visual, grid.visual)
    assert torch.equal(pattern.allowed(grid), expected)
    mask = pattern.mask(grid)
    assert torch.equal(mask.to_dense(), expected)
    token = grid.tokens // 2
    assert torch.equal(mask.neighbours(token), expected[token])


@settings(max_examples=60)
@given(cases())
def test_partial_blocks_are_partial(case):
    """No block that is listed as partial is empty or whole: the classification is exact."""
    grid, pattern, _ = case
    mask = pattern.mask(grid)
    offsets, index = mask.partial.offsets[0, 0], mask.partial.index[0, 0].long()
    query = torch.arange(mask.query.blocks).repeat_interleave(offsets.diff())
    lengths = mask.query.lengths[0, 0]
    seen = mask.unpacked_tiles()[mask.tile[0, 0].long()].sum((1, 2))
    assert (seen > 0).all()
    assert (seen < lengths[query] * lengths[index]).all()


@pytest.mark.parametrize(
    ("shape", "window", "stride"),
    [
        ((21, 30, 52), (9, 15, 20), (3, 5, 4)),
        ((21, 30, 52), (9, 15, 28), (3, 5, 4)),
        ((21, 45, 80), (9, 25, 36), (3, 5, 4)),
        ((33, 45, 80), (9, 25, 36), (3, 5, 4)),
        ((13, 30, 45), (5, 18, 27), (1, 6, 9)),
        ((30, 48, 80), (18, 24, 24), (16, 8, 8)),
    ],
)
def test_auto_tiles_divide_the_grid_and_waste_nothing(shape, window, stride):
    pattern, grid = Neighborhood(window, stride), TokenGrid(*shape)
    tile = choose_tile(pattern.axes(grid))
    assert all(length % t == 0 for length, t in zip(shape, tile, strict=True))
    mask = pattern.mask(grid)
    assert mask.partial.index.numel() == 0
    assert mask.density == pytest.approx(math.prod(window) / grid.visual)


@pytest.mark.parametrize(
    ("shape", "window", "most"),
    [((21, 30, 52), (9, 16, 24), 0.2376), ((21, 45, 80), (9, 21, 32), 0.155), ((1, 64, 64), 24, 0.29)],
)
def test_auto_tiles_at_stride_one(shape, window, most):
    """Not denser than the best tile of the study: Wan 480p 4x4x8 gives .313, 3x5x4 .215."""
    assert Neighborhood(window).mask(TokenGrid(*shape)).density <= most


def test_single_values_skip_axes_of_one_token():
    grid = TokenGrid(1, 9, 7)
    assert torch.equal(Neighborhood(3).allowed(grid), Neighborhood((1, 3, 3)).allowed(grid))
    both = Neighborhood((None, 3, 3), stride=2, dilation=2), Neighborhood((None, 3, 3), (1, 2, 2), (1, 2, 2))
    assert torch.equal(*(p.allowed(TokenGrid(2, 9, 7)) for p in both))


def test_window_one_sees_itself_only():
    assert torch.equal(Neighborhood(1).allowed(TokenGrid(2, 3, 4)), torch.eye(24, dtype=torch.bool))


def test_fit_clamps_window_then_stride_then_dilation():
    pattern = Neighborhood((9, 4, 3), stride=(8, 4, 1), dilation=(1, 2, 5))
    fitted, note = pattern.fit(TokenGrid(5, 6, 7))
    assert (fitted.window, fitted.stride, fitted.dilation) == ((5, 4, 3), (5, 4, 1), (1, 1, 2))
    assert "window (5, 4, 3)" in note
    fitted.mask(TokenGrid(5, 6, 7))
    assert pattern.fit(TokenGrid(9, 8, 15)) == (pattern, None)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"window": 0}, "window=0"),
        ({"window": (3, 3)}, "window"),
        ({"window": 3, "stride": 0}, "stride=0"),
        ({"window": 3, "dilation": 1.5}, "dilation"),
        ({"window": 3, "causal": 1}, "causal"),
        ({"window": 3, "tile": (8, 8, 8)}, "512"),
        ({"window": 3, "tile": "big"}, "tile"),
        ({"window": 3, "tail": 5}, "tail"),
    ],
)
def test_bad_fields(fields, said):
    with pytest.raises(ValueError, match=said):
        Neighborhood(**fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"window": 6}, "window 6 on an axis of 5"),
        ({"window": 3, "stride": 4}, "stride 4"),
        ({"window": 3, "dilation": 2}, "dilation 2 with window 3"),
        ({"window": 3, "tile": (1, 2, 2), "tail": 128}, "tail=128"),
    ],
)
def test_what_the_grid_refuses(fields, said):
    with pytest.raises(ValueError, match=said):
        Neighborhood(**fields).mask(TokenGrid(5, 5, 5))


NATTEN_CASES = [
    ((40,), (7,), (3,), (1,), (False,)),
    ((40,), (6,), (1,), (4,), (True,)),
    ((12, 15), (4, 5), (2, 1), (2, 3), (False, False)),
    ((5, 6, 8), (3, 4, 5), (1, 2, 3), (1, 1, 1), (True, False, False)),
    ((6, 7, 9), (2, 3, 4), (2, 3, 1), (3, 2, 2), (False, True, False)),
]


@pytest.mark.parametrize("case", NATTEN_CASES, ids=lambda case: f"{len(case[0])}d-{case[1]}")
def test_against_natten(case):
    natten = pytest.importorskip("natten", reason="NATTEN is not installed: make natten")
    from dattn import attention

    shape, *rule = case
    call = {1: natten.na1d, 2: natten.na2d, 3: natten.na3d}[len(shape)]
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, *shape, 2, 16, generator=generator) for _ in range(3))
    theirs = call(query, key, value, kernel_size=rule[0], stride=rule[1], dilation=rule[2], is_causal=rule[3])
    grid = TokenGrid(*[1] * (3 - len(shape)), *shape)
    window, stride, dilation = ((1,) * (3 - len(shape)) + argument for argument in rule[:3])
    pattern = Neighborhood(window, stride, dilation, (False,) * (3 - len(shape)) + rule[3])
    ours = attention(*(t.flatten(1, -3).transpose(1, 2) for t in (query, key, value)), pattern, grid)
    torch.testing.assert_close(ours.transpose(1, 2).reshape(theirs.shape), theirs, rtol=0, atol=1e-5)
