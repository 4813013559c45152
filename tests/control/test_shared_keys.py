"""SharedKeys equals one softmax over own and shared keys, each weighed as it says."""

import pytest
import torch

import dattn
from dattn.control.key_bank import KeyBank
from dattn.control.shared_keys import SharedKeys
from tests.families.unet import FAMILIES

from .stages import WIDTH, grid_for, maps, qkv, stage, through

PATTERNS = (None, dattn.Neighborhood((1, 3, 3)), dattn.Radial(block_size=16, sink=False))
TWO = "a red circle", "a blue square"
VIDEO = (6, 4, 4)


def weighed(query, key, value, weights):
    """Attention in which pairs count ``weights`` [batch or 1, 1, queries, keys] times."""
    p = (query @ key.mT * WIDTH**-0.5 + weights.log()).softmax(-1)
    return p @ value


def allowed_on(pattern, grid):
    allowed = torch.ones(grid.tokens, grid.tokens).bool() if pattern is None else pattern.allowed(grid)
    return allowed.to(torch.float64)


def of_videos(count, *prompts, **options):
    """A stage of a model that was given so many videos."""
    own = stage(*prompts, **options)
    own.batch = count
    return own


def of_frames(frames, grid):
    """1 for keys in these frames."""
    source = torch.zeros(grid.tokens, dtype=torch.float64)
    size = grid.height * grid.width
    for frame in frames:
        source[grid.text_before + frame * size :][:size] = 1
    return source


