import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dattn import TokenGrid
from dattn.grid import AxisTiles, block_size_for, raster_layout, tiled_layout


def test_counts_and_text_places():
    grid = TokenGrid(3, 4, 5, text=7)
    assert (grid.visual, grid.tokens, grid.text_before, grid.text_after) == (60, 67, 0, 7)
    assert TokenGrid(3, 4, 5, text=7, text_first=True).text_before == 7
    both = TokenGrid(3, 4, 5, text=(2, 9))
    assert (both.text_before, both.text_after, both.tokens) == (2, 9, 71)
    assert hash(TokenGrid(3, 4, 5, text=[2, 9])) == hash(both)


@pytest.mark.parametrize(
    "arguments",
    [(0, 1, 1), (1, -2, 1), (1, 1, 1.5), (True, 1, 1), (1, 1, 1, -1), (1, 1, 1, (1, 2, 3)), (1, 1, 1, (1, 2), True)],
)
def test_bad_grids(arguments):
    with pytest.raises(ValueError):
        TokenGrid(*arguments)


axis = st.integers(1, 9)


@given(
    axis, axis, axis, st.tuples(axis, axis, axis), st.tuples(axis, axis, axis), st.integers(0, 20), st.integers(0, 20)
)
def test_tiled_layout_is_a_permutation_of_boxes(t, h, w, tile, dilation, before, after):
    grid = TokenGrid(t, h, w, text=(before, after))
    dilation = [min(d, length) for d, length in zip(dilation, grid.shape, strict=True)]
    tile = [min(n, 5) for n in tile]
    axes = [AxisTiles.cut(*args) for args in zip(grid.shape, tile, dilation, strict=True)]
    layout = tiled_layout(grid, axes, 128)
    order = layout.order[0, 0]
    assert torch.equal(order.sort().values, torch.arange(grid.tokens))
    assert int(layout.lengths.sum()) == grid.tokens
    at = grid.coordinates()
    for slots, pooled in zip(layout.slots(0, 0, 128), layout.pooled, strict=True):
        tokens = slots[slots >= 0]
        if not pooled:
            assert all(i < before or i >= before + grid.visual for i in tokens.tolist())
            continue
        box = at[tokens - before]
        sizes = [column.unique() for column in box.unbind(1)]
        assert len(tokens) == sizes[0].numel() * sizes[1].numel() * sizes[2].numel()
        for column, d, n in zip(sizes, dilation, tile, strict=True):
            assert column.numel() <= n
            assert (column.diff() == d).all()


def test_raster_blocks_count_from_the_first_visual_token():
    layout = raster_layout(TokenGrid(1, 5, 7, text=(3, 20)), 16)
    assert layout.lengths[0, 0].tolist() == [3, 16, 16, 3, 16, 4]
    assert layout.pooled.tolist() == [False, True, True, True, False, False]


def test_block_size_for():
    assert [block_size_for(n) for n in (1, 16, 17, 60, 65, 128)] == [16, 16, 32, 64, 128, 128]
    with pytest.raises(ValueError, match="129"):
        block_size_for(129)
