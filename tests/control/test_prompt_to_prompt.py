"""Replace and Refine equal edits of the map as Prompt-to-Prompt defines them."""

from dataclasses import replace
from itertools import pairwise
from zlib import crc32

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dattn
from dattn.control import Refine, Replace, Reweight
from dattn.control.alignment import refinement, replacement
from dattn.control.words import Tokens

from .stages import WordTokenizer, grid_for, maps, qkv, stage, through, tokens_of

SPARSE = dattn.Neighborhood((None, 3, 3))


def pieces(text, *counts, room=12):
    """A prompt whose words have so many tokens each, behind one special token."""
    spans, at = [(0, 0)], 0
    for word, count in zip(text.split(), counts, strict=True):
        at = text.index(word, at)
        cuts = [at + i * len(word) // count for i in range(count + 1)]
        spans += list(pairwise(cuts))
        at += len(word)
    ids = tuple(crc32(text[a:b].encode()) for a, b in spans)
    return Tokens(text, ids, tuple(spans), 0, room)


def test_same_lengths_correspond_position_by_position():
    mapper = replacement(tokens_of("a red circle"), tokens_of("a blue circle"))
    assert torch.equal(mapper, torch.eye(12, dtype=torch.float64))


def test_one_token_becomes_two():
    mapper = replacement(pieces("a red circle here", 1, 1, 1, 1), pieces("a turquoise circle now", 1, 2, 1, 1))
    wanted = torch.zeros(12, 12, dtype=torch.float64)
    wanted[0, 0] = wanted[1, 1] = 1
    wanted[2, 2:4] = 0.5
    wanted[3, 4] = wanted[4, 5] = 1  # "circle" in step, "here" is swapped for "now"
    for j in range(6, 12):
        wanted[j, j] = 1  # behind the last swapped word
    assert torch.equal(mapper, wanted)


def test_three_tokens_become_one():
    mapper = replacement(pieces("a turquoise circle", 1, 3, 1, room=8), pieces("a red circle", 1, 1, 1, room=8))
    assert mapper[2:5, 2].tolist() == [1, 1, 1]
    assert [int(mapper[:, j].argmax()) for j in (0, 1, 3, 4, 5, 7)] == [0, 1, 3, 4, 5, 7]


def test_a_swapped_word_that_is_cut_off_is_left_out():
    mapper = replacement(pieces("a red circle", 1, 1, 1, room=3), pieces("a red square", 1, 1, 1, room=3))
    assert torch.equal(mapper, torch.eye(3, dtype=torch.float64))


def test_another_number_of_words_is_refused():
    with pytest.raises(ValueError, match=r"3 words.*4.*use Refine"):
        replacement(tokens_of("a red circle"), tokens_of("a big red circle"))


def test_new_words_have_no_counterpart():
    counterpart, known = refinement(tokens_of("a circle here"), tokens_of("a big red circle here"))
    assert known.tolist() == [1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]
    assert counterpart[known.bool()].tolist() == [0, 1, 2, 3, 6, 7, 8, 9, 10, 11]


def test_left_out_words_are_skipped():
    counterpart, known = refinement(tokens_of("a big red circle"), tokens_of("a circle"))
    assert known.all() and counterpart[:3].tolist() == [0, 1, 4]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=8), st.lists(st.sampled_from("abcd"), max_size=8))
def test_alignment_keeps_order_and_joins_equal_tokens_alone(old, new):
    source, target = (Tokens(" ".join(t), tuple(map(ord, t)), ((0, 0),) * len(t), 0, 9) for t in (old, new))
    counterpart, known = refinement(source, target)
    pairs = [(int(counterpart[j]), j) for j in range(len(new)) if known[j]]
    assert all(old[i] == new[j] for i, j in pairs)
    assert pairs == sorted(pairs) and len({i for i, _ in pairs}) == len(pairs)
    assert len(pairs) == longest_common(old, new)


