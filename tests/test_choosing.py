"""Dynamic patterns on grids of every kind: tiny ones, ragged ones, text at either end; and a score of one's own."""

import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dattn import Clustered, Selected, SparseVideoGen, TokenGrid, attention
from dattn.block_mask import MaskCache
from dattn.patterns.dynamic import Given
from dattn.scores import Pooled
from dattn.selection import TopK
from tests.test_dynamic import GRID, PATTERNS, SIZE, inputs, oracle

GRIDS = st.builds(
    TokenGrid, st.integers(1, 4), st.integers(1, 7), st.integers(1, 7), st.tuples(st.integers(0, 3), st.integers(0, 20))
)


@pytest.mark.parametrize("name", PATTERNS)
@given(GRIDS, st.integers(1, 2), st.integers(1, 3), st.booleans(), st.integers(0, 9))
@settings(max_examples=12, deadline=None)
def test_any_grid(name, grid, batch, heads, padded, seed):
    """Output and LSE are those of the mask, rows are never empty, text is always kept."""
    pattern = PATTERNS[name].fit(grid)[0]
    q, k, v = inputs(grid, batch, heads, seed=seed)
    kept = torch.ones(batch, grid.tokens, dtype=torch.bool)
    if padded:
        kept[-1, grid.tokens - grid.text_after // 2 :] = False
    mask = pattern.build(Given(q, k, grid, {}, value=v, key_mask=kept))
    dense = mask.to_dense().expand(batch, heads, -1, -1)
    after = grid.text_before + grid.visual
    text = [*range(grid.text_before), *range(after, grid.tokens)]
    assert dense.any(-1).all() and dense[..., text].all() and dense[..., text, :].all()
    output, lse = attention(q, k, v, pattern, grid, key_mask=kept, return_lse=True)
    expected = oracle(mask, q, k, v, kept=kept)
    torch.testing.assert_close(output, expected[0])
    torch.testing.assert_close(lse, expected[1])


@pytest.mark.parametrize("pattern", [Clustered(5, 8, block_size=SIZE), Selected(reuse=5, block_size=SIZE)])
def test_another_precision_starts_anew(pattern):
    q, k, _ = inputs()
    state = {"step": 0}
    pattern.mask_for(q.float() + 3, k.float(), GRID, state)
    state["step"] = 1
    later = pattern.mask_for(q, k, GRID, state)
    assert torch.equal(later.to_dense(), pattern.mask_for(q, k, GRID).to_dense())


@pytest.mark.parametrize("grid", [GRID, TokenGrid(9, 4, 4), TokenGrid(1, 3, 2)])
def test_a_density_of_one_is_everything(grid):
    q, k, _ = inputs(grid)
    for pattern in (SparseVideoGen(1.0, block_size=SIZE), Selected(Pooled(), TopK(1.0), block_size=SIZE)):
        assert pattern.mask_for(q, k, grid).density == 1


def test_masks_of_other_tokens_than_the_grid():
    q, k, _ = inputs()
    with pytest.raises(ValueError, match="94 tokens on a grid of 95"):
        Selected().mask_for(q[:, :, :-1], k[:, :, :-1], GRID)
    with pytest.raises(ValueError, match="equally long"):
        Selected().mask_for(q, k[:, :2], GRID)


def test_the_score_of_the_readme():
    """It runs as it stands, and is what it says."""
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    section = readme.split("### A score of your own")[1]
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1], names)
    grid = TokenGrid(4, 5, 9)
    q, k, v = inputs(grid, batch=1, heads=2)
    score, order = names["Bound"](), names["pattern"].order
    partition = order.partition(q, k, grid, SIZE, MaskCache(4))
    found = score.of(names["Sides"](q, k, partition, None))
    places, sizes = partition.key.tolist(), partition.lengths.tolist()
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    blocks = [places[a : a + n] for a, n in zip(starts, sizes, strict=True)]
    for h in range(2):
        for i, block in enumerate(blocks):
            mean = q[0, h, block].mean(0)
            most = [sum(max(float(mean[c] * k[0, h, t, c]) for t in other) for c in range(8)) for other in blocks]
            logits = torch.tensor(most, dtype=torch.float64) / math.sqrt(8)
            torch.testing.assert_close(found[0, h, i], logits.softmax(0))
    assert attention(q, k, v, names["pattern"], grid).isfinite().all()
