"""HeatMaps are means of columns of the map; LocalBlend thresholds them."""

import numpy as np
import pytest
import torch

import dattn
from dattn.control import HeatMaps, LocalBlend, Replace
from dattn.control.map_store import on_latents, resize

from .stages import grid_for, maps, qkv, stage, through

SPARSE = dattn.Neighborhood((None, 3, 3))


@pytest.mark.parametrize(
    ("kind", "pattern"), [("cross", None), ("joint", None), ("joint", SPARSE)], ids=["cross", "joint", "joint, sparse"]
)
def test_a_map_is_the_mean_over_tokens_and_heads(kind, pattern):
    grid = grid_for(kind, (2, 4, 5))
    query, key, value = qkv(2, 3, grid.tokens, 12 if kind == "cross" else grid.tokens)
    control = HeatMaps(["a", "red circle"])
    own = stage("a red circle above a square", "a red circle")
    output = through([control], own, kind, query, key, value, pattern, grid)
    p = maps(query, key, None if pattern is None else pattern.allowed(grid))
    assert torch.equal(output, through([], own, kind, query, key, value, pattern, grid))
    rows = p[:, :, 12:] if kind == "joint" else p
    wanted = torch.stack([rows[0, :, :, [1, 5]].mean((0, 2)), rows[1, :, :, [1]].mean((0, 2))])
    assert (control["a"] - wanted.view(2, 2, 4, 5)).abs().max() < 1e-6
    assert (control["red circle"] - rows[..., [2, 3]].mean((1, 3)).view(2, 2, 4, 5)).abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["cross", "joint"])
def test_words_of_one_prompt_alone_have_maps_of_its_samples(kind):
    """A word that the other prompt lacks is no error, and its map there is empty."""
    grid = grid_for(kind, (2, 4, 5))
    query, key, value = qkv(2, 3, grid.tokens, 12 if kind == "cross" else grid.tokens)
    control = HeatMaps(["blue", "circle"], prompts=[1])
    through([control], stage("a red circle", "a large blue circle"), kind, query, key, value, grid=grid)
    rows = maps(query, key)[1, :, 12 if kind == "joint" else 0 :]
    for word, token in (("blue", 3), ("circle", 4)):
        assert (control[word][1] - rows[..., token].mean(0).view(2, 4, 5)).abs().max() < 1e-6
        assert control[word].shape == (2, 2, 4, 5) and not control[word][0].any()


@pytest.mark.parametrize("prompts", [[2], [], [-1]])
def test_words_of_a_prompt_that_is_not_there(prompts):
    query, key, value = qkv(2, 2, 20, 12)
    control = HeatMaps(["red"], prompts=prompts)
    with pytest.raises(ValueError, match="numbers of the call's, 0 to 1"):
        through([control], stage("a red circle", "a red square"), "cross", query, key, value)


def test_a_word_is_no_number():
    query, key, value = qkv(1, 2, 20, 12)
    control = HeatMaps(["2", 2])
    through([control], stage("2 a b"), "cross", query, key, value)
    looks = maps(query, key)[0].mean(0).view(1, 4, 5, 12)
    for word, token in (("2", 1), (2, 2)):
        assert (control[word][0] - looks[..., token]).abs().max() < 1e-6


def test_steps_layers_and_heads_can_be_kept_apart():
    grid, own = grid_for("cross"), stage("a red circle", steps=3)
    control, seen = HeatMaps(["red"], by=("step", "layer", "head")), []
    control._stage = own
    for own.step in range(2):
        for layer in range(2):
            query, key, value = qkv(1, 3, 20, 12, seed=10 * own.step + layer)
            control.start, start = lambda: None, control.start
            through([control], own, "cross", query, key, value, grid=grid, index=layer, count=2)
            control.start = start
            seen.append(maps(query, key)[0, :, :, 2])
    parts = control.parts("red")
    assert set(parts) == {(s, i, h) for s in range(2) for i in range(2) for h in range(3)}
    for (step, layer, head), part in parts.items():
        assert (part.flatten() - seen[2 * step + layer][head]).abs().max() < 1e-6
    assert (control["red"].flatten() - torch.stack(seen).mean((0, 1))).abs().max() < 1e-6


