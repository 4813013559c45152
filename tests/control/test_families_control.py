"""Controls reach the text of every family, and nothing else: layers, keys, guidance branches, and no trace left."""

from functools import cache
from types import SimpleNamespace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

import dattn
from dattn.control import Control, Reweight
from dattn.control.stage import Stage
from tests.families import FAMILIES

LAYERS = {
    "wan-vace": 5,
    "unet": 7,
    "unet-xl": 11,
    "unet-ip_adapter": 7,
    "unet-controlnet": 3,
    "unet-motion": 7,
    "unet-svd": 7,
    "unet-3d": 7,
    "unet-i2vgen": 7,
    "flux2-kv-edit": 0,
    "z_image": 2,
    "z_image-omni": 2,
    "ltx2": 2,
    "ltx2-conditioned": 2,
    "wan_animate": 4,
    "sana_video": 2,
    "lumina2": 2,
    "sana": 2,
    "hunyuan_dit": 4,
    "latte": 2,
}
"""Blocks in which the picture sees the prompt; three in the other families."""
SEEN = {"cogview-masked": 6, "cogview-training": 6}
"""A token of the text that is no padding; 0 in the other families."""
EXPERTS = ("hidream",)
"""Families that compute samples together, so that one changes the rounding of another."""
KEPT = "flux2-kv-edit"
"""Its keys of pictures are kept from step to step, and it is left alone."""


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(params=[name for name in FAMILIES if name != KEPT])
def controllable(request):
    return FAMILIES[request.param]


def inputs_of(family, batch=1, seed=0):
    """With as much text as Wan's models take for granted where there is a picture's too."""
    inputs = family.inputs(batch, seed)
    if "encoder_hidden_states_image" in inputs:
        generator = torch.Generator().manual_seed(seed)
        inputs["encoder_hidden_states"] = torch.randn(batch, 512, 10, generator=generator)
    return inputs


def run(family, model, batch=1, **changes):
    torch.manual_seed(0)
    with torch.no_grad():
        return family.call(model, inputs_of(family, batch) | changes)


@cache
def made(name):
    """A model, and its output for one sample and for two."""
    model = FAMILIES[name].model()
    return model, {batch: run(FAMILIES[name], model, batch) for batch in (1, 2)}


def processors(model):
    return {name: module.processor for name, module in model.named_modules() if hasattr(module, "processor")}


class Looks(Control):
    """Notes where it acts, and what the keys are."""

    def __init__(self):
        self.seen = []

    def acts(self, place):
        return place.kind != "self"

    def edit(self, call):
        self.seen.append((call.place, call.key, call.rows))
        return call.attend()


class Fails(Control):
    """Raises at the second layer that sees the prompt."""

    def acts(self, place):
        return place.kind != "self"

    def edit(self, call):
        if call.place.index > 0:
            raise KeyboardInterrupt
        return call.attend()


def test_every_layer_that_sees_the_prompt_is_found(family):
    model, stock = made(family.name)
    looks = Looks()
    with dattn.apply(model, control=looks):
        assert torch.equal(run(family, model), stock[1])
    assert len(looks.seen) == len({place.name for place, _, _ in looks.seen}) == LAYERS.get(family.name, 3)
    counts = {place.text.stop - place.text.start for place, _, _ in looks.seen}
    assert len(counts) <= 1 and 0 not in counts


def louder(inputs, token):
    """The inputs with one token of the text changed."""
    name = next(n for n in ("encoder_hidden_states", "encoder_hidden_states_t5", "cap_feats") if n in inputs)
    text = inputs[name]
    while not isinstance(text, torch.Tensor):
        text = text[0]
    (text[0] if text.ndim == 3 else text)[token] *= -1
    return inputs


