"""The contract of ``apply`` on every family and pattern: what runs is the pattern, and nothing stays behind."""

import copy
import warnings

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from dattn.grid import TokenGrid
from dattn.operators import PerHead
from dattn.patterns import Dense, Grouped, Neighborhood
from dattn.plugin import apply, remove
from tests.every_pattern import PATTERNS
from tests.families import CORE as FAMILIES
from tests.tiny_models import Pipeline, masked_sdpa, sample


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(params=PATTERNS)
def pattern(request):
    return PATTERNS[request.param]


def tolerance(like):
    return 1e-4 * like.abs().max().item()


def test_the_pattern_that_runs_is_the_one_it_defines(family, pattern):
    model = family.model()
    with masked_sdpa(pattern, family.grids):
        expected = family.run(model, batch=2)
    with apply(model, pattern):
        out = family.run(model, batch=2)
    assert (out - expected).abs().max() < tolerance(expected)


def test_a_pattern_changes_the_output_and_dense_does_not(family):
    model = family.model()
    stock = family.run(model)
    with apply(model, Dense()):
        assert (family.run(model) - stock).abs().max() < tolerance(stock)
    with apply(model, Neighborhood(3)):
        assert (family.run(model) - stock).abs().max() > 1e-2 * stock.abs().max()


def traces(model, scheduler):
    """Everything that ``apply`` touches."""
    return (
        [module.processor for module in model.modules() if hasattr(module, "processor")],
        [vars(module).copy() for module in model.modules() if hasattr(module, "processor")],
        [(name, dict(module._forward_pre_hooks)) for name, module in model.named_modules()],
        set(vars(model)),
        dict(vars(scheduler)),
    )


def test_remove_leaves_nothing_behind(family, pattern):
    model = family.model()
    pipe = Pipeline(FlowMatchEulerDiscreteScheduler(), family, transformer=model)
    stock = pipe(model)
    before = traces(model, pipe.scheduler)
    handle = apply(pipe, pattern, dense_steps=1, dense_layers=1)
    assert any(new is not old for new, old in zip(traces(model, pipe.scheduler)[0], before[0], strict=True))
    handle.remove()
    after = traces(model, pipe.scheduler)
    assert all(new is old for new, old in zip(after[0], before[0], strict=True))
    assert after[2:4] == before[2:4]
    assert set(after[4]) == set(before[4])
    assert torch.equal(pipe(model), stock)


def test_the_same_call_twice_and_any_change_between(family, pattern):
    model = family.model()
    with apply(model, pattern):
        first = family.run(model)
        other = family.run(model, latent=family.other)
        batch = family.run(model, batch=2, seed=3)
        assert torch.equal(family.run(model), first)
    with apply(model, pattern):
        assert torch.equal(family.run(model, latent=family.other), other)
        assert torch.equal(family.run(model, batch=2, seed=3), batch)


def test_batch_two_is_two_of_batch_one(family, pattern):
    model = family.model()
    pair = family.inputs(2)
    with apply(model, pattern), torch.no_grad():
        both = model(**pair, return_dict=False)[0]
        for row in (0, 1):
            alone = model(**sample(pair, row), return_dict=False)[0]
            assert (alone - both[row : row + 1]).abs().max() < tolerance(both)


@pytest.mark.parametrize("latent", [(5, 9), (9, 6), (16, 24), (7, 33), (20, 4)])
def test_unet_levels_follow_odd_and_oblong_latents(latent):
    family = FAMILIES["unet"]
    model = family.model()
    shapes = {}

    def note(name):
        return lambda module, args: shapes.__setitem__(name, tuple(args[0].shape[2:]))

    hooks = [
        module.register_forward_pre_hook(note(name))
        for name, module in model.named_modules()
        if type(module).__name__ == "Transformer2DModel"
    ]
    with apply(model, Dense()) as handle:
        family.run(model, latent=latent)
        for layer in handle.layers:
            outer = layer.name.split(".transformer_blocks")[0]
            if outer in shapes:
                assert layer.grid.shape == (1, *shapes[outer])
    assert len(shapes) == len(hooks) == 7


def test_unet_downsampling_without_a_border_rounds_down():
    family = FAMILIES["unet"]
    model = family.model(downsample_padding=0)
    stock = family.run(model)
    with apply(model, Dense()) as handle:
        assert (family.run(model) - stock).abs().max() < tolerance(stock)
        assert {row.backend for row in handle.report().layers} == {"torch"}
        assert {row.grid[1:3] for row in handle.report().layers} == {(13, 10), (6, 5), (3, 2)}


def test_layers_are_in_execution_order():
    family = FAMILIES["unet"]
    model = family.model()
    ran = []
    with apply(model, Dense()) as handle:
        for layer in handle.layers:
            layer.module.register_forward_pre_hook(lambda *_, name=layer.name: ran.append(name))
        family.run(model)
        assert ran == [layer.name for layer in handle.layers]


