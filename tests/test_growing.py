"""Spans that follow the clip."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dattn
from dattn.patterns.base import grown

WINDOW, FRAMES = dattn.Neighborhood((5, None, None)), dattn.SparseFrames(5, 4, rotate=False)


@pytest.mark.parametrize("pattern", [WINDOW, FRAMES], ids=lambda pattern: pattern.name)
def test_at_its_own_length_it_is_the_pattern(pattern):
    grid = dattn.TokenGrid(16, 2, 3, text=2)
    one = dattn.Growing(pattern, 16)
    assert torch.equal(one.allowed(grid), pattern.allowed(grid))
    assert torch.equal(one.mask(grid).to_dense(), pattern.allowed(grid))
    assert one.fit(grid) == pattern.fit(grid)


def test_at_another_length_it_has_grown():
    long = dattn.TokenGrid(48, 1, 2)
    assert torch.equal(dattn.Growing(WINDOW, 16).allowed(long), dattn.Neighborhood((15, None, None)).allowed(long))
    assert dattn.Growing(FRAMES, 16).on(long) == dattn.SparseFrames(15, 12, rotate=False)
    assert dattn.Growing(WINDOW, 16, still=1.0).on(long) == WINDOW
    assert dattn.Growing(WINDOW, 16, still=0.5).on(long).window == (9, None, None)  # 5 · (½ + ½ · 3) = 10: odd, 9 or 11
    assert dattn.Growing(WINDOW, 16).on(dattn.TokenGrid(4, 1, 2)).window == (1, None, None)


@given(st.integers(1, 200), st.floats(0.05, 20))
def test_odd_stays_odd(span, factor):
    made = grown(span, factor)
    assert made >= 1 and abs(made - span * factor) <= max(1, 1 - span * factor + 1e-9)
    assert span == 1 or made % 2 == span % 2 or made == 1
    assert grown(span, 1.0) == span


def test_attention_and_recipes():
    grid = dattn.TokenGrid(12, 2, 3)
    q, k, v = (torch.randn(1, 2, grid.tokens, 8) for _ in range(3))
    one = dattn.Growing(WINDOW, 6)
    assert torch.equal(
        dattn.attention(q, k, v, one, grid), dattn.attention(q, k, v, dattn.Neighborhood((9, None, None)), grid)
    )
    assert dattn.pattern_from_dict(one.to_dict()) == one
    assert dattn.pattern_from_string("Growing(Neighborhood((5, None, None)), 6)") == one
    rotating = dattn.Growing(dattn.SparseFrames(5, 4), 6)
    assert rotating.at(0, 1, 1, 4).pattern.phase == dattn.SparseFrames(5, 4).at(0, 1, 1, 4).phase != 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((dattn.Radial(), 16), "Radial has no spans in frames"),
        ((dattn.Neighborhood(5), 16), "Neighborhood has no spans in frames"),
        ((dattn.Alike(), 16), "give a Pattern"),
        ((WINDOW, 0), "frames=0"),
        ((WINDOW, 16, 2.0), "still=2.0: give a number from 0 to 1"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        dattn.Growing(*arguments)
