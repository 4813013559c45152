"""The naive tails of the probe: the zeroth order is ours, the first is exact where values follow keys."""

import pytest
import torch

from dattn import Dense, Neighborhood, Radial, TokenGrid, attention
from dattn.apps.tails import NaiveTail, variants
from dattn.block_mask import MaskCache

GRID = TokenGrid(9, 4, 5, text=(3, 2))
PATTERN = Radial(block_size=32, decay=0.3, sink=False)


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 2, GRID.tokens, 8, generator=generator, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize("run", [16, 32])
def test_the_zeroth_order_is_the_tail_of_the_patterns(run):
    from dataclasses import replace

    tensors = inputs()
    expected = attention(*tensors, replace(PATTERN, tail=run), GRID)
    torch.testing.assert_close(attention(*tensors, NaiveTail(PATTERN, run), GRID), expected)
    mask = replace(PATTERN, tail=run).mask(GRID)
    cost = NaiveTail(PATTERN, run).cost(GRID, 8, MaskCache())
    assert cost == pytest.approx(mask.density + mask.tail_share, rel=0.05)  # runs are counted whole


def test_near_and_far():
    tensors = inputs()
    near = attention(*tensors, NaiveTail(PATTERN, 32, near=16, reach=99), GRID)
    torch.testing.assert_close(near, attention(*tensors, NaiveTail(PATTERN, 16), GRID))
    between = NaiveTail(PATTERN, 32, near=16, reach=3).cost(GRID, 8, MaskCache())
    assert NaiveTail(PATTERN, 32).cost(GRID, 8, MaskCache()) < between
    assert between < NaiveTail(PATTERN, 16).cost(GRID, 8, MaskCache())


@pytest.mark.parametrize("order", [1, "mean"])
def test_the_first_order_is_nearer_where_logits_are_small(order):
    q, k, v = inputs()
    k = 0.05 * k
    v = k @ torch.randn(8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)  # values follow keys
    dense = attention(q, k, v, Dense(), GRID)
    error = [(attention(q, k, v, NaiveTail(PATTERN, 32, order=n), GRID) - dense).norm() for n in (0, order)]
    assert error[1] < error[0] * (0.1 if order == 1 else 0.9)


def test_refusals_and_names():
    with pytest.raises(ValueError, match="patterns of whole blocks"):
        attention(*inputs(), NaiveTail(Neighborhood(3), 16), GRID)
    titles = [tail.title for tail in variants(PATTERN, 32)]
    assert len(set(titles)) == len(titles)
