"""Isolation equals hiding pairs of different subjects in the map."""

from unittest import mock

import pytest
import torch

import dattn
from dattn.control.isolation import Isolation

from .stages import WIDTH, grid_for, maps, qkv, stage, through

PATTERNS = (None, dattn.Neighborhood((None, 3, 3)), dattn.Radial(block_size=16, sink=False))
LEFT, RIGHT = (0, 0, 0.5, 1), (0.5, 0, 1, 1)


def allowed_on(pattern, grid):
    return torch.ones(grid.tokens, grid.tokens).bool() if pattern is None else pattern.allowed(grid)


def apart(members):
    """Pairs of tokens, bool [tokens, subjects], that are of subjects but share none."""
    return members.any(1)[:, None] & members.any(1) & ~(members.double() @ members.double().T).bool()


def on_tokens(grid, *subjects):
    """Masks [frames, height, width] as members of the whole sequence."""
    members = torch.zeros(grid.tokens, len(subjects)).bool()
    start = grid.text_before
    members[start : start + grid.visual] = torch.stack([m.flatten() for m in subjects], 1)
    return members


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind", ["self", "joint"])
def test_subjects_do_not_see_each_other(kind, pattern):
    """Three, of which two overlap, and a part of the picture that is no one's."""
    grid = grid_for(kind, (6, 4, 4))
    query, key, value = qkv(2, 2, grid.tokens, grid.tokens)
    subjects = torch.zeros(3, *grid.shape).bool()
    subjects[0, :, :, :2], subjects[1, :, 1:3, 1:3], subjects[2, 2:, 3] = True, True, True
    allowed = allowed_on(pattern, grid)
    hidden = apart(on_tokens(grid, *subjects))
    output = through([Isolation([*subjects])], stage(), kind, query, key, value, pattern, grid)
    assert (output - maps(query, key, allowed & ~hidden) @ value).abs().max() < 1e-12
    assert (output - maps(query, key, allowed) @ value).abs().max() > 1e-3


def test_boxes_and_soft_masks():
    grid = grid_for("self", (1, 4, 4))
    query, key, value = qkv(1, 2, 16, 16)
    right = torch.tensor([[0.0, 0.2, 0.5, 0.9]]).expand(4, 4)
    members = torch.zeros(1, 4, 4, 2).bool()
    members[:, :, :2, 0], members[:, :, 2:, 1] = True, True
    hidden = apart(on_tokens(grid, *members.unbind(-1)))
    wanted = maps(query, key, ~hidden) @ value
    for masks in ([LEFT, right], [LEFT, RIGHT]):
        assert (through([Isolation(masks)], stage(), "self", query, key, value, grid=grid) - wanted).abs().max() < 1e-12


def test_a_track_of_boxes():
    grid = grid_for("self", (2, 4, 4))
    query, key, value = qkv(1, 2, 32, 32)
    members = torch.zeros(2, 2, 4, 4).bool()
    members[0, 0, :, :2], members[0, 1, :, 2:], members[1, :, 3] = True, True, True
    hidden = apart(on_tokens(grid, *members))
    output = through([Isolation([[LEFT, RIGHT], (0, 0.75, 1, 1)])], stage(), "self", query, key, value, grid=grid)
    assert (output - maps(query, key, ~hidden) @ value).abs().max() < 1e-12


def test_no_query_asks_twice():
    grid = grid_for("joint", (1, 4, 4))
    query, key, value = qkv(1, 2, 28, 28)
    seen, attend = [], torch.nn.functional.scaled_dot_product_attention
    note = lambda query, key, *rest: seen.append((query.shape[2], key.shape[2])) or attend(query, key, *rest)
    with mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", note):
        through([Isolation([LEFT, RIGHT])], stage(), "joint", query, key, value, grid=grid)
    assert sorted(seen) == [(8, 20), (8, 20), (12, 28)]


def test_what_the_model_hides_stays_hidden():
    grid = grid_for("joint", (1, 4, 4))
    query, key, value = qkv(2, 2, 28, 28)
    members = torch.zeros(2, 1, 4, 4).bool()
    members[0, :, :, :2], members[1, :, :, 2:] = True, True
    hidden = apart(on_tokens(grid, *members))
    seen = torch.ones(2, 1, 1, 28).bool()
    seen[1, ..., 9:12] = False
    for mask in (seen, torch.zeros(2, 1, 1, 28).double().masked_fill(~seen, -torch.inf)):
        output = through([Isolation([LEFT, RIGHT])], stage(), "joint", query, key, value, grid=grid, mask=mask)
        assert (output - maps(query, key, ~hidden & seen) @ value).abs().max() < 1e-12


def test_it_edits_what_others_leave():
    """Inside another control the keys are hidden from that, too."""
    grid = grid_for("joint", (1, 4, 4))
    query, key, value = qkv(1, 2, 28, 28)
    controls = [dattn.control.Reweight({"red": 0.0}), Isolation([LEFT, RIGHT])]
    output = through(controls, stage("a red circle"), "joint", query, key, value, grid=grid)
    members = torch.zeros(2, 1, 4, 4).bool()
    members[0, :, :, :2], members[1, :, :, 2:] = True, True
    p = maps(query, key, ~apart(on_tokens(grid, *members)))
    p[:, :, 12:, 2] = 0
    assert (output - p @ value).abs().max() < 1e-12


def test_cross_attention_is_left_alone():
    query, key, value = qkv(1, 2, 20, 12)
    output = through([Isolation([LEFT, RIGHT])], stage(), "cross", query, key, value)
    assert (output - maps(query, key, scale=WIDTH**-0.5) @ value).abs().max() < 1e-12


@pytest.mark.parametrize(("step", "index"), [(1, 1), (5, 1), (3, 0)])
def test_only_in_its_window_and_layers(step, index):
    query, key, value = qkv(1, 2, 20, 20)
    control = Isolation([LEFT, RIGHT], window=(0.2, 0.5), layers=[1])
    plain = maps(query, key) @ value
    at = lambda step, index: through([control], stage(step=step), "self", query, key, value, index=index, count=2)
    assert (at(3, 1) - plain).abs().max() > 1e-3
    assert (at(step, index) - plain).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([LEFT], "two or more"),
        ([LEFT, (0.5, 0, 0.2, 1)], "in fractions"),
        ([LEFT, torch.full((4, 4), 2.0)], "shares in"),
        ([LEFT, torch.zeros(4)], "height, width"),
    ],
)
def test_wrong_masks(masks, message):
    with pytest.raises(ValueError, match=message):
        Isolation(masks)
