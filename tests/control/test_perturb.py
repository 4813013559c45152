"""Perturb equals two passes written by hand, for maps, model families, backends and kinds of guidance."""

from contextlib import contextmanager
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.hooks import FirstBlockCacheConfig
from diffusers.models.attention_dispatch import attention_backend
from torch.nn.attention import flex_attention

import dattn
from dattn.control import merging
from dattn.control.perturb import KINDS, Perturb
from tests.families import FAMILIES
from tests.tiny_models import Pipeline

from .stages import grid_for, maps, qkv, stage, through

MAIN = ("unet", "wan", "cogvideox", "flux", "sd3", "ltx", "hunyuan_video", "qwen_image")
SPARSE = dattn.Radial(block_size=16, decay=0.3, sink=False)
NO_GRID = [name for name, family in FAMILIES.items() if not family.grids]


def masked(logits, mask):
    """Logits with what a model's mask says."""
    if mask is None:
        return logits
    return logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask


def other_map(kind, query, key, mask, scale, visual):
    """The map that attention fades to, [batch, heads, queries, keys]."""
    logits = query @ key.mT * scale
    if kind == "identity":
        return torch.eye(key.shape[2], dtype=query.dtype).expand_as(logits)
    if kind == "uniform":
        return masked(torch.zeros_like(logits), mask).softmax(-1)
    if kind == "argmax":
        return F.one_hot(masked(logits, mask).argmax(-1), key.shape[2]).to(query.dtype)
    return masked(logits[:, :, visual].mean(2, keepdim=True).expand_as(logits), mask).softmax(-1)


def naive(p, other, strength, heads, rows):
    """The map of the second pass."""
    worse = p.clone()
    worse[:, heads, rows] = (1 - strength) * p[:, heads, rows] + strength * other[:, heads, rows]
    return worse


