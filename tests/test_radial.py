import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dattn import Radial, TokenGrid
from tests.oracles import radial_blocks


@pytest.mark.parametrize(
    ("shape", "percent"),
    [
        ((41, 48, 80), 26.4),
        ((64, 45, 80), 19.2),
        ((128, 45, 80), 11.6),
        ((56, 30, 53), 23.7),
        ((112, 30, 53), 14.5),
    ],
)
def test_published_densities(shape, percent):
    mask = Radial(decay=1.0, sink=True, block_size=128).mask(TokenGrid(*shape))
    assert abs(mask.density * 100 - percent) <= 0.1
    assert (mask.full.counts() > 0).all()


grids = st.builds(
    TokenGrid, st.integers(1, 12), st.integers(1, 6), st.integers(1, 7), st.tuples(*[st.integers(0, 20)] * 2)
)
patterns = st.builds(
    Radial, decay=st.sampled_from([0.1, 0.5, 1.0, 2.0]), sink=st.booleans(), block_size=st.sampled_from([16, 32])
)


@settings(max_examples=40)
@given(grids, patterns)
def test_mask_is_the_published_rule(grid, pattern):
    mask = pattern.mask(grid)
    blocks = radial_blocks(grid.frames, grid.height * grid.width, pattern.decay, pattern.sink, pattern.block_size)
    before = -(-grid.text_before // pattern.block_size)
    visited = mask.full.rows(0, 0, 0, mask.query.blocks, mask.key.blocks)
    visual = slice(before, before + len(blocks))
    assert torch.equal(visited[visual, visual], blocks)
    text = torch.ones(mask.query.blocks, dtype=torch.bool)
    text[visual] = False
    assert visited[text].all()
    assert visited[:, text].all()


@settings(max_examples=40)
@given(grids, patterns)
def test_mask_equals_allowed(grid, pattern):
    mask, allowed = pattern.mask(grid), pattern.allowed(grid)
    assert torch.equal(mask.to_dense(), allowed)
    assert allowed.any(1).all()
    assert torch.equal(mask.neighbours(grid.tokens - 1), allowed[-1])


def test_sink_and_decay_change_the_mask():
    grid = TokenGrid(24, 8, 8)
    density = lambda **fields: Radial(**{"block_size": 16, **fields}).mask(grid).density
    assert density(sink=False) < density()
    assert density(decay=0.1) < density()
    assert not Radial(block_size=16, sink=False).mask(grid).neighbours(grid.tokens - 1)[0]
    assert Radial(block_size=16).mask(grid).neighbours(grid.tokens - 1)[0]


@pytest.mark.parametrize(
    "fields",
    [
        {"decay": 0},
        {"decay": -1.0},
        {"decay": float("nan")},
        {"decay": "1"},
        {"sink": 1},
        {"block_size": 100},
        {"tail": 8},
        {"tail": 128, "block_size": 64},
    ],
)
def test_bad_fields(fields):
    with pytest.raises(ValueError):
        Radial(**fields)
