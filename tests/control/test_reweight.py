"""Reweight equals multiplying columns of the map."""

from unittest import mock

import pytest
import torch

import dattn
from dattn.control import Reweight

from .stages import grid_for, maps, qkv, stage, through

PROMPTS = ("a red circle above a blue square", "a green square")


def naive(p, value, factors, visual, renormalize):
    """Columns times factors, in the rows of the picture."""
    scaled = p.clone()
    scaled[:, :, visual] = p[:, :, visual] * factors[:, None, None]
    return (scaled / scaled.sum(-1, keepdim=True) if renormalize else scaled) @ value


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize(
    ("kind", "pattern"), [("cross", None), ("joint", None), ("joint", dattn.Neighborhood((None, 3, 3)))]
)
def test_columns_are_multiplied(kind, pattern, renormalize):
    grid = grid_for(kind)
    query, key, value = qkv(2, 3, grid.tokens, 12 if kind == "cross" else grid.tokens)
    own = stage(*PROMPTS)
    control = Reweight({"a": 0.5, "square": 3.0}, renormalize=renormalize)
    factors = torch.ones(2, key.shape[2], dtype=value.dtype)
    factors[0, [1, 5]], factors[0, 7] = 0.5, 3.0
    factors[1, 1], factors[1, 3] = 0.5, 3.0
    allowed = None if pattern is None else pattern.allowed(grid)
    visual = slice(12, None) if kind == "joint" else slice(None)
    wanted = naive(maps(query, key, allowed), value, factors, visual, renormalize)
    output = through([control], own, kind, query, key, value, pattern)
    assert (output - wanted).abs().max() < 1e-12
    assert (output - maps(query, key, allowed) @ value).abs().max() > 1e-3


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("pattern", [None, dattn.Neighborhood((None, 3, 3))])
def test_words_look_at_the_picture_as_much_more(pattern, renormalize, halves):
    grid = grid_for("joint")
    query, key, value = qkv(2 + 2 * halves, 3, grid.tokens, grid.tokens)
    control = Reweight({"a": 0.5, "square": 3.0}, renormalize=renormalize, both=True)
    output = through([control], stage(*PROMPTS, halves=halves), "joint", query, key, value, pattern)
    p = maps(query, key, None if pattern is None else pattern.allowed(grid))
    plain = p @ value
    for row, words in enumerate(({1: 0.5, 5: 0.5, 7: 3.0}, {1: 0.5, 3: 3.0}), 2 * halves):
        for word, factor in words.items():
            p[row, :, 12:, word] *= factor
            p[row, :, word, 12:] *= factor
    wanted = (p / p.sum(-1, keepdim=True) if renormalize else p) @ value
    assert (output - wanted).abs().max() < 1e-12
    assert ((output - plain)[:, :, [1]].abs().amax((1, 2, 3)) > 1e-3).tolist() == 2 * halves * [False] + [True, True]


def test_joint_attention_runs_once():
    """Text and picture, each with its values, make one whole; of samples that follow no prompt nothing is done."""
    query, key, value = qkv(4, 2, 32, 32)
    seen, attend = [], torch.nn.functional.scaled_dot_product_attention
    note = lambda query, *rest: seen.append(query.shape[0] * query.shape[2]) or attend(query, *rest)
    with mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", note):
        through([Reweight({"square": 3.0})], stage(*PROMPTS, halves=True), "joint", query, key, value)
        assert sum(seen) == 4 * 32
        seen.clear()
        through([Reweight({"square": 1.0})], stage(*PROMPTS, halves=True), "joint", query, key, value)
        assert seen == [4 * 32]


@pytest.mark.parametrize("kind", ["cross", "joint"])
def test_values_are_laid_out_for_every_backend(kind):
    query, key, value = qkv(2, 2, grid_for(kind).tokens, 12 if kind == "cross" else 32)
    seen, attend = [], torch.nn.functional.scaled_dot_product_attention
    note = lambda query, key, value, *rest: seen.append(value.stride()) or attend(query, key, value, *rest)
    with mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", note):
        control = Reweight({"square": 3.0}, renormalize=True, both=True)
        through([control], stage(*PROMPTS), kind, query, key, value)
    assert len(seen) >= 2 and all(strides[-1] == 1 for strides in seen)


def test_unconditional_samples_are_left_alone():
    query, key, value = qkv(4, 2, 20, 12)
    output = through([Reweight({"square": 0.0})], stage(*PROMPTS, halves=True), "cross", query, key, value)
    plain = maps(query, key) @ value
    torch.testing.assert_close(output[:2], plain[:2])
    assert ((output - plain)[2:].abs().amax((1, 2, 3)) > 1e-3).all()


def test_of_some_prompts_alone():
    query, key, value = qkv(2, 2, 20, 12)
    control = Reweight({"square": 0.0}, prompts=[1])
    output = through([control], stage("a square", "a red square"), "cross", query, key, value)
    factors = torch.ones(2, 12, dtype=value.dtype)
    factors[1, 3] = 0.0
    wanted = naive(maps(query, key), value, factors, slice(None), False)
    assert (output - wanted).abs().max() < 1e-12


def test_several_pictures_of_a_prompt_follow_it():
    query, key, value = qkv(4, 2, 20, 12)
    output = through([Reweight({"square": 0.0})], stage(*PROMPTS), "cross", query, key, value)
    factors = torch.ones(4, 12, dtype=value.dtype)
    factors[:2, 7] = factors[2:, 3] = 0
    assert (output - naive(maps(query, key), value, factors, slice(None), False)).abs().max() < 1e-12


def test_only_in_its_window():
    query, key, value = qkv(1, 2, 20, 12)
    plain = maps(query, key) @ value
    for step, changed in ((0, False), (2, True), (4, True), (5, False)):
        own = stage("a red circle", step=step)
        output = through([Reweight({"red": 0.0}, window=(0.2, 0.5))], own, "cross", query, key, value)
        assert ((output - plain).abs().max() > 1e-3) == changed


def test_positions_of_tokens_stand_for_words():
    query, key, value = qkv(1, 2, 20, 12)
    outputs = [
        through([Reweight(weights)], stage("a red circle"), "cross", query, key, value)
        for weights in ({"red circle": 2.0}, {(2, 3): 2.0}, {2: 2.0, 3: 2.0})
    ]
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize(
    ("weights", "renormalize", "message"),
    [
        ({}, False, "a factor for each word"),
        ({"red": float("nan")}, False, "a factor for each word"),
        ({"red": -1.0}, True, "0 or more"),
    ],
)
def test_wrong_weights(weights, renormalize, message):
    with pytest.raises(ValueError, match=message):
        Reweight(weights, renormalize=renormalize)


@pytest.mark.parametrize("window", [-0.1, 1.5, (0.5, 0.2), (0, 0.5, 1), "all", True])
def test_wrong_windows(window):
    with pytest.raises(ValueError, match="shares of the denoising steps"):
        Reweight({"red": 2}, window=window)