def second_pass(control, own, *args, **options):
    """Attention in the pass in which a control perturbs it."""
    seen = []

    def again():
        seen.append(through([control], own, *args, **options))
        return torch.zeros(2)

    control._stage = own
    control.guided(torch.zeros(2), again)
    return seen[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pattern", [None, dattn.Neighborhood((None, 3, 3)), SPARSE])
@pytest.mark.parametrize(("place", "spare"), [("self", True), ("joint", True), ("joint", False)])
def test_the_map_fades_to_another(place, spare, pattern, kind):
    grid = grid_for(place, (9, 4, 4))
    query, key, value = qkv(2, 3, grid.tokens, grid.tokens)
    allowed = None if pattern is None else pattern.fit(grid)[0].allowed(grid)
    assert pattern is None or not allowed.all()
    p = maps(query, key, allowed)
    visual = slice(12, None) if place == "joint" else slice(None)
    other = other_map(kind, query, key, None, 8**-0.5, visual)
    control = Perturb(kind, 0.7, heads=[2, 0], spare_text=spare)
    wanted = naive(p, other, 0.7, [0, 2], visual if spare else slice(None)) @ value
    output = second_pass(control, stage("a cat"), place, query, key, value, pattern, grid)
    assert (output - wanted).abs().max() < 1e-12
    changed = (output - p @ value).abs().amax((0, 3)) > 1e-6
    assert changed[[0, 2]][:, visual].float().mean() > 0.9  # a sharp map has its largest key already
    assert not changed[1].any()
    assert changed[[0, 2], :12].any() == (place == "self" or not spare)


@pytest.mark.parametrize("kind", ["uniform", "mean_query", "argmax"])
@pytest.mark.parametrize("shape", [(2, 1, 1, 32), (1, 3, 32, 32), (2, 1, 32, 32)])
@pytest.mark.parametrize("added", [False, True])
def test_masks_are_respected(kind, shape, added):
    query, key, value = qkv(2, 3, 32, 32)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.4
    mask = (~mask).to(query.dtype) * -2.5 if added else mask
    other = other_map(kind, query, key, mask, 8**-0.5, slice(12, None))
    p = masked(query @ key.mT * 8**-0.5, mask).softmax(-1)
    wanted = naive(p, other, 0.4, [1, 2], slice(12, None)) @ value
    control = Perturb(kind, 0.4, heads=[1, 2])
    output = second_pass(control, stage("a cat"), "joint", query, key, value, mask=mask)
    assert (output - wanted).abs().max() < 1e-12


def test_the_largest_key_is_found_a_few_rows_at_a_time(monkeypatch):
    query, key, value = qkv(1, 2, 20, 20)
    whole = second_pass(Perturb("argmax"), stage("a cat"), "self", query, key, value)
    monkeypatch.setattr(merging, "PAIRS_AT_ONCE", 120)
    assert [part.shape[2] for part in merging.logits_in_parts(query, key, 1.0, None)] == [3] * 6 + [2]
    assert torch.equal(second_pass(Perturb("argmax"), stage("a cat"), "self", query, key, value), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_attention_of_which_nothing_is_left_is_not_computed(kind):
    query, key, value = qkv(2, 3, 32, 32)
    with mock.patch.object(F, "scaled_dot_product_attention", side_effect=ZeroDivisionError):
        output = second_pass(Perturb(kind, spare_text=False), stage("a cat"), "joint", query, key, value)
        for some in (Perturb(kind), Perturb(kind, 0.9, spare_text=False), Perturb(kind, heads=[0], spare_text=False)):
            with pytest.raises(ZeroDivisionError):
                second_pass(some, stage("a cat"), "joint", query, key, value)
    other = other_map(kind, query, key, None, 8**-0.5, slice(12, None))
    assert (output - other @ value).abs().max() < 1e-12


@contextmanager
def perturbed_sdpa(kind, strength, grids, heads=None):
    """Stock models in which the map of every self-attention or joint call on a grid fades to another."""
    plain = F.scaled_dot_product_attention

    def sdpa(query, key, value, attn_mask=None, *more, scale=None, **rest):
        lengths = {grid.tokens: grid for grid in grids}
        if len(grids) == 1:  # padded text may be left out
            lengths |= dict.fromkeys(range(grids[0].visual, grids[0].tokens), grids[0])
        grid = lengths.get(query.shape[2])
        if grid is None or key.shape[2] != query.shape[2]:
            return plain(query, key, value, attn_mask, *more, scale=scale, **rest)
        key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        rows = slice(grid.text_before, grid.text_before + grid.visual)
        p = masked(query @ key.mT * scale, attn_mask).softmax(-1).nan_to_num()  # 0 where a row sees nothing
        other = other_map(kind, query, key, attn_mask, scale, rows)
        return naive(p, other, strength, range(query.shape[1]) if heads is None else heads, rows) @ value

    with mock.patch.object(F, "scaled_dot_product_attention", sdpa):
        yield


def expected(family, model, kind, strength, scale, heads=None, batch=2):
    """Output and guided output of a stock model."""
    out = family.run(model, batch)
    with perturbed_sdpa(kind, strength, family.grids, heads):
        worse = family.run(model, batch)
    return out, out + scale * (out - worse)


def check_family(name, kind, backend="native"):
    family = FAMILIES[name]
    model = family.model()
    batch = 1 if name.startswith(("z_image", "lumina2")) else 2  # samples differ in where the picture is
    plain, wanted = expected(family, model, kind, 0.8, 2.0, [1], batch)
    with attention_backend(backend), dattn.apply(model, control=Perturb(kind, 0.8, 2.0, heads=[1])):
        output = family.run(model, batch)
    worst = (output - wanted).abs().max()
    assert worst < 1e-4 * wanted.abs().max()
    assert (wanted - plain).abs().max() > 1e-3 * plain.abs().max() > 10 * worst


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MAIN)
def test_every_family_is_guided(name, kind):
    check_family(name, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in (*MAIN, *NO_GRID)])
def test_every_other_family_is_guided(name, kind):
    check_family(name, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["wan", "flux", "ltx", "hunyuan_video", "qwen_image"])
def test_another_backend_of_diffusers_is_guided(name, kind):
    with mock.patch.object(flex_attention, "flex_attention", wraps=flex_attention.flex_attention) as ran:
        check_family(name, kind, "flex")
    assert ran.called