@pytest.mark.parametrize("batch", [1, 2])
def test_the_keys_of_the_text_are_those_that_follow_it(controllable, batch):
    family, token = controllable, SEEN.get(controllable.name, 0)
    model, _ = made(family.name)
    keys = []
    for change in (lambda inputs, _: inputs, louder):
        looks = Looks()
        with dattn.apply(model, control=looks):
            run(family, model, batch, **change(inputs_of(family, batch), token))
        keys.append(looks.seen[0][1][:1])
    change = (keys[1] - keys[0]).square().sum((0, 1, 3))
    assert change.argmax() == looks.seen[0][0].text.start + token


def test_a_factor_acts_and_leaves_no_trace(controllable):
    family = controllable
    model, stock = made(family.name)
    before, token = processors(model), SEEN.get(family.name, 0)
    with dattn.apply(model, control=Reweight({token: 1.0})):
        assert torch.equal(run(family, model), stock[1])
    handle = dattn.apply(model, control=Reweight({token: 0.0}))
    edited = run(family, model)
    assert (edited - stock[1]).abs().max() > 1e-3 * stock[1].abs().max()
    with pytest.raises(KeyboardInterrupt), Fails().on(model):
        run(family, model)
    assert torch.equal(run(family, model), edited)
    handle.remove()
    after = processors(model)
    assert before.keys() == after.keys() and all(before[name] is after[name] for name in before)
    assert torch.equal(run(family, model), stock[1])
    assert not model._forward_hooks and not model._forward_pre_hooks


class Guided:
    """The part of a pipeline that makes so many pictures, guided without a classifier."""

    do_classifier_free_guidance = True

    def __init__(self, **models):
        self.scheduler = FlowMatchEulerDiscreteScheduler()
        vars(self).update(models)

    def check_inputs(self):
        pass

    def prepare_latents(self, samples):
        return torch.zeros(samples, 1)


class ZImageGuided(Guided):
    """Z-Image's put samples that follow the prompt first."""


def test_only_the_samples_that_follow_the_prompt_change(controllable):
    family = controllable
    model, stock = made(family.name)
    positive, other = (0, 1) if family.name.startswith("z_image") else (1, 0)
    pipe = (ZImageGuided if positive == 0 else Guided)(transformer=model)
    with dattn.apply(pipe, control=Reweight({SEEN.get(family.name, 0): 0.0})):
        pipe.prepare_latents(1)
        out = run(family, model, 2)
    if family.name in EXPERTS:
        torch.testing.assert_close(out[other], stock[2][other])
    else:
        assert torch.equal(out[other], stock[2][other])
    assert (out[positive] - stock[2][positive]).abs().max() > 5e-4 * stock[2].abs().max()


def test_branches_that_are_passes_of_their_own():
    family = FAMILIES["wan"]
    model, stock = made("wan")
    pipe = Guided(transformer=model)
    with dattn.apply(pipe, control=Reweight({0: 0.0})):
        pipe.prepare_latents(2)
        pipe.scheduler.set_timesteps(2)
        for time in pipe.scheduler.timesteps:
            cond, uncond = run(family, model, 2), run(family, model, 2)
            assert not torch.equal(cond, stock[2]) and torch.equal(uncond, stock[2])
            pipe.scheduler.step(cond, time, cond)
        for _ in range(3):  # outside of a call
            assert torch.equal(run(family, model, 2), cond)


def staged(pipeline, *prompts, samples=0, batch=0, branch="", passes=1, **options):
    own = Stage(lambda: pipeline, **options)
    own.prompts, own.samples, own.batch, own.branch, own.passes = prompts, samples, batch, branch, passes
    return own


GUIDES, PLAIN, SILENT = (
    SimpleNamespace(**flag)
    for flag in ({"do_classifier_free_guidance": True}, {"do_classifier_free_guidance": False}, {})
)


