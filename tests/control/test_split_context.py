"""SplitContext equals maps over parts of the text, mixed by mask."""

import pytest
import torch

import dattn
from dattn.control.split_context import SplitContext

from .stages import grid_for, maps, qkv, stage, through

PROMPTS = ("a red circle above a blue square", "above a blue square a red circle")
PARTS = "red circle", "above", "blue square"
TOKENS = [((2, 3), (4,), (6, 7)), ((6, 7), (1,), (3, 4))]
SHAPE = (6, 4, 4)
LEFT = (0, 0, 0.5, 1)


def naive(query, key, value, shares, tokens, allowed, first, visual):
    """One sample: [parts, visual] shares of maps without the other parts' text, ``first`` the first text key."""
    allowed = torch.ones(query.shape[1], key.shape[1]).bool() if allowed is None else allowed
    output = maps(query, key, allowed) @ value
    every = {first + i for part in tokens for i in part}
    mixed = 0
    for share, part in zip(shares, tokens, strict=True):
        seen = torch.tensor([i not in every - {first + j for j in part} for i in range(key.shape[1])])
        mixed = mixed + share[:, None] * (maps(query, key, allowed & seen) @ value)[:, visual]
    output[:, visual] = mixed
    return output


@pytest.mark.parametrize("merge", [0.0, 0.25])
@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        ("cross", None),
        ("joint", None),
        ("joint", dattn.Neighborhood((None, 3, 3))),
        ("joint", dattn.Radial(block_size=16, sink=False)),
    ],
)
def test_parts_of_text_for_parts_of_the_picture(kind, pattern, merge):
    """A box, and a soft mask that overlaps it; two prompts with the words in other places; both branches."""
    grid = grid_for(kind, SHAPE)
    query, key, value = qkv(4, 2, grid.tokens, 12 if kind == "cross" else grid.tokens)
    soft = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    control = SplitContext([LEFT, soft], PARTS, merge)
    output = through([control], stage(*PROMPTS, halves=True), kind, query, key, value, pattern, grid)
    covers = torch.zeros(2, *SHAPE, dtype=torch.float64)
    covers[0, :, :, :2], covers[1] = 1, soft
    covers = (covers / covers.sum(0).clamp(min=1)).flatten(1) * (1 - merge)
    shares = torch.cat([covers, 1 - covers.sum(0, keepdim=True)])
    allowed = None if pattern is None else pattern.allowed(grid)
    visual = slice(12, None) if kind == "joint" else slice(None)
    plain = maps(query, key, allowed) @ value
    assert (output - plain)[:2].abs().max() < 1e-12
    for row, tokens in zip((2, 3), TOKENS, strict=True):
        wanted = naive(query[row], key[row], value[row], shares, tokens, allowed, 0, visual)
        assert (output[row] - wanted).abs().max() < 1e-12
        assert (output - plain)[row].abs().max() > 1e-3


def test_the_context_in_two_halves():
    """Tokens of a reference picture, the first half of its foreground, told apart by positions alone."""
    query, key, value = qkv(1, 2, 20, 12)
    control = SplitContext([torch.eye(4, 5).bool()], [range(6), range(6, 12)])
    output = through([control], stage(), "cross", query, key, value)
    inside = torch.eye(4, 5).bool().flatten()[:, None]
    half = [maps(query, key[:, :, part]) @ value[:, :, part] for part in (slice(6), slice(6, 12))]
    assert (output - torch.where(inside, *half)).abs().max() < 1e-12


def test_what_the_model_hides_stays_hidden():
    query, key, value = qkv(1, 2, 20, 12)
    seen = (torch.arange(12) < 9)[None, None, None]
    shares = torch.zeros(2, 4, 5, dtype=torch.float64)
    shares[0, :, :2], shares[0, :, 2], shares[1, :, 2], shares[1, :, 3:] = 1, 0.5, 0.5, 1
    wanted = naive(query[0], key[0], value[0], shares.flatten(1), [(2,), (3,)], seen[0, 0], 0, slice(None))
    control = lambda: SplitContext([LEFT], ["red", "circle"])
    for mask in (seen, torch.zeros(1, 1, 1, 12).double().masked_fill(~seen, -torch.inf)):
        output = through([control()], stage("a red circle"), "cross", query, key, value, mask=mask)
        assert (output[0] - wanted).abs().max() < 1e-12


@pytest.mark.parametrize(("step", "index"), [(1, 1), (5, 1), (3, 0)])
def test_only_in_its_window_and_layers(step, index):
    query, key, value = qkv(1, 2, 20, 12)
    control = SplitContext([LEFT], ["red", "circle"], window=(0.2, 0.5), layers=[1])
    at = lambda step, index: through(
        [control], stage("a red circle", step=step), "cross", query, key, value, index=index, count=2
    )
    plain = maps(query, key) @ value
    assert (at(3, 1) - plain).abs().max() > 1e-3
    assert (at(step, index) - plain).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], ["red"]), "0 masks need 1 parts"),
        (([LEFT], ["red"]), "1 masks need 2 parts"),
        (([LEFT], "it"), "1 masks need 2 parts"),
        (([(0, 0, 0, 1)], ["red", "circle"]), "in fractions"),
        (([LEFT], ["red", "circle"], 1.5), "merge=1.5"),
    ],
)
def test_wrong_options(arguments, message):
    with pytest.raises(ValueError, match=message):
        SplitContext(*arguments)
