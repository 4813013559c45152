"""What is noted of dense attention in a few rows, against all of it."""

import pytest
import torch

import dattn
from dattn.apps.insight import DENSITIES, Insight
from dattn.block_mask import MaskCache

PATTERNS = {
    "dense": [dattn.Dense()],
    "near": [dattn.Neighborhood((1, None, None)), dattn.Neighborhood((3, None, None))],
}


def noted(grid, heads=2, masked=0):
    """The queries, keys and weights of a call whose every row is looked at, and what was noted of it."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, grid.tokens, 8, generator=generator) for _ in range(3))
    mask = None
    logits = q @ k.mT * 8**-0.5
    if masked:
        mask = torch.ones(2, grid.tokens, dtype=torch.bool)
        mask[:, -masked:] = False
        logits[..., -masked:] = -torch.inf
    insight = Insight([1], 2, across=0.9, down=0.0, patterns=PATTERNS)
    for step in (0, 1):
        state = {"masks": MaskCache(8), "step": step, "layer": 3, "layers": 4}
        insight.attend(q, k, v, grid, state, scale=8**-0.5, key_mask=mask, backend="auto")
    assert list(insight.seen) == [(1, 3)]
    return logits[-1].softmax(-1), insight.seen[1, 3]


@pytest.mark.parametrize("masked", [0, 2])
def test_a_video(masked):
    grid = dattn.TokenGrid(3, 4, 5, text=(2, 3))
    weights, seen = noted(grid, masked=masked)
    visual = weights[:, 2:62]
    assert seen.place == (1, 0, 4)
    row = visual[:, 20 + 4, 2:62].reshape(2, 3, 4, 5)
    torch.testing.assert_close(torch.from_numpy(seen.space).float(), row, atol=1e-3, rtol=1e-2)
    time = visual[..., 2:62].reshape(2, 3, 20, 3, 20).sum(-1).mean(2)
    time = time / time.sum(-1, keepdim=True)
    torch.testing.assert_close(torch.from_numpy(seen.time), time, atol=1e-5, rtol=1e-4)
    assert seen.decay[:, 0] == pytest.approx(time.diagonal(dim1=1, dim2=2).mean(-1).numpy() * 3, rel=1e-4)
    text = 1 - visual[..., 2:62].sum(-1).mean(-1)
    assert seen.text == pytest.approx(text.numpy(), rel=1e-3)


def test_the_keys_that_are_needed_and_the_best_that_can_be_had():
    grid = dattn.TokenGrid(1, 6, 8)
    weights, seen = noted(grid)
    ordered = weights.sort(-1, descending=True).values.cumsum(-1)
    needed = ((ordered < 0.95).sum(-1) + 1).double().mean(-1) / 48
    assert seen.needed == pytest.approx(needed.numpy(), rel=1e-6)
    assert seen.best[:, -1] == pytest.approx(ordered[..., round(DENSITIES[-1] * 48) - 1].mean(-1).numpy(), rel=1e-4)
    assert seen.decay.shape == (2, 8) and (seen.decay > 0).all()


def test_what_patterns_keep():
    weights, seen = noted(dattn.TokenGrid(3, 4, 5))
    ((density, kept),) = seen.kept["dense"]
    assert density == 1 and kept == pytest.approx([1, 1], abs=1e-4)
    one, every = seen.kept["near"]
    own = weights.reshape(2, 3, 20, 3, 20).sum(-1).diagonal(dim1=1, dim2=3).mean((1, 2))
    assert one[0] == pytest.approx(1 / 3) and one[1] == pytest.approx(own.numpy(), rel=1e-3)
    assert every[0] == 1 and every[1] == pytest.approx([1, 1], abs=1e-4)