@pytest.mark.parametrize(
    ("pipeline", "told", "calls"),
    [
        (GUIDES, {"samples": 2, "batch": 4}, {4: (2, 4), 12: (6, 12)}),  # the second of frames as samples
        (GUIDES, {"samples": 2, "batch": 2}, {2: (0, 2)}),
        (GUIDES, {"samples": 2, "batch": 2, "passes": 2}, {2: (0, 0)}),
        (SILENT, {"samples": 2, "batch": 2, "passes": 2}, {2: (0, 0)}),  # Flux' true guidance
        (SILENT, {"samples": 2, "batch": 4}, {4: (2, 4)}),  # AuraFlow
        (PLAIN, {"samples": 2, "batch": 2, "passes": 2}, {2: (0, 2)}),  # a panorama, view by view
        (GUIDES, {"samples": 2, "batch": 6}, {6: (2, 6), 4: (2, 4)}),  # perturbed: a layer without those it replaces
        (PLAIN, {"samples": 2, "batch": 4}, {4: (0, 4)}),
        (GUIDES, {"samples": 2, "batch": 2, "branch": "uncond"}, {2: (0, 0)}),
        (GUIDES, {"samples": 2, "batch": 2, "branch": "pred_uncond"}, {2: (0, 0)}),
        (GUIDES, {"samples": 2, "batch": 2, "branch": "pred_cond", "passes": 2}, {2: (0, 2)}),
        (GUIDES, {"samples": 2, "batch": 2, "branch": "uncond_stg", "passes": 2}, {2: (0, 2)}),  # LTX-2
        (SILENT, {"samples": 2, "batch": 4, "branch": "cond_uncond"}, {4: (2, 4)}),
        (SILENT, {"samples": 2, "batch": 2, "branch": "cond_uncond"}, {2: (0, 2)}),  # CogVideoX without guidance
        (GUIDES, {"positive_first": ("Simple",), "samples": 2, "batch": 4}, {4: (0, 2)}),
        (GUIDES, {"positive_first": ("Simple",), "samples": 2, "batch": 6}, {6: (0, 2)}),  # InstructPix2Pix
        (GUIDES, {}, {4: (2, 4), 3: (0, 3)}),  # nothing is known
        (None, {}, {4: (0, 4)}),
        (None, {"branch": "cond_uncond"}, {4: (2, 4)}),
    ],
)
def test_samples_that_follow_the_prompt(pipeline, told, calls):
    own = staged(pipeline, **told)
    for batch, (first, last) in calls.items():
        assert own.rows(batch) == slice(first, last)


@pytest.mark.parametrize(
    ("told", "rows", "numbers"),
    [
        ({"samples": 4, "batch": 8}, slice(4, 8), [0, 0, 1, 1]),
        ({"samples": 2, "batch": 4}, slice(6, 12), [0, 0, 0, 1, 1, 1]),
        ({"samples": 2, "batch": 6}, slice(2, 6), [0, 1, 0, 1]),
        ({"samples": 2, "batch": 6}, slice(2, 4), [0, 1]),
        ({"samples": 2, "batch": 2}, slice(0, 2), [0, 1]),
        ({}, slice(2, 4), [0, 1]),
    ],
)
def test_every_sample_has_its_prompt(told, rows, numbers):
    own = staged(GUIDES, "a cat", "a dog", **told)
    assert own.prompt_of(rows) == list(zip(range(rows.start, rows.stop), numbers, strict=True))


def test_a_call_for_one_sample_of_a_batch():
    own = staged(GUIDES, "a cat", "a dog", samples=2, batch=4)
    found = []
    for own.sample in range(4):
        rows = own.rows(1)
        found.append(own.prompt_of(rows) if rows.stop else None)
    assert found == [None, None, [(0, 0)], [(0, 1)]]


@pytest.mark.parametrize("name", ["mochi", "lumina2", "z_image", "hunyuan_image-glyphs", "hunyuan_video15"])
def test_samples_whose_texts_differ_are_edited_one_by_one(name):
    """Two prompts in one batch give what each of them gives alone."""
    from tests.tiny_models import sample

    family = FAMILIES[name]
    model, _ = made(name)
    pair = inputs_of(family, 2)
    with dattn.apply(model, control=Reweight({(0, 1): 3.0})), torch.no_grad():
        both = family.call(model, pair)
        for row in (0, 1):
            alone = family.call(model, sample(pair, row))
            torch.testing.assert_close(both[row : row + 1], alone, atol=1e-4, rtol=1e-3)