def test_unconditional_samples_and_other_layers_do_not_count():
    query, key, value = qkv(4, 2, 20, 12)
    control = HeatMaps(["red"], layers=[1])
    own = stage("a red circle", "a red square", halves=True)
    through([control], own, "cross", query, key, value, index=0)
    with pytest.raises(RuntimeError, match="no maps yet"):
        control["red"]
    through([control], own, "cross", query, key, value, index=1)
    assert control["red"].shape == (2, 1, 4, 5)
    assert (control["red"].flatten(1) - maps(query, key)[2:, :, :, 2].mean(1)).abs().max() < 1e-6


def test_gradients_flow_on_request():
    query, key, value = qkv(1, 2, 20, 12)
    query.requires_grad_()
    control = HeatMaps(["red"], differentiable=True)
    through([control], stage("a red circle"), "cross", query, key, value)
    (gradient,) = torch.autograd.grad(control["red"].square().sum(), query)
    other = maps(query, key)[..., 2].mean(1).square().sum()
    assert (gradient - torch.autograd.grad(other, query)[0]).abs().max() < 1e-6 < gradient.abs().max()


def test_layers_of_several_sizes_meet_at_the_largest():
    control, own = HeatMaps(["red"]), stage("a red circle")
    control._stage, own.levels = own, (grid_for("cross", (1, 8, 8)), grid_for("cross", (1, 4, 4)))
    for side in (8, 4):
        query, key, value = qkv(1, 2, side**2, 12, seed=side)
        keep, control.start = control.start, lambda: None
        through([control], own, "cross", query, key, value, grid=grid_for("cross", (1, side, side)))
        control.start = keep
    assert control["red"].shape == (1, 1, 8, 8)
    parts = []
    for side in (8, 4):
        query, key, _ = qkv(1, 2, side**2, 12, seed=side)
        parts.append(maps(query, key)[..., 2].mean(1).view(1, 1, side, side))
    large = torch.nn.functional.interpolate(parts[1], (8, 8), mode="bicubic", align_corners=False).clamp(min=0)
    assert (control["red"] - (parts[0] + large) / 2).abs().max() < 1e-6
    assert control["red"].std() > 1e-3


def test_maps_are_the_mean_over_steps_and_layers_in_fixed_memory():
    control, held, expected = HeatMaps(["red"]), [], []
    control.start()
    keep, control.start = control.start, lambda: None
    for seed, (step, index) in enumerate([(0, 0), (0, 1), (3, 0), (3, 1)]):
        query, key, value = qkv(1, 2, 20, 12, seed=seed)
        through([control], stage("a red circle", step=step), "cross", query, key, value, index=index, count=2)
        expected.append(maps(query, key)[..., 2].mean(1))
        held.append(
            sum(t.nbytes for store in control._stores.values() for t in vars(store).values() if hasattr(t, "nbytes"))
        )
    control.start = keep
    assert (control["red"].flatten(1) - sum(expected) / 4).abs().max() < 1e-6
    assert held[0] == held[-1] > 0


def test_an_overlay_is_bright_where_the_word_is():
    control, own = HeatMaps([(2,)]), stage("a red circle")
    query, key, value = qkv(1, 1, 20, 12)
    query[:], key[:] = 0, 0
    query[:, :, 7], key[:, :, 2] = 5, 5
    through([control], own, "cross", query, key, value)
    picture = np.asarray(control.overlay(np.zeros((40, 50, 3), np.uint8), (2,)))
    assert picture.shape == (40, 50, 3)
    assert picture[15, 25].sum() > 3 * picture[35, 5].sum() and picture[15, 25].sum() > 300
    assert len(control.video([np.zeros((8, 10, 3))] * 3, (2,))) == 3