@pytest.mark.parametrize("name", NO_GRID)
def test_what_cannot_be_perturbed_says_so(name):
    family = FAMILIES[name]
    model = family.model()
    with dattn.apply(model, control=Perturb()), pytest.raises(ValueError, match="no self-attention or joint attention"):
        family.run(model)


def test_layers_and_heads_are_those_that_were_chosen():
    family = FAMILIES["wan"]
    model, outputs = family.model(), {}
    for name, choice in {
        "all": {},
        "layer": {"layers": [1]},
        "by name": {"layers": lambda name: "blocks.1." in name},
        "heads": {"layers": [1], "heads": [0, 1]},
        "pairs": {"heads": [(1, 0), (1, 1)]},
        "mapping": {"heads": {1: [1, 0]}},
        "one": {"heads": [(1, 0)]},
        "two": {"heads": {0: [1], 1: [0]}},
    }.items():
        with dattn.apply(model, control=Perturb(**choice)):
            outputs[name] = family.run(model)
    for same in ("by name", "heads", "pairs", "mapping"):
        assert torch.equal(outputs[same], outputs["layer"])
    different = [outputs[name] for name in ("all", "layer", "one", "two")]
    assert all((a - b).abs().max() > 1e-4 for i, a in enumerate(different) for b in different[:i])


@pytest.mark.parametrize("scale", [1.5, 7.0])
def test_batched_guidance_gains_the_difference_whatever_its_scale(scale):
    family = FAMILIES["unet"]
    model = family.model()
    pipe = Pipeline(FlowMatchEulerDiscreteScheduler(), family, unet=model)
    pipe.do_classifier_free_guidance = True
    out, all_guided = expected(family, model, "identity", 1.0, 2.0)
    (u, c), difference = out.chunk(2), (all_guided - out)[1:]
    with dattn.apply(pipe, control=Perturb(scale=2.0)):
        u2, c2 = family.run(model, 2).chunk(2)
    wanted = u + scale * (c - u) + difference
    torch.testing.assert_close(u2 + scale * (c2 - u2), wanted, atol=1e-4, rtol=1e-4)
    assert difference.abs().max() > 1e-2


def test_sequential_guidance_gains_the_difference_in_one_more_pass():
    family = FAMILIES["wan"]
    model = family.model()
    pipe = Pipeline(FlowMatchEulerDiscreteScheduler(), family, transformer=model)
    inputs, passes = family.inputs(), []
    plain = guided_by(pipe, model, inputs)
    out, guided = expected(family, model, "identity", 1.0, 2.0, batch=1)
    model.blocks[0].register_forward_pre_hook(lambda *_: passes.append(1))
    with dattn.apply(pipe, control=Perturb(scale=2.0)):
        output = guided_by(pipe, model, inputs)
    assert len(passes) == 3  # both branches, and one of them again
    torch.testing.assert_close(output, plain + guided - out, atol=1e-4, rtol=1e-4)
    assert (output - plain).abs().max() > 1e-2


def guided_by(pipe, model, inputs):
    with torch.no_grad():
        return pipe._guided(model, inputs)


def test_only_in_its_window():
    family = FAMILIES["wan"]
    model = family.model()
    pipe = Pipeline(FlowMatchEulerDiscreteScheduler(), family, transformer=model)
    passes = []
    with dattn.apply(pipe, control=Perturb(window=(0.25, 0.75))):
        model.blocks[0].register_forward_pre_hook(lambda *_: passes.append(pipe.scheduler.step_index))
        pipe(model, 4)
    assert [passes.count(step) for step in (None, 1, 2, 3)] == [2, 3, 3, 2]


def test_the_first_pass_keeps_its_state():
    family = FAMILIES["wan"]
    model = family.model()
    pipe = Pipeline(FlowMatchEulerDiscreteScheduler(), family, transformer=model)
    pattern = dattn.Reshaped(dattn.Neighborhood(3))
    with dattn.apply(pipe, pattern):
        plain = pipe(model)
    with dattn.apply(pipe, pattern, control=Perturb(scale=0.0)):
        assert torch.equal(pipe(model), plain)
    with dattn.apply(pipe, pattern, control=Perturb(scale=1.0)):
        assert (pipe(model) - plain).abs().max() > 1e-3


