"""SubjectKeys: subject sees subject and the rest the rest, of the prompt before."""

import pytest
import torch

import dattn
from dattn.control import SharedKeys, SubjectKeys

from .stages import grid_for, maps, qkv, stage, through

PROMPTS = "a red circle", "a blue square", "a green star"
WORDS = ["red circle", "square", "green"]
TOKENS = [[2, 3], [3], [2]]
PATTERNS = (None, dattn.Neighborhood((1, 3, 3)))
SHAPE = (2, 4, 4)


def subjects(columns):
    """Where maps [samples, frames * tokens], from 0 to 1 in every frame, exceed 0.3."""
    frames = columns.unflatten(1, (SHAPE[0], -1))
    low, high = frames.amin(2, keepdim=True), frames.amax(2, keepdim=True)
    return ((frames - low) / (high - low) > 0.3).flatten(1)


def oracle(query, key, value, subject, visual, allowed):
    """Each prompt's attention over the keys of the one before it, of equal kind or of text; the first over its own."""
    tokens = query.shape[2]
    output = maps(query, key, allowed) @ value
    for sample in range(1, len(query)):
        kind, theirs = subject[sample].clone(), subject[sample - 1]
        sees = (kind[:, None] == theirs[None]) | ~visual[None].expand(tokens, -1)
        both = sees & allowed
        empty = ~both.any(1, keepdim=True)
        both = torch.where(empty, allowed, both)
        output[sample] = maps(query[sample], key[sample - 1], both) @ value[sample - 1]
    return output


@pytest.mark.parametrize("pattern", PATTERNS)
def test_in_joint_attention(pattern):
    grid = grid_for("joint", SHAPE)
    query, key, value = qkv(3, 2, grid.tokens, grid.tokens)
    control = SubjectKeys(WORDS, item="previous")
    own = stage(*PROMPTS)
    own.batch = own.samples = 3
    found = through([control], own, "joint", query, key, value, pattern, grid)
    allowed = torch.ones(grid.tokens, grid.tokens).bool() if pattern is None else pattern.allowed(grid)
    looks = maps(query, key, allowed)[:, :, 12:]
    subject = torch.zeros(3, grid.tokens, dtype=torch.bool)
    for sample, tokens in enumerate(TOKENS):
        subject[sample, 12:] = subjects(looks[sample, ..., tokens].sum(-1).mean(0)[None])[0]
        subject[sample, tokens] = True
    visual = torch.arange(grid.tokens) >= 12
    expected = oracle(query, key, value, subject, visual, allowed)
    assert (found - expected).abs().max() < 1e-12
    whole = SharedKeys("batch_item", item="previous", replace=True)
    shared = through([whole], own, "joint", query, key, value, pattern, grid)
    assert (shared - maps(query, key[[0, 0, 1]], allowed) @ value[[0, 0, 1]]).abs().max() < 1e-12
    assert (found - shared).abs().max() > 1e-3


@pytest.mark.parametrize("pattern", PATTERNS)
def test_in_self_attention_by_maps_of_cross_attention(pattern):
    grid = grid_for("self", SHAPE)
    control = SubjectKeys(WORDS, item="previous")
    own = stage(*PROMPTS)
    own.batch = own.samples = 3
    looking = qkv(3, 2, grid.tokens, 12, seed=1)
    own.text_count = 12
    through([control], own, "cross", *looking, grid=grid)
    kept = control._store
    query, key, value = qkv(3, 2, grid.tokens, grid.tokens)
    control.start = lambda: None  # the same call goes on
    found = through([control], own, "self", query, key, value, pattern, grid)
    assert control._store is kept
    looks = maps(*looking[:2]).mean(1)
    subject = torch.cat([subjects(looks[i, :, tokens].sum(-1)[None]) for i, tokens in enumerate(TOKENS)])
    allowed = torch.ones(grid.tokens, grid.tokens).bool() if pattern is None else pattern.allowed(grid)
    expected = oracle(query, key, value, subject, torch.ones(grid.tokens).bool(), allowed)
    assert (found - expected).abs().max() < 1e-12


def test_without_maps_keys_are_shared_whole():
    grid = grid_for("self", SHAPE)
    query, key, value = qkv(3, 2, grid.tokens, grid.tokens)
    own = stage(*PROMPTS)
    own.batch = own.samples = 3
    found = through([SubjectKeys(WORDS, item="previous")], own, "self", query, key, value, grid=grid)
    sources = [0, 0, 1]
    assert (found - maps(query, key[sources]) @ value[sources]).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("words", "options", "says"),
    [
        ("circle", {}, "for every prompt"),
        ([], {}, "for every prompt"),
        (WORDS, {"threshold": 0.0}, "threshold=0.0"),
        (WORDS, {"item": "next"}, "item='next'"),
    ],
)
def test_bad_arguments(words, options, says):
    with pytest.raises(ValueError, match=says):
        SubjectKeys(words, **options)


def test_words_for_every_prompt():
    own = stage(*PROMPTS[:2])
    own.batch = own.samples = 2
    with pytest.raises(ValueError, match="words for 3 prompts, but the call has 2"):
        through([SubjectKeys(WORDS)], own, "cross", *qkv(2, 2, 20, 12))