def test_cogvideox_joins_frames_of_version_one_five():
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    family = FAMILIES["cogvideox"]
    model = family.model(patch_size_t=2, patch_bias=False)
    inputs = family.inputs(1, latent=(6, 6, 10))
    inputs["image_rotary_emb"] = get_3d_rotary_pos_embed(16, None, (3, 5), 3, grid_type="slice", max_size=(3, 5))
    with torch.no_grad():
        stock = model(**inputs, return_dict=False)[0]
        with apply(model, Dense()) as handle:
            out = model(**inputs, return_dict=False)[0]
            assert handle.report().layers[0].grid == (3, 3, 5, 6, 0)
            assert handle.report().layers[0].backend == "torch"
    assert (out - stock).abs().max() < tolerance(stock)


@pytest.mark.parametrize("size", [(3, 258), (258, 3), (1, 5), (5, 1)])
def test_flux_reads_its_size_from_short_numbers(size):
    from dattn.adapters import Inputs, flux

    inputs = FAMILIES["flux"].inputs(latent=size)
    ids = inputs["img_ids"].bfloat16()
    assert flux.positions(Inputs((), inputs | {"img_ids": ids}), 4).grid().sizes == (1, *size, 6, 0)


def test_reference_pictures_of_flux_are_kept():
    family = FAMILIES["flux"]
    model = family.model()
    stock = family.run(model, reference=2)
    with apply(model, Dense()) as handle:
        out = family.run(model, reference=2)
        assert {row.grid for row in handle.report().layers} == {(1, 7, 9, 6, 18)}
    assert (out - stock).abs().max() < tolerance(stock)
    with masked_sdpa(Neighborhood(3), (TokenGrid(1, 7, 9, text=(6, 18)),)):
        expected = family.run(model, reference=2)
    with apply(model, Neighborhood(3)):
        assert (family.run(model, reference=2) - expected).abs().max() < tolerance(expected)


def test_applying_again_replaces_and_an_old_handle_is_dead(family):
    model = family.model()
    stock = family.run(model)
    old = apply(model, Neighborhood(1))
    new = apply(model, Neighborhood(3))
    only_new = family.run(model)
    old.remove()
    assert torch.equal(family.run(model), only_new)
    new.remove()
    new.remove()
    assert torch.equal(family.run(model), stock)


def test_a_failed_apply_keeps_the_earlier_handle(family):
    model = family.model()
    apply(model, Neighborhood(3))
    before = family.run(model)
    with pytest.raises(ValueError, match="layers"):
        apply(model, Dense(), layers=[99])
    assert torch.equal(family.run(model), before)
    remove(model)


def test_remove_does_nothing_on_an_untouched_target(family):
    model = family.model()
    pipe = Pipeline(FlowMatchEulerDiscreteScheduler(), family, transformer=model)
    before = traces(model, pipe.scheduler)
    remove(model)
    remove(pipe)
    remove(object())
    assert traces(model, pipe.scheduler)[2:] == before[2:]


def test_remove_finds_the_handle_of_a_pipeline_or_of_its_model(family):
    model = family.model()
    pipe = Pipeline(FlowMatchEulerDiscreteScheduler(), family, transformer=model)
    for target in (pipe, model):
        before = traces(model, pipe.scheduler)
        apply(pipe, Dense())
        remove(target)
        assert traces(model, pipe.scheduler)[2:] == before[2:]


def test_the_wrapper_of_compile_is_seen_through(family):
    model = family.model()
    wrapped = torch.compile(model)
    with apply(wrapped, Neighborhood(3)):
        changed = family.run(model)
    assert not torch.equal(family.run(model), changed)


def test_a_copied_model_keeps_the_pattern(family):
    model = family.model()
    with apply(model, Neighborhood(3)):
        expected = family.run(model)
        assert torch.equal(family.run(copy.deepcopy(model)), expected)


@pytest.mark.parametrize("name", ["cross-shaped", "multi-axis", "radial-bias", "in-line"])
def test_what_is_meant_for_trained_models_says_so(name):
    family = FAMILIES["wan"]
    with pytest.warns(UserWarning, match="fine-tune the model for it"):
        apply(family.model(), PATTERNS[name])
    with pytest.warns(UserWarning, match="fine-tune the model for it"):
        apply(family.model(), PerHead((Dense(), PATTERNS[name])))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apply(family.model(), PATTERNS["grouped"])


def test_a_tail_for_large_grids_runs_on_every_level():
    family = FAMILIES["unet"]
    model = family.model()
    with apply(model, Grouped(8, tail=128)) as handle:
        family.run(model)
        assert any("one pooled key for every block" in (layer.note or "") for layer in handle.layers)
