"""Controls over a pattern with a tail equal edits of its map, where tokens share the weight of their mean key."""

import pytest
import torch

import dattn
from dattn.control import HeatMaps, Replace, Reweight
from dattn.control.emphasize import Emphasize

from .stages import WIDTH, grid_for, qkv, stage, through

SHAPE, SIZE, TEXT = (9, 4, 5), 16, 12
PATTERN = dattn.Radial(block_size=SIZE, decay=0.3, sink=False, tail=True)
PROMPTS = ("a red circle above a blue square", "a green circle above a blue square")


def tail_maps(query, key, grid):
    """The probabilities of the pattern: of the keys that it keeps, and of the mean key of every block that it skips.

    A mean key counts as often as it has tokens, and its value is their mean: each has an equal part of its weight.
    """
    allowed, first = PATTERN.allowed(grid), grid.text_before
    blocks = torch.arange(first, first + grid.visual).split(SIZE)
    means = torch.stack([torch.eye(grid.tokens, dtype=query.dtype)[block].mean(0) for block in blocks])
    skipped = torch.stack([~allowed[:, block].any(1) for block in blocks], 1)
    count = torch.tensor([len(block) for block in blocks], dtype=query.dtype)
    near, far = query @ key.mT * WIDTH**-0.5, query @ (means @ key).mT * WIDTH**-0.5 + count.log()
    logits = torch.cat([near.masked_fill(~allowed, -torch.inf), far.masked_fill(~skipped, -torch.inf)], -1)
    weights = logits.softmax(-1)
    assert weights[..., grid.tokens :].amax() > 1e-3  # there is a tail
    return weights[..., : grid.tokens] + weights[..., grid.tokens :] @ means


def inputs(kind, batch=2):
    grid = grid_for(kind, SHAPE)
    return grid, *qkv(batch, 2, grid.tokens, grid.tokens)


def test_the_map_is_that_of_the_pattern():
    grid, query, key, value = inputs("joint")
    output = dattn.attention(query, key, value, PATTERN, grid)
    assert (output - tail_maps(query, key, grid) @ value).abs().max() < 1e-12


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("renormalize", [False, True])
def test_columns_are_multiplied(renormalize, both):
    grid, query, key, value = inputs("joint")
    control = Reweight({"square": 3.0, "blue": 0.2}, renormalize=renormalize, both=both)
    output = through([control], stage(*PROMPTS), "joint", query, key, value, PATTERN, grid)
    p = tail_maps(query, key, grid)
    plain = p @ value
    for token, factor in ((7, 3.0), (6, 0.2)):
        p[:, :, TEXT:, token] *= factor
        if both:
            p[:, :, token, TEXT:] *= factor
    wanted = (p / p.sum(-1, keepdim=True) if renormalize else p) @ value
    assert (output - wanted).abs().max() < 1e-12
    assert (output - plain).abs().max() > 1e-3


def test_columns_are_added_to():
    grid, query, key, value = inputs("joint")
    output = through([Emphasize({"circle": 0.5})], stage(*PROMPTS), "joint", query, key, value, PATTERN, grid)
    p = tail_maps(query, key, grid)
    p[:, :, TEXT:, 3] += 0.5
    assert (output - p @ value).abs().max() < 1e-12


def test_self_attention_has_the_map_of_the_source():
    grid, query, key, value = inputs("self")
    output = through([Replace(inject=0.4)], stage(*PROMPTS), "self", query, key, value, PATTERN, grid)
    p = tail_maps(query, key, grid)
    assert (output - p[:1] @ value).abs().max() < 1e-12
    assert (output - p @ value)[1].abs().max() > 1e-3


def test_joint_attention_has_queries_and_keys_of_the_sources_picture():
    grid, query, key, value = inputs("joint")
    output = through([Replace()], stage(*PROMPTS), "joint", query, key, value, PATTERN, grid)
    mixed = [t.clone() for t in (query, key)]
    for own in mixed:
        own[1, :, TEXT:] = own[0, :, TEXT:]
    assert (output - tail_maps(*mixed, grid) @ value).abs().max() < 1e-12


def test_a_heat_map_is_the_mean_over_tokens_and_heads():
    grid, query, key, value = inputs("joint")
    control, own = HeatMaps(["blue square"]), stage(*PROMPTS)
    output = through([control], own, "joint", query, key, value, PATTERN, grid)
    assert torch.equal(output, through([], own, "joint", query, key, value, PATTERN, grid))
    wanted = tail_maps(query, key, grid)[:, :, TEXT:, 6:8].mean((1, 3)).view(2, *SHAPE)
    assert (control["blue square"] - wanted).abs().max() < 1e-6  # maps are kept in float32
