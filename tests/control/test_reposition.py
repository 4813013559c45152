"""Reposition equals one softmax over own keys and the reference's canvas, for queries in the box alone."""

import pytest
import torch
import torch.nn.functional as F

import dattn
from dattn.control.reposition import Reposition

from .stages import WIDTH, grid_for, qkv, stage, through

PATTERNS = (None, dattn.Neighborhood((None, 3, 3)), dattn.Radial(block_size=16, sink=False))
PROMPTS = "a red circle", "a red circle above a blue square", "a blue square"
SHAPE = (6, 4, 5)
# Boxes whose tokens on that grid are known: (rows, columns).
REFERENCE, ITS = (0.2, 0.25, 0.8, 0.75), (slice(1, 3), slice(1, 4))
TARGET, THEIRS = (0, 0, 0.4, 0.75), (slice(0, 3), slice(0, 2))
OTHER, OTHERS = (0.4, 0.5, 1, 1), (slice(2, 4), slice(2, 5))


def canvas(tensor, grid, source, target):
    """The visual tokens of [heads, tokens, width] cropped, resized and pasted on zeros, and where they are."""
    crop = tensor[:, grid.text_before :].unflatten(1, grid.shape)[:, :, *source]
    size = [s.stop - s.start for s in target]
    frames = crop.permute(1, 0, 4, 2, 3).flatten(1, 2)
    resized = (
        F.interpolate(frames, size, mode="nearest-exact").unflatten(1, (len(tensor), WIDTH)).permute(1, 0, 3, 4, 2)
    )
    pasted, filled = tensor.new_zeros(len(tensor), *grid.shape, WIDTH), torch.zeros(grid.shape).bool()
    pasted[:, :, *target], filled[:, *target] = resized, True
    return pasted.flatten(1, 3), filled.flatten()


def wanted(query, key, value, row, references, grid, pattern, strength=1.0):
    """One sample, with (sample, source, target) for each reference."""
    own = torch.ones(grid.tokens, grid.tokens) if pattern is None else pattern.allowed(grid)
    keys, values, weights = [key[row]], [value[row]], [own.double()]
    for sample, source, target in references:
        pasted, filled = canvas(key[sample], grid, source, target)
        keys.append(pasted)
        values.append(canvas(value[sample], grid, source, target)[0])
        inside = torch.zeros(grid.tokens).bool()
        inside[grid.text_before :] = filled
        weights.append(strength * (inside[:, None] & filled).double())
    logits = query[row] @ torch.cat(keys, 1).mT * WIDTH**-0.5 + torch.cat(weights, 1).log()
    return logits.softmax(-1) @ torch.cat(values, 1)


@pytest.mark.parametrize("strength", [1.0, 0.4])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind", ["self", "joint"])
def test_references_are_seen_in_their_boxes(kind, pattern, strength):
    """Two references, both guidance branches."""
    grid = grid_for(kind, SHAPE)
    query, key, value = qkv(6, 2, grid.tokens, grid.tokens)
    control = Reposition({0: (REFERENCE, TARGET), 2: (TARGET, OTHER)}, strength)
    output = through([control], stage(*PROMPTS, halves=True), kind, query, key, value, pattern, grid)
    for row in range(6):
        half = row // 3 * 3
        references = [(half, ITS, THEIRS), (half + 2, THEIRS, OTHERS)] if row % 3 == 1 else []
        expected = wanted(query, key, value, row, references, grid, pattern, strength)
        assert (output[row] - expected).abs().max() < 1e-12
    assert (output[1] - wanted(query, key, value, 1, [], grid, pattern)).abs().max() > 1e-3


def test_overlapping_targets():
    grid = grid_for("self", SHAPE)
    query, key, value = qkv(3, 2, grid.tokens, grid.tokens)
    control = Reposition({0: (REFERENCE, TARGET), 2: (REFERENCE, (0, 0, 1, 1))})
    output = through([control], stage(*PROMPTS), "self", query, key, value, grid=grid)
    references = [(0, ITS, THEIRS), (2, ITS, (slice(0, 4), slice(0, 5)))]
    assert (output[1] - wanted(query, key, value, 1, references, grid, None)).abs().max() < 1e-12


def test_several_pictures_and_several_targets():
    grid = grid_for("self", SHAPE)
    query, key, value = qkv(6, 2, grid.tokens, grid.tokens)
    output = through([Reposition({1: (REFERENCE, TARGET)})], stage(*PROMPTS), "self", query, key, value, grid=grid)
    for row, reference in enumerate([2, 3, None, None, 2, 3]):
        references = [] if reference is None else [(reference, ITS, THEIRS)]
        assert (output[row] - wanted(query, key, value, row, references, grid, None)).abs().max() < 1e-12


def test_a_box_is_at_least_one_token():
    grid = grid_for("self", (1, 4, 5))
    query, key, value = qkv(2, 2, 20, 20)
    control = Reposition({0: ((0.99, 0.01, 1, 0.02), (0, 0.95, 0.01, 1))})
    output = through([control], stage(*PROMPTS[:2]), "self", query, key, value, grid=grid)
    corner = (slice(0, 1), slice(4, 5)), (slice(3, 4), slice(0, 1))
    assert (output[1] - wanted(query, key, value, 1, [(0, *corner)], grid, None)).abs().max() < 1e-12
    assert (output[1] - wanted(query, key, value, 1, [], grid, None)).abs().max() > 1e-3


@pytest.mark.parametrize(("step", "index"), [(1, 1), (5, 1), (3, 0)])
def test_only_in_its_window_and_layers(step, index):
    query, key, value = qkv(2, 2, 20, 20)
    control = Reposition({0: (REFERENCE, TARGET)}, window=(0.2, 0.5), layers=[1])
    at = lambda step, index: through(
        [control], stage(*PROMPTS[:2], step=step), "self", query, key, value, index=index, count=2
    )
    plain = wanted(query, key, value, 1, [], grid_for("self"), None)
    assert (at(3, 1)[1] - plain).abs().max() > 1e-3
    assert (at(step, index)[1] - plain).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("boxes", "strength", "message"),
    [
        ({}, 1, "for each reference's number"),
        ({-1: (REFERENCE, TARGET)}, 1, "for each reference's number"),
        ({0: (REFERENCE,)}, 1, "for each reference's number"),
        ({0: (REFERENCE, (0.5, 0, 0.5, 1))}, 1, "in fractions"),
        ({0: (REFERENCE, [TARGET, OTHER])}, 1, "in fractions"),
        ({0: (REFERENCE, TARGET)}, 0, "strength=0"),
    ],
)
def test_wrong_boxes(boxes, strength, message):
    with pytest.raises(ValueError, match=message):
        Reposition(boxes, strength)


@pytest.mark.parametrize("numbers", [[2], [0, 1]])
def test_references_and_a_target_run_together(numbers):
    query, key, value = qkv(2, 2, 20, 20)
    control = Reposition(dict.fromkeys(numbers, (REFERENCE, TARGET)))
    with pytest.raises(ValueError, match="2 prompts run together"):
        through([control], stage(*PROMPTS[:2]), "self", query, key, value)