def test_a_video_is_bright_where_the_word_is_in_the_clip():
    """A frame in which nobody looks at the word stays dark."""
    control, own, grid = HeatMaps([(2,)]), stage("a red circle"), grid_for("cross", (2, 4, 5))
    query, key, value = qkv(1, 1, 40, 12)
    query[:], key[:] = 0, 0
    query[:, :, 7], key[:, :, 2] = 5, 5
    through([control], own, "cross", query, key, value, grid=grid)
    frames = [np.zeros((40, 50, 3), np.uint8)] * 4
    bright, same, dark, _ = (np.asarray(frame).astype(int) for frame in control.video(frames, (2,)))
    assert np.array_equal(bright, same) and bright[15, 25].sum() > 300
    assert dark.sum(-1).max() < 0.5 * bright.sum(-1).max()
    assert np.array_equal(bright, np.asarray(control.overlay(frames[0], (2,), frame=0)))


@pytest.mark.parametrize("arguments", [{"words": []}, {"words": ["red"], "by": ["block"]}])
def test_wrong_arguments(arguments):
    with pytest.raises(ValueError, match=r"give the words|kept apart by"):
        HeatMaps(**arguments)
    with pytest.raises(KeyError, match="maps were asked for"):
        HeatMaps(["red"])["blue"]


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((2, 12, 7), (2, 12, 1)),
        ((2, 4, 6, 8), (2, 1, 6, 8)),
        ((2, 5, 1, 6, 8), (2, 1, 1, 6, 8)),
        ((2, 5, 3, 6, 8), (2, 1, 3, 6, 8)),
        ((2, 3, 5, 6, 8, "frames first"), (2, 3, 1, 6, 8)),
        ((2, 3, 3, 6, 8, "frames first"), (2, 3, 1, 6, 8)),
    ],
)
def test_maps_are_laid_over_latents(shape, wanted):
    first, shape = "frames first" in shape, shape[:5]
    frames = 3 if len(shape) == 5 and 3 in shape[1:3] else 1
    maps_ = torch.rand(2, frames, 12 // frames // 4 if len(shape) == 3 else 3, 4)
    laid = on_latents(maps_, torch.zeros(shape), first)
    assert tuple(laid.shape) == wanted and (torch.zeros(shape) * laid).shape == torch.Size(shape)


def test_unknown_latents_are_refused():
    with pytest.raises(ValueError, match="cannot be laid over"):
        on_latents(torch.rand(2, 1, 3, 4), torch.zeros(2, 13, 7))


def test_frames_are_held_or_left_out():
    maps_ = torch.arange(3.0).view(1, 1, 3, 1, 1).expand(1, 1, 3, 2, 2)
    assert resize(maps_, (6, 2, 2))[0, 0, :, 0, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert resize(maps_, (1, 2, 2))[0, 0, :, 0, 0].tolist() == [0]


def blend_of(control, own, query, key, value, latents, step=5, kind="cross"):
    """The latents after one call of attention and one step."""
    through([control], own, kind, query, key, value, grid=grid_for(kind, (1, 4, 5)))
    own.step = step
    return control.stepped(latents)


def naive_mask(p, tokens, threshold, pool):
    """Sum over tokens, mean over heads, pooled, over its largest value."""
    found = p[..., tokens].sum(-1).mean(0).view(1, 1, 4, 5)
    found = torch.nn.functional.max_pool2d(found, 3, 1, 1) if pool else found
    return (found / found.max() > threshold)[0, 0]


def test_outside_of_the_words_the_source_stays():
    prompts = ("a red circle", "a red square")
    query, key, value = qkv(2, 2, 20, 12)
    query *= 5  # maps with peaks
    latents = torch.randn(2, 4, 8, 10, dtype=torch.float64)
    control = LocalBlend(["circle", ["square", "red"]], subtract=["red", "a"], threshold=(0.85, 0.7))
    blended = blend_of(control, stage(*prompts), query, key, value, latents)
    p = maps(query, key)
    mask = naive_mask(p[0], [3], 0.85, True) | naive_mask(p[1], [2, 3], 0.85, True)
    kept = [naive_mask(p[0], [2], 0.7, False), naive_mask(p[1], [1], 0.7, False)]
    assert (mask & kept[0] & ~kept[1]).any() and (mask & kept[1] & ~kept[0]).any()
    mask = mask & ~kept[0] & ~kept[1]
    mask = mask.repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert 0.05 < mask.double().mean() < 0.95
    wanted = torch.where(mask, latents[1], latents[0])
    assert torch.equal(blended[1], wanted) and torch.equal(blended[0], latents[0])


@pytest.mark.parametrize("kind", ["cross", "joint"])
def test_one_threshold_and_nothing_subtracted(kind):
    grid = grid_for(kind, (1, 4, 5))
    query, key, value = qkv(2, 2, grid.tokens, 12 if kind == "cross" else grid.tokens)
    query *= 5  # maps with peaks
    latents = torch.randn(2, 4, 8, 10, dtype=torch.float64)
    own = stage("a red circle", "a red square")
    blended = blend_of(LocalBlend(["circle", "square"], threshold=0.6), own, query, key, value, latents, kind=kind)
    looks = maps(query, key)[:, :, grid.text_before :]
    mask = naive_mask(looks[0], [3], 0.6, True) | naive_mask(looks[1], [3], 0.6, True)
    mask = mask.repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert 0.05 < mask.double().mean() < 0.95
    assert torch.equal(blended[1], torch.where(mask, latents[1], latents[0])) and torch.equal(blended[0], latents[0])


def test_blending_begins_later():
    query, key, value = qkv(2, 2, 20, 12)
    latents = torch.randn(2, 4, 8, 10)
    own = stage("a red circle", "a red square")
    assert torch.equal(blend_of(LocalBlend(["circle", "square"]), own, query, key, value, latents, step=1), latents)


def test_words_for_every_prompt_are_wanted():
    query, key, value = qkv(2, 2, 20, 12)
    with pytest.raises(ValueError, match="words for 1 prompts, but the call has 2"):
        through([LocalBlend(["circle"])], stage("a red circle", "a red square"), "cross", query, key, value)
    with pytest.raises(ValueError, match="a number in"):
        LocalBlend(["circle"], threshold=1.3)


def test_only_the_level_nearest_to_its_size_counts():
    control, own = LocalBlend(["circle", "square"]), stage("a red circle", "a red square")
    own.levels = tuple(grid_for("cross", (1, side, side)) for side in (32, 16, 8))
    control._stage = own
    seen = []
    for grid in own.levels:
        from dattn.control import Place

        place = Place("cross", "attn", 0, 1, 0, 10, grid, slice(0, 12), slice(0, grid.visual))
        seen.append(control.acts(place))
    assert seen == [False, True, False]
    assert Replace().acts(place)


def test_frames_that_are_samples_become_frames():
    query, key, value = qkv(6, 2, 20, 12)
    control, own = HeatMaps(["red"]), stage("a red circle", "a red square")
    own.batch = own.samples = 2
    through([control], own, "cross", query, key, value)
    assert control["red"].shape == (2, 3, 4, 5)
    wanted = maps(query, key)[..., 2].mean(1).view(2, 3, 4, 5)
    assert (control["red"] - wanted).abs().max() < 1e-6


def test_one_of_several_samples_has_no_map():
    query, key, value = qkv(1, 2, 20, 12)
    control, own = HeatMaps(["red"]), stage("a red circle", "a red square")
    own.batch = own.samples = 2
    with pytest.raises(ValueError, match="each sample by itself"):
        through([control], own, "cross", query, key, value)
