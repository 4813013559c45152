"""OrderShift equals attention of queries, keys and values that are shifted."""

import pytest
import torch

import dattn
from dattn.control import OrderShift

from .stages import grid_for, maps, qkv, stage, through

SHAPE = (5, 3, 4)


def shifted(tensor, frames, before):
    """[batch, heads, tokens, width] with the tokens of each frame ``frames`` later."""
    text, visual = tensor[:, :, :before], tensor[:, :, before:]
    size = SHAPE[1] * SHAPE[2]
    order = [(f - frames) % SHAPE[0] * size + place for f in range(SHAPE[0]) for place in range(size)]
    return torch.cat([text, visual[:, :, order]], 2)


@pytest.mark.parametrize(("share", "frames"), [(0.0, 0), (0.5, 2), (0.8, 4), (1.0, 0)])
@pytest.mark.parametrize("kind", ["self", "joint"])
def test_all_three_are_shifted(kind, share, frames):
    grid = grid_for(kind, SHAPE)
    tensors = qkv(2, 2, grid.tokens, grid.tokens)
    query, key, value = (shifted(tensor, frames, grid.text_before) for tensor in tensors)
    found = through([OrderShift(share)], stage("a red circle"), kind, *tensors, grid=grid)
    assert (found - maps(query, key) @ value).abs().max() < 1e-12
    assert ((found - maps(*tensors[:2]) @ tensors[2]).abs().max() > 1e-3) == (frames > 0)


@pytest.mark.parametrize("kind", ["self", "joint"])
def test_over_a_pattern_its_output_is_shifted(kind):
    grid = grid_for(kind, SHAPE)
    tensors = qkv(1, 2, grid.tokens, grid.tokens)
    pattern = dattn.Neighborhood((3, 3, 3))
    found = through([OrderShift(0.4)], stage("a red circle"), kind, *tensors, pattern, grid)
    plain = maps(*tensors[:2], pattern.allowed(grid)) @ tensors[2]
    assert (found - shifted(plain, 2, grid.text_before)).abs().max() < 1e-12


def test_frames_that_are_samples():
    grid = grid_for("self", (1, 3, 4))
    tensors = qkv(8, 2, grid.tokens, grid.tokens)
    own = stage()
    own.batch = own.samples = 2
    found = through([OrderShift(0.25)], own, "self", *tensors, grid=grid)
    plain = maps(*tensors[:2]) @ tensors[2]
    assert (found - plain[[3, 0, 1, 2, 7, 4, 5, 6]]).abs().max() < 1e-12


def test_a_picture_has_no_order():
    grid = grid_for("self")
    with pytest.raises(ValueError, match="attn has one frame"):
        through([OrderShift()], stage(), "self", *qkv(1, 2, grid.tokens, grid.tokens), grid=grid)


def test_only_in_its_window_and_layers():
    grid = grid_for("self", SHAPE)
    tensors = qkv(1, 2, grid.tokens, grid.tokens)
    plain = maps(*tensors[:2]) @ tensors[2]
    for step, index, acts in ((3, 1, True), (4, 1, False), (0, 0, False)):
        own = stage(step=step)
        found = through([OrderShift(layers=[1])], own, "self", *tensors, grid=grid, index=index, count=2)
        assert ((found - plain).abs().max() > 1e-3) == acts


@pytest.mark.parametrize("share", [-0.1, 1.5, "half", True])
def test_wrong_shares(share):
    with pytest.raises(ValueError, match="share="):
        OrderShift(share)