def longest_common(a, b):
    """Length of the longest common subsequence: what the best alignment joins."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


CASES = {
    "replace": (Replace, ("a red circle here", "a blue circle here", "a red square now")),
    "refine": (Refine, ("a circle here", "a red circle here", "a circle over here")),
}


def edited_map(name, olds, news, own, source):
    """The map of an edited prompt in a step that follows the source, from the method's definition."""
    if name == "replace":
        return source @ replacement(olds, news)
    counterpart, known = refinement(olds, news)
    return source[:, :, counterpart] * known + own * (1 - known)


@pytest.mark.parametrize("each", [1, 2])
@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_cross_attention_has_the_edited_map(name, halves, each):
    kind, prompts = CASES[name]
    conditional = 3 * each
    query, key, value = qkv(conditional * (1 + halves), 2, 20, 12)
    output = through([kind(cross=0.5)], stage(*prompts, halves=halves, step=4), "cross", query, key, value)
    p, first, olds = maps(query, key), conditional * halves, tokens_of(prompts[0])
    wanted = p @ value
    for i in range(conditional):
        if i >= each:
            row, source = first + i, first + i % each
            wanted[row] = edited_map(name, olds, tokens_of(prompts[i // each]), p[row], p[source]) @ value[row]
    assert (output - wanted).abs().max() < 1e-12
    assert (output - p @ value)[first + each :].abs().amin(0).max() > 1e-3


class Halves(WordTokenizer):
    """Words of more than six letters are two tokens."""

    def __call__(self, text, return_offsets_mapping=False):
        spans = [(0, 0)]
        for a, b in super().__call__(text)["offset_mapping"][1:]:
            spans += [(a, a + 5), (a + 5, b)] if b - a > 6 else [(a, b)]
        return {"input_ids": [0, *(crc32(text[a:b].encode()) for a, b in spans[1:])], "offset_mapping": spans}


def test_a_word_of_two_tokens_has_the_map_of_one():
    """What looked at "red" is shared between the tokens of "turquoise"; "circle" goes one on, "here" to "now"."""
    own = stage("a red circle here", "a turquoise circle now")
    own.keep_alive.tokenizer = Halves()
    query, key, value = qkv(2, 2, 20, 12)
    output = through([Replace()], own, "cross", query, key, value)
    p = maps(query, key)
    edited = torch.zeros_like(p[0])
    edited[..., :2] = p[0, ..., :2]
    edited[..., 2:4] = p[0, ..., 2:3] / 2
    edited[..., 4:6] = p[0, ..., 3:5]
    edited[..., 6:] = p[0, ..., 6:]
    assert (output - torch.stack([p[0], edited]) @ value).abs().max() < 1e-12


@pytest.mark.parametrize("name", CASES)
def test_single_words_have_steps_of_their_own(name):
    kind, prompts = CASES[name]
    query, key, value = qkv(3, 2, 20, 12)
    p = maps(query, key)
    for step, cross, word in ((1, True, True), (4, True, False), (9, False, False)):
        own = stage(*prompts, step=step)
        output = through([kind(cross=0.6, words={"a": (0.0, 0.3)})], own, "cross", query, key, value)
        wanted = p @ value
        for row in (1, 2):
            follows = torch.full((12,), float(cross), dtype=torch.float64)
            follows[1] = float(word)
            edited = edited_map(name, tokens_of(prompts[0]), tokens_of(prompts[row]), p[row], p[0])
            wanted[row] = (follows * edited + (1 - follows) * p[row]) @ value[row]
        assert (output - wanted).abs().max() < 1e-12


def test_reweight_after_replace_scales_the_replaced_map():
    prompts = CASES["replace"][1]
    query, key, value = qkv(3, 2, 20, 12)
    own = stage(*prompts)
    output = through([Replace(), Reweight({(2,): 3.0})], own, "cross", query, key, value)
    p = maps(query, key)
    factors = torch.ones(12, dtype=torch.float64)
    factors[2] = 3
    wanted = torch.stack([(p[0] @ replacement(tokens_of(prompts[0]), tokens_of(q)) * factors) for q in prompts]) @ value
    assert (output - wanted).abs().max() < 1e-12


@pytest.mark.parametrize("name", CASES)
def test_another_count_of_text_tokens_in_the_same_call(name):
    """As while Regions puts more texts behind the prompt, and no longer does."""
    kind, prompts = CASES[name]
    control, own = kind(), stage(*prompts)
    control.start, start = lambda: None, control.start
    start()
    for count in (12, 8, 12):
        own.text_count = count
        query, key, value = qkv(3, 2, 20, count, seed=count)
        output, p = through([control], own, "cross", query, key, value), maps(query, key)
        olds, *news = (replace(tokens_of(prompt), room=count) for prompt in prompts)
        for row, new in enumerate(news, 1):
            wanted = edited_map(name, olds, new, p[row], p[0]) @ value[row]
            assert (output[row] - wanted).abs().max() < 1e-12


@pytest.mark.parametrize("pattern", [None, SPARSE])
def test_self_attention_has_the_map_of_the_source(pattern):
    query, key, value = qkv(3, 2, 20, 20)
    allowed = None if pattern is None else pattern.allowed(grid_for("self"))
    for step, follows in ((3, True), (4, False)):
        own = stage(*CASES["replace"][1], step=step)
        output = through([Replace(inject=0.4)], own, "self", query, key, value, pattern)
        p = maps(query, key, allowed)
        wanted = (p[:1] if follows else p) @ value
        assert (output - wanted).abs().max() < 1e-12


@pytest.mark.parametrize("pattern", [None, SPARSE])
def test_joint_attention_has_queries_and_keys_of_the_sources_picture(pattern):
    grid = grid_for("joint")
    query, key, value = qkv(3, 2, grid.tokens, grid.tokens)
    output = through([Replace()], stage(*CASES["replace"][1]), "joint", query, key, value, pattern)
    allowed = None if pattern is None else pattern.allowed(grid)
    mixed_query, mixed_key = query.clone(), key.clone()
    mixed_query[:, :, 12:], mixed_key[:, :, 12:] = query[:1, :, 12:], key[:1, :, 12:]
    wanted = maps(mixed_query, mixed_key, allowed) @ value
    assert (output - wanted).abs().max() < 1e-12
    assert torch.equal(output[0], through([], stage(), "joint", query, key, value, pattern)[0])


def test_large_pictures_keep_their_own_self_attention():
    query, key, value = qkv(3, 2, 20, 20)
    own = stage(*CASES["replace"][1])
    output = through([Replace(max_tokens=19)], own, "self", query, key, value)
    assert (output - maps(query, key) @ value).abs().max() < 1e-12


def test_all_begin_with_the_sources_noise():
    control, noise = Replace(), torch.randn(6, 4, 3, 3)
    control._stage = stage(*CASES["replace"][1])
    assert torch.equal(control.prepared(noise), noise[:2].repeat(3, 1, 1, 1))


def test_one_prompt_is_no_edit():
    query, key, value = qkv(1, 2, 20, 12)
    with pytest.raises(ValueError, match="first is the source and edits follow"):
        through([Replace()], stage("a red circle"), "cross", query, key, value)


def test_steps_of_words_are_refused_where_attention_is_joint():
    query, key, value = qkv(2, 2, 32, 32)
    with pytest.raises(ValueError, match=r"words=.*joint.*leave words out"):
        own = stage("a red circle", "a blue circle")
        through([Replace(words={"blue": 0.3})], own, "joint", query, key, value)


def test_words_of_no_edited_prompt_are_refused():
    query, key, value = qkv(2, 2, 20, 12)
    with pytest.raises(ValueError, match=r"'green' is in none of the edited prompts"):
        own = stage("a red circle", "a blue circle")
        through([Replace(words={"green": 0.3})], own, "cross", query, key, value)
