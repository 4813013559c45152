"""Emphasize equals adding to columns of the map."""

import pytest

import dattn
from dattn.control import Reweight
from dattn.control.emphasize import Emphasize

from .stages import grid_for, maps, qkv, stage, through

PROMPTS = ("a red circle above a blue square", "a green square")


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        ("cross", None),
        ("joint", None),
        ("joint", dattn.Neighborhood((None, 3, 3))),
        ("joint", dattn.Radial(block_size=16, sink=False)),
    ],
)
def test_columns_are_added_to(kind, pattern):
    grid = grid_for(kind, (6, 4, 4))
    query, key, value = qkv(4, 3, grid.tokens, 12 if kind == "cross" else grid.tokens)
    control = Emphasize({"a": 0.5, "blue square": -0.3} if pattern is None else {"a": 0.5})
    own = stage(PROMPTS[0], PROMPTS[0] if pattern is None else PROMPTS[1], halves=True)
    output = through([control], own, kind, query, key, value, pattern, grid)
    p = maps(query, key, None if pattern is None else pattern.allowed(grid))
    plain = p @ value
    visual = slice(12, None) if kind == "joint" else slice(None)
    for row in (2, 3):
        for token in (1,) if pattern is not None and row == 3 else (1, 5):
            p[row, :, visual, token] += 0.5
        for token in (6, 7) if pattern is None else ():
            p[row, :, visual, token] -= 0.3
    assert (output - p @ value).abs().max() < 1e-12
    assert (output - plain)[:2].abs().max() < 1e-12 and ((output - plain)[2:].abs().amax((1, 2, 3)) > 1e-3).all()


def test_a_word_is_erased_for_some_steps():
    """By a control that there is already."""
    query, key, value = qkv(1, 2, 20, 12)
    p = maps(query, key)
    for step, erased in ((1, False), (2, True), (5, True), (6, False)):
        own = stage("a red circle", step=step)
        output = through([Reweight({"red": 0}, window=(0.2, 0.6))], own, "cross", query, key, value)
        wanted = p.clone()
        wanted[..., 2] *= not erased
        assert (output - wanted @ value).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("kind", "pattern"), [("cross", None), ("joint", None), ("joint", dattn.Neighborhood((None, 3, 3)))]
)
@pytest.mark.parametrize("renormalize", [False, True])
def test_a_word_is_erased_in_a_part_of_the_clip(kind, renormalize, pattern):
    """Frames 2 and 3 of six; the others, text and what follows no prompt stay."""
    grid = grid_for(kind, (6, 4, 4))
    query, key, value = qkv(2, 3, grid.tokens, 12 if kind == "cross" else grid.tokens)
    control = Reweight({"red": 0}, frames=(1 / 3, 2 / 3), renormalize=renormalize)
    output = through([control], stage("a red circle", halves=True), kind, query, key, value, pattern, grid)
    p = maps(query, key, None if pattern is None else pattern.allowed(grid))
    plain, first = p @ value, grid.tokens - 96
    served = slice(first + 32, first + 64)
    p[1, :, served, 2] = 0
    if renormalize:
        p[1, :, served] /= p[1, :, served].sum(-1, keepdim=True)
    assert (output - p @ value).abs().max() < 1e-12
    changed = (output - plain).abs().amax((1, 3)) > 1e-6
    assert changed[1, served].all() and changed.sum() == 32


def test_words_look_at_the_whole_clip():
    with pytest.raises(ValueError, match="both=True: words look at the whole clip"):
        Reweight({"red": 0}, frames=0.5, both=True)
    with pytest.raises(ValueError, match="frames=2: shares of the clip"):
        Reweight({"red": 0}, frames=2)


@pytest.mark.parametrize(("step", "index"), [(1, 1), (5, 1), (3, 0)])
def test_only_in_its_window_and_layers(step, index):
    query, key, value = qkv(1, 2, 20, 12)
    control = Emphasize({"red": 0.5}, window=(0.2, 0.5), layers=[1])
    at = lambda step, index: through(
        [control], stage("a red circle", step=step), "cross", query, key, value, index=index, count=2
    )
    plain = maps(query, key) @ value
    assert (at(3, 1) - plain).abs().max() > 1e-3
    assert (at(step, index) - plain).abs().max() < 1e-12


def test_self_attention_is_left_alone():
    query, key, value = qkv(1, 2, 20, 20)
    output = through([Emphasize({"red": 0.5})], stage("a red circle"), "self", query, key, value)
    assert (output - maps(query, key) @ value).abs().max() < 1e-12


@pytest.mark.parametrize("weights", [{}, {"red": float("nan")}, {"red": "more"}])
def test_wrong_weights(weights):
    with pytest.raises(ValueError, match="what is added for each word"):
        Emphasize(weights)


def test_a_word_that_is_not_there():
    query, key, value = qkv(1, 2, 20, 12)
    with pytest.raises(ValueError, match="'green' is not in the prompt"):
        through([Emphasize({"green": 0.5})], stage("a red circle"), "cross", query, key, value)