@pytest.mark.parametrize("strength", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind", ["self", "joint"])
def test_frames_of_a_sequence(kind, pattern, strength):
    grid = grid_for(kind, VIDEO)
    query, key, value = qkv(2, 2, grid.tokens, grid.tokens)
    control = SharedKeys("keyframes", strength, keyframes=(1, -1))
    output = through([control], stage(), kind, query, key, value, pattern, grid)
    weights = torch.maximum(allowed_on(pattern, grid), strength * of_frames((1, 5), grid))
    assert (output - weighed(query, key, value, weights)).abs().max() < 1e-12
    changes = pattern is not None or strength > 1
    plain = weighed(query, key, value, allowed_on(pattern, grid))
    assert ((output - plain).abs().max() > 1e-3) == changes


def test_the_first_frame_is_the_default():
    grid, pattern = grid_for("self", VIDEO), PATTERNS[1]
    query, key, value = qkv(1, 2, grid.tokens, grid.tokens)
    output = through([SharedKeys()], stage(), "self", query, key, value, pattern, grid)
    weights = torch.maximum(allowed_on(pattern, grid), of_frames((0,), grid))
    assert (output - weighed(query, key, value, weights)).abs().max() < 1e-12


def test_keys_that_the_model_hides_stay_hidden():
    grid = grid_for("self", VIDEO)
    query, key, value = qkv(2, 2, grid.tokens, grid.tokens)
    mask = torch.ones(2, 1, 1, grid.tokens).bool()
    mask[1, ..., [2, 14]] = False
    output = through([SharedKeys(strength=3)], stage(), "self", query, key, value, grid=grid, mask=mask)
    weights = torch.maximum(torch.ones(1).double(), 3 * of_frames((0,), grid)) * mask
    assert (output - weighed(query, key, value, weights)).abs().max() < 1e-12


@pytest.mark.parametrize("strength", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("pattern", [None, dattn.Neighborhood((None, 3, 3))])
def test_frames_that_are_samples(pattern, strength):
    """Two videos of three frames, each frame a sample, as in AnimateDiff."""
    grid = grid_for("self", (1, 3, 4))
    query, key, value = qkv(6, 2, 12, 12)
    control = SharedKeys("keyframes", strength, keyframes=(0, 2))
    output = through([control], of_videos(2), "self", query, key, value, pattern, grid)
    frame = torch.arange(36) // 12
    for sample in range(6):
        video = slice(sample // 3 * 3, sample // 3 * 3 + 3)
        keys, values = (t[video].transpose(0, 1).flatten(1, 2) for t in (key, value))
        own = (frame == sample % 3) * allowed_on(pattern, grid).repeat(1, 3)
        weights = torch.maximum(own, strength * (frame != 1).double())
        assert (output[sample] - weighed(query[sample], keys, values, weights)).abs().max() < 1e-12


@pytest.mark.parametrize("strength", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind", ["self", "joint"])
def test_another_prompt_of_the_same_branch(kind, pattern, strength):
    grid = grid_for(kind, VIDEO)
    query, key, value = qkv(8, 2, grid.tokens, grid.tokens)
    control = SharedKeys("batch_item", strength, item=1)
    output = through([control], stage(*TWO, halves=True), kind, query, key, value, pattern, grid)
    plain = weighed(query, key, value, allowed_on(pattern, grid))
    sources = [2, 3, 2, 3, 6, 7, 6, 7]
    keys, values = (torch.cat([t, t[sources]], 2) for t in (key, value))
    allowed = allowed_on(pattern, grid)
    wanted = weighed(query, keys, values, torch.cat([allowed, strength * allowed], 1))
    assert (output - wanted).abs().max() < 1e-12
    assert (output - plain)[[2, 3, 6, 7]].abs().max() < 1e-12
    assert ((output - plain)[[0, 1, 4, 5]].abs().amax((1, 2, 3)) > 1e-3).all()


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind", ["self", "joint"])
def test_only_another_prompt(kind, pattern):
    grid = grid_for(kind, VIDEO)
    query, key, value = qkv(4, 2, grid.tokens, grid.tokens)
    own = stage(*TWO, halves=True)
    output = through([SharedKeys("batch_item", replace=True)], own, kind, query, key, value, pattern, grid)
    wanted = weighed(query, key[[0, 0, 2, 2]], value[[0, 0, 2, 2]], allowed_on(pattern, grid))
    assert (output - wanted).abs().max() < 1e-12


def test_another_prompt_whose_frames_are_samples():
    """Two prompts, two branches, three frames each."""
    query, key, value = qkv(12, 2, 20, 20)
    own = of_videos(4, *TWO, halves=True)
    output = through([SharedKeys("batch_item", item=1, replace=True)], own, "self", query, key, value)
    sources = [3, 4, 5, 3, 4, 5, 9, 10, 11, 9, 10, 11]
    assert (output - maps(query, key[sources]) @ value[sources]).abs().max() < 1e-12


def test_three_branches():
    """As guiders that perturb run them: unconditional, conditional, perturbed."""
    query, key, value = qkv(6, 2, 20, 20)
    own = of_videos(6, *TWO, halves=True)
    own.samples = 2
    output = through([SharedKeys("batch_item", replace=True)], own, "self", query, key, value)
    sources = [0, 0, 2, 2, 4, 4]
    assert (output - maps(query, key[sources]) @ value[sources]).abs().max() < 1e-12


@pytest.mark.parametrize("branch", ["cond", "uncond"])
def test_branches_one_after_the_other(branch):
    grid = grid_for("self", VIDEO)
    query, key, value = qkv(2, 2, grid.tokens, grid.tokens)
    own = stage(*TWO)
    own.branch = branch
    output = through([SharedKeys("batch_item", replace=True)], own, "self", query, key, value, None, grid)
    assert (output - maps(query, key[[0, 0]]) @ value[[0, 0]]).abs().max() < 1e-12


def test_pictures_of_one_prompt_see_one_of_them():
    query, key, value = qkv(3, 2, 20, 20)
    control = SharedKeys("batch_item", item=2, replace=True)
    output = through([control], stage("a red circle"), "self", query, key, value)
    assert (output - maps(query, key[[2, 2, 2]]) @ value[[2, 2, 2]]).abs().max() < 1e-12


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind", ["self", "joint"])
def test_windows_see_kept_frames(kind, pattern):
    grid = grid_for(kind, VIDEO)
    windows = [qkv(2, 2, grid.tokens, grid.tokens, seed) for seed in range(3)]
    bank = KeyBank((0, -1))
    control = SharedKeys("previous_window", 0.5, bank=bank)
    run = lambda i: through([control], stage(), kind, *windows[i], pattern, grid)
    allowed = allowed_on(pattern, grid)
    with bank.window("a"):
        assert (run(0) - weighed(*windows[0], allowed)).abs().max() < 1e-12
    with bank.window("b"):
        run(1)
    with bank.window("c", sees=["a", "b"]):
        output = run(2)
    frames = of_frames((0, 5), grid).bool()
    keys, values = (torch.cat([windows[2][i], *(windows[w][i][:, :, frames] for w in (0, 1))], 2) for i in (1, 2))
    weights = torch.cat([allowed, torch.full((grid.tokens, 64), 0.5)], 1)
    assert (output - weighed(windows[2][0], keys, values, weights)).abs().max() < 1e-12
    assert (run(2) - weighed(*windows[2], allowed)).abs().max() < 1e-12  # outside of a window: nothing is seen
    assert bank.held() == 3 * 2 * 2 * 2 * 32 * WIDTH * 8
    bank.forget("a")
    assert bank.held() == 2 * 2 * 2 * 2 * 32 * WIDTH * 8
    bank.forget()
    assert bank.held() == 0


def test_windows_whose_frames_are_samples():
    grid = grid_for("self", (1, 3, 4))
    first, second = qkv(6, 2, 12, 12, 0), qkv(6, 2, 12, 12, 1)
    control = SharedKeys("previous_window")
    with control.bank.window("a"):
        through([control], of_videos(2), "self", *first, grid=grid)
    with control.bank.window("b", sees="a"):
        output = through([control], of_videos(2), "self", *second, grid=grid)
    last = [2, 2, 2, 5, 5, 5]
    keys, values = (torch.cat([second[i], first[i][last]], 2) for i in (1, 2))
    assert (output - maps(second[0], keys) @ values).abs().max() < 1e-12


def test_what_a_window_does_not_know():
    grid = grid_for("self", VIDEO)
    control = SharedKeys("previous_window")
    run = lambda batch, **options: through(
        [control], stage(**options), "self", *qkv(batch, 2, grid.tokens, grid.tokens), grid=grid
    )
    with pytest.raises(ValueError, match="run those windows first"), control.bank.window("b", sees="a"):
        pass
    with control.bank.window("a"):
        run(2)
    with control.bank.window("b", sees="a"):
        with pytest.raises(ValueError, match="kept nothing at attn, step 3"):
            run(2, step=3)
        with pytest.raises(ValueError, match="had 2 videos, this one 3"):
            run(3)


@pytest.mark.parametrize(("step", "index"), [(1, 1), (5, 1), (3, 0)])
def test_only_in_its_window_and_layers(step, index):
    grid, pattern = grid_for("self", VIDEO), PATTERNS[1]
    query, key, value = qkv(1, 2, grid.tokens, grid.tokens)
    control = SharedKeys(window=(0.2, 0.5), layers=[1])
    run = lambda **at: through(
        [control], stage(step=at["step"]), "self", query, key, value, pattern, grid, at["index"], 2
    )
    plain = weighed(query, key, value, allowed_on(pattern, grid))
    assert (run(step=3, index=1) - plain).abs().max() > 1e-3
    assert (run(step=step, index=index) - plain).abs().max() < 1e-12


def test_strength_0_is_off():
    place = dattn.control.Place("self", "attn", 0, 1, 0, 1, grid_for("self", VIDEO), slice(0, 0), slice(0, 96))
    assert not SharedKeys(strength=0).acts(place) and SharedKeys(strength=0.1).acts(place)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "last_frame"}, "choose first_frame"),
        ({"strength": -1}, "strength=-1"),
        ({"strength": float("inf")}, "strength=inf"),
        ({"source": "keyframes"}, "keyframes=None"),
        ({"keyframes": [1]}, "keyframes=\\[1\\]"),
        ({"replace": True}, "replace=True"),
        ({"source": "batch_item", "replace": True, "strength": 2}, "replace=True"),
        ({"source": "batch_item", "item": -1}, "item=-1"),
        ({"window": 2}, "shares of the denoising steps"),
        ({"layers": [-1]}, "numbers of layers"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        SharedKeys(**options)
    with pytest.raises(ValueError, match="say which frames"):
        KeyBank(())


@pytest.mark.parametrize(
    ("options", "prompts", "shape", "message"),
    [
        ({"source": "keyframes", "keyframes": [6]}, (), VIDEO, "there are 6 latent frames"),
        ({}, (), (1, 4, 5), "one frame"),
        ({"source": "batch_item"}, TWO[:1], VIDEO, "call with two or more"),
        ({"source": "batch_item", "item": 2}, TWO, VIDEO, "item=2: 2 prompts run together"),
    ],
)
def test_calls_that_do_not_fit(options, prompts, shape, message):
    grid = grid_for("self", shape)
    query, key, value = qkv(max(1, len(prompts)), 2, grid.tokens, grid.tokens)
    with pytest.raises(ValueError, match=message):
        through([SharedKeys(**options)], stage(*prompts), "self", query, key, value, None, grid)


def test_animatediff(monkeypatch):
    """In a model whose frames are samples, against its own attention over own keys and the first frame's."""
    family = next(f for f in FAMILIES if f.name == "unet-motion")
    model = family.model().double()
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in family.inputs(batch=2).items()}
    run = lambda: model(**inputs, return_dict=False)[0]
    frames, seen = 6, {grid.tokens for grid in family.grids}
    with torch.no_grad():
        plain = run()
        with SharedKeys("first_frame").on(model):
            output = run()
        attend = torch.nn.functional.scaled_dot_product_attention

        def naive(query, key, value, *more, **rest):
            if query.shape[2] == key.shape[2] and key.shape[2] in seen:
                first = torch.arange(len(key)) // frames * frames
                added = (torch.arange(len(key)) != first)[:, None, None, None].expand(-1, 1, 1, key.shape[2])
                mask = torch.cat([torch.ones_like(added), added], -1)
                key, value = (torch.cat([tensor, tensor[first]], 2) for tensor in (key, value))
                return attend(query, key, value, mask)
            return attend(query, key, value, *more, **rest)

        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", naive)
        wanted = run()
    assert (output - wanted).abs().max() < 1e-11 * plain.abs().max()
    assert (output - plain).abs().max() > 1e-3 * plain.abs().max()