def test_a_cache_takes_neither_pass_for_the_other():
    family = FAMILIES["wan"]
    model = family.model()
    pipe = Pipeline(FlowMatchEulerDiscreteScheduler(), family, transformer=model)
    model.enable_cache(FirstBlockCacheConfig(threshold=1e3))
    outputs = []
    for control in ((), Perturb(scale=0.0), Perturb(scale=1.0)):
        with dattn.apply(pipe, control=control):
            outputs.append(pipe(model))
        model._reset_stateful_cache()
    assert torch.equal(outputs[0], outputs[1])
    assert (outputs[2] - outputs[0]).abs().max() > 1e-3


def test_the_second_pass_is_announced_as_another_branch_at_the_same_step():
    family = FAMILIES["wan"]
    model, told = family.model(), []

    @contextmanager
    def announce(name, **place):
        told.append((name, place))
        yield

    model.cache_context = announce
    with dattn.apply(model, control=Perturb()), model.cache_context("cond", step_index=3):
        family.run(model)
    assert told == [("cond", {"step_index": 3}), ("cond+again", {"step_index": 3})]


@pytest.mark.slow
def test_a_compiled_model_is_guided():
    family = FAMILIES["wan"]
    model, other = family.model(), family.model()
    with dattn.apply(model, control=Perturb()), dattn.apply(other, control=Perturb()):
        plain = family.run(model)
        compiled = torch.compile(other, backend="aot_eager")
        for _ in range(2):
            torch.testing.assert_close(family.run(compiled), plain, atol=1e-5, rtol=1e-5)


def test_an_unconditional_branch_that_comes_first_is_refused():
    family = FAMILIES["wan"]
    model = family.model()
    with dattn.apply(model, control=Perturb()), model.cache_context("uncond"):  # noqa: SIM117
        with pytest.raises(ValueError, match="the other way round"):
            family.run(model)


def test_a_call_of_one_step_knows_nothing_of_the_last():
    family = FAMILIES["wan"]
    model = family.model()
    with dattn.apply(model, control=Perturb()) as handle:
        for _ in range(2):
            handle.step(0, 1)
            with pytest.raises(ValueError, match="the other way round"), model.cache_context("uncond"):
                family.run(model)
            with model.cache_context("cond"):
                family.run(model)


def test_an_error_in_the_second_pass_leaves_the_first_as_it_was():
    family = FAMILIES["wan"]
    model = family.model()
    stock = family.run(model)
    with dattn.apply(model, control=Perturb(heads=[(0, 7)])) as handle:
        with pytest.raises(ValueError, match=r"head 7: layer 0, blocks.0.attn1, has 2 heads"):
            family.run(model)
        handle.drop(handle.controls[0])
        assert torch.equal(family.run(model), stock)
    assert torch.equal(family.run(model), stock)


@pytest.mark.parametrize("choice", [{"layers": [0, 9]}, {"heads": [(9, 0)]}, {"layers": lambda name: False}])
def test_layers_that_are_not_there(choice):
    family = FAMILIES["wan"]
    model = family.model()
    with dattn.apply(model, control=Perturb(**choice)), pytest.raises(ValueError, match="the model has no"):
        family.run(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "blur"}, "choose identity, uniform, mean_query, argmax"),
        ({"strength": 1.1}, "give a number between"),
        ({"strength": True}, "give a number between"),
        ({"scale": -1.0}, "0 for no guidance or more"),
        ({"scale": float("nan")}, "0 for no guidance or more"),
        ({"heads": []}, "pairs"),
        ({"heads": [-1]}, "pairs"),
        ({"heads": [0, (1, 2)]}, "pairs"),
        ({"heads": [(1, 2, 3)]}, "pairs"),
        ({"heads": [()]}, "pairs"),
        ({"heads": "all"}, "pairs"),
        ({"heads": {0: []}}, "pairs"),
        ({"heads": [(0, 1)], "layers": [0]}, "names its layers"),
        ({"layers": [-1]}, "numbers of layers"),
        ({"window": 2.0}, "shares of the denoising steps"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(ValueError, match=message):
        Perturb(**options)
