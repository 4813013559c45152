"""Dense steps and layers, the scheduler that counts them, and the state of guidance branches."""

import copy
import inspect
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, replace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from dattn.apps.lora.adapting import add_lora, targets
from dattn.operators import PerLayer, PerStep, Reshaped
from dattn.patterns import (
    Alike,
    Anchor,
    Clustered,
    Dense,
    MultiAxis,
    Neighborhood,
    Pyramid,
    Selected,
    SparseFrames,
    StridedHeads,
    Windows,
)
from dattn.plugin import apply
from dattn.schedule import resolve_amount
from dattn.scores import Pooled
from dattn.selection import TopK
from dattn.spec import Operator
from tests.families import CORE as FAMILIES
from tests.tiny_models import Pipeline


def pipeline(family="wan", scheduler=None, **models):
    family = FAMILIES[family]
    models = models or {"transformer": family.model()}
    return Pipeline(scheduler or FlowMatchEulerDiscreteScheduler(), family, **models)


def watch(handle):
    """Notes, for every forward pass of the first layer, whether it is active."""
    seen = []
    layer = handle.layers[0]
    layer.module.register_forward_pre_hook(lambda *_: seen.append(layer.active))
    return seen


@pytest.mark.parametrize(
    ("amount", "total", "count"),
    [(0, 50, 0), (12, 50, 12), (12, 4, 4), (0.25, 50, 13), (0.24, 50, 12), (0.07, 100, 7), (0.01, 4, 1), (0.0, 9, 0)],
)
def test_counts_and_fractions(amount, total, count):
    assert resolve_amount(amount, total) == count


@pytest.mark.parametrize("value", [-1, 1.0, 1.5, -0.1, True, "3", None.__class__, float("nan")])
@pytest.mark.parametrize("name", ["dense_steps", "dense_layers"])
def test_bad_amounts_say_what_to_do(name, value):
    with pytest.raises(ValueError, match=rf"{name}=.*fraction in \[0, 1\)"):
        apply(FAMILIES["wan"].model(), Dense(), **{name: value})


@pytest.mark.parametrize(("dense", "stock"), [(0, 0), (1, 1), (0.3, 2), (9, 5)])
@pytest.mark.parametrize("family", FAMILIES)
def test_leading_steps_are_stock(family, dense, stock):
    pipe = pipeline(family)
    model = pipe.transformer
    handle = apply(pipe, Neighborhood(3), dense_steps=dense)
    seen = watch(handle)
    for _ in range(2):
        seen.clear()
        pipe(model, steps=5)
        passes = len(seen) // 5
        assert seen == [False] * stock * passes + [True] * (5 - stock) * passes
    assert handle.report().to_dict()["steps_dense"] == stock


def test_dense_steps_are_bit_identical_to_stock():
    pipe = pipeline()
    stock = pipe(pipe.transformer)
    with apply(pipe, Neighborhood(3), dense_steps=99):
        assert torch.equal(pipe(pipe.transformer), stock)
    with apply(pipe, Neighborhood(3), dense_layers=3):
        assert torch.equal(pipe(pipe.transformer), stock)


def test_dense_layers_and_selections_leave_processors_alone():
    model = FAMILIES["wan"].model()
    stock = [block.attn1.processor for block in model.blocks]
    cases = [
        ({"dense_layers": 1}, [1, 2]),
        ({"dense_layers": 0.34}, [2]),
        ({"layers": [0, 2]}, [0, 2]),
        ({"layers": iter([2])}, [2]),
        ({"layers": lambda name: name == "blocks.1.attn1"}, [1]),
        ({"layers": [0, 1], "dense_layers": 1}, [1]),
    ]
    for arguments, changed in cases:
        with apply(model, Dense(), **arguments):
            now = [block.attn1.processor for block in model.blocks]
            assert [i for i in range(3) if now[i] is not stock[i]] == changed


@pytest.mark.parametrize(
    "arguments",
    [{"layers": [3]}, {"layers": [-1]}, {"layers": []}, {"layers": lambda name: False}, {"dense_layers": 4}],
)
def test_impossible_layers_are_errors(arguments):
    with pytest.raises(ValueError, match="layers"):
        apply(FAMILIES["wan"].model(), Dense(), **arguments)


def test_a_bare_model_needs_steps_reported():
    family = FAMILIES["wan"]
    model = family.model()
    stock = family.run(model)
    with apply(model, Neighborhood(3), dense_steps=0.5) as handle:
        with pytest.raises(ValueError, match=r"handle.step"):
            family.run(model)
        handle.step(0, 2)
        assert torch.equal(family.run(model), stock)
        handle.step(1, 2)
        assert not torch.equal(family.run(model), stock)
        for wrong in ((2, 2), (-1, 2), (0, 0)):
            with pytest.raises(ValueError, match="index"):
                handle.step(*wrong)


@pytest.mark.parametrize(
    "scheduler", [DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, UniPCMultistepScheduler]
)
def test_any_scheduler_counts_its_own_steps(scheduler):
    pipe = pipeline("unet", scheduler())
    handle = apply(pipe, Neighborhood(3), dense_steps=0.5)
    seen = watch(handle)
    pipe(pipe.transformer, steps=4)
    total = len(pipe.scheduler.timesteps)
    assert seen == [i >= -(-total // 2) for i in range(total)]


def test_a_call_that_begins_late_counts_the_steps_it_runs():
    pipe = pipeline()
    handle = apply(pipe, Neighborhood(3), dense_steps=0.5)
    pipe.scheduler.set_timesteps(10)
    pipe.scheduler.set_begin_index(6)
    assert (handle.report().steps, handle.report().steps_dense) == (4, 2)


def test_the_scheduler_keeps_its_signatures_and_its_copies_are_plain():
    pipe = pipeline()
    plain = {name: inspect.signature(getattr(pipe.scheduler, name)) for name in ("step", "set_timesteps")}
    handle = apply(pipe, Neighborhood(3), dense_steps=1)
    assert {name: inspect.signature(getattr(pipe.scheduler, name)) for name in plain} == plain
    twin = copy.deepcopy(pipe.scheduler)
    pipe.scheduler.set_timesteps(4)
    twin.set_timesteps(9)
    assert (len(pipe.scheduler.timesteps), len(twin.timesteps)) == (4, 9)
    assert handle.report().steps == 4


def test_a_scheduler_that_is_replaced_is_followed():
    pipe = pipeline()
    handle = apply(pipe, Neighborhood(3), dense_steps=0.5)
    pipe(pipe.transformer, steps=4)
    old = pipe.scheduler
    pipe.scheduler = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    seen = watch(handle)
    for _ in range(2):
        seen.clear()
        pipe(pipe.transformer, steps=6)
        assert seen == [False] * 6 + [True] * 6
    assert "step" not in vars(old)
    handle.remove()
    assert "step" not in vars(pipe.scheduler)


def test_both_wan_transformers_share_one_step_index():
    family = FAMILIES["wan"]
    first, second = family.model(), family.model()
    pipe = pipeline("wan", transformer=first, transformer_2=second)
    handle = apply(pipe, Neighborhood(3), dense_steps=2)
    assert [layer.name.split(".")[0] for layer in handle.layers] == ["transformer"] * 3 + ["transformer_2"] * 3
    pipe.scheduler.set_timesteps(4)
    for index, time in enumerate(pipe.scheduler.timesteps):
        model = first if index < 1 else second
        inputs = family.inputs()
        with torch.no_grad():
            guess = model(**inputs, return_dict=False)[0]
        assert handle.layers[-1].active is (model is second and index >= 2)
        pipe.scheduler.step(guess, time, inputs["hidden_states"])
    handle.remove()
    assert not second._forward_pre_hooks


class Recorder(Dense):
    """Counts its calls in the state that it is given."""

    def at(self, layer, layers, step, steps):
        PLACES.append((layer, layers, step, steps))
        return self


PLACES = []


def test_patterns_are_told_their_place():
    pipe = pipeline()
    PLACES.clear()
    handle = apply(pipe, Recorder(), dense_layers=1)
    pipe(pipe.transformer, steps=3)
    assert {(1, 3, 0, 3), (2, 3, 1, 3), (2, 3, 2, 3)} <= set(PLACES)
    assert not any(layer == 0 or step >= steps for layer, _, step, steps in PLACES)
    handle.remove()


@dataclass(frozen=True)
class Counting(Operator):
    """Dense attention that notes which state it was given, and how often before."""

    def attend(self, query, key, value, grid, state, *, scale, key_mask, backend):
        CALLS.append((id(state), state.get("calls", 0)))
        state["calls"] = state.get("calls", 0) + 1
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=scale), None


CALLS = []


def test_state_belongs_to_a_call_a_layer_and_a_branch():
    pipe = pipeline()
    handle = apply(pipe, Counting())
    CALLS.clear()
    pipe(pipe.transformer, steps=3)
    per_call = 3 * 2 * 3
    assert len(CALLS) == per_call and len({key for key, _ in CALLS}) == 6
    assert [before for _, before in CALLS] == [step for step in range(3) for _ in range(6)]
    CALLS.clear()
    pipe(pipe.transformer, steps=1)
    assert all(before == 0 for _, before in CALLS)
    handle.remove()
    handle = apply(pipe.transformer, Counting())
    CALLS.clear()
    for _ in range(2):
        FAMILIES["wan"].run(pipe.transformer)
    assert all(before == 0 for _, before in CALLS)


RESHAPED = Reshaped(Neighborhood(1), refresh=3, growth=0.02)


def test_reshaped_is_dense_at_its_refreshes_and_the_pattern_between():
    pipe = pipeline()
    stock = pipe(pipe.transformer)
    with apply(pipe, replace(RESHAPED, refresh=1)):
        torch.testing.assert_close(pipe(pipe.transformer), stock, rtol=1e-3, atol=1e-4)
    with apply(pipe, RESHAPED) as handle:
        one = pipe(pipe.transformer, steps=1)
        two = pipe(pipe.transformer, steps=4)
        row = handle.report().layers[0]
        assert row.backend == "torch" and row.density is None
        density = RESHAPED.pattern.mask(pipe.family.grids[0]).density
        assert row.saved == pytest.approx(1 - density - 1 / 3, abs=1e-4)
        grid = pipe.family.grids[0]
        assert row.memory == 2 * RESHAPED.memory(grid, 1, 2, 12, torch.float32)  # two branches
        assert "keeps 0.0 MB" in row.why
    torch.testing.assert_close(one, pipe(pipe.transformer, steps=1), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(two, stock, atol=1e-3)
    with apply(pipe, Neighborhood(1)):
        plain = pipe(pipe.transformer)
    assert (two - stock).norm() < (plain - stock).norm()


KEEPING = {residual: replace(RESHAPED, residual=residual) for residual in ("full", "pooled", "cached", "none")}
KEEPING["lists"] = Alike(0.4, reuse=3, block_size=16)
KEEPING["lists-while-alike"] = Selected(Pooled(), TopK(0.4), reuse=0.9, block_size=16)
KEEPING["clusters"] = Clustered(3, 4, top_p=0.5, first_steps=4, block_size=16)
KEEPING["levels"] = Pyramid((0.2, 0.4, 0.6, 0.8), reuse=2, block_size=16)
KEEPING["stripes"] = Anchor(1.0, 2, reuse=2, block_size=16)


@pytest.mark.parametrize("kept", KEEPING)
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_kept_belongs_to_one_call(name, kept):
    """The same again after another resolution, another batch, and a call that was broken off."""
    pipe = pipeline(name)
    model, family = pipe.transformer, pipe.family
    with apply(pipe, KEEPING[kept]) as handle:
        expected = pipe(model, steps=5)
        assert torch.equal(pipe(model, steps=5), expected)
        pipe.scheduler.set_timesteps(5)
        for _ in range(2):
            pipe.scheduler.step(
                family.run(model, latent=family.other),
                pipe.scheduler.timesteps[0],
                family.run(model, latent=family.other),
            )
        assert torch.equal(pipe(model, steps=5), expected)
        both = pipe(model, steps=5, batch=2)
        assert all(row.memory for row in handle.report().layers)
        assert not any(layer.keeps for layer in handle.layers)  # the loop is over, nothing is held any more
    for row in (0, 1):
        with apply(pipe, KEEPING[kept]):
            alone = pipe(model, steps=5, batch=2, only=row)
        torch.testing.assert_close(alone, both[row : row + 1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kept", ["full", "lists", "lists-while-alike", "clusters", "levels", "stripes"])
def test_a_lora_that_is_added_finds_nothing_of_the_call_before(kept):
    pipe, fresh = pipeline(), pipeline()
    with apply(pipe, KEEPING[kept]):
        before = pipe(pipe.transformer, steps=5)
        for model in (pipe.transformer, fresh.transformer):
            generator = torch.Generator().manual_seed(0)
            for parameter in add_lora(model, targets(model), 2, 2, 0):
                torch.nn.init.normal_(parameter, std=0.3, generator=generator)
        after = pipe(pipe.transformer, steps=5)
    with apply(fresh, KEEPING[kept]):
        expected = fresh(fresh.transformer, steps=5)
    assert torch.equal(after, expected) and not torch.allclose(after, before, atol=1e-3)


def test_the_report_averages_over_the_steps():
    pipe = pipeline()
    with apply(pipe, PerStep({0: Dense(), 0.5: Neighborhood(1)})) as handle:
        pipe(pipe.transformer, steps=8)
        density = Neighborhood(1).mask(pipe.family.grids[0]).density
        assert handle.report().flops_share == pytest.approx((1 + density) / 2, abs=1e-3)


def test_more_head_groups_than_heads_leave_a_layer_stock_and_say_so():
    family = FAMILIES["unet"]
    model = family.model(attention_head_dim=(1, 2, 4))
    with apply(model, StridedHeads(2, 0, 16)) as handle:
        with pytest.warns(UserWarning, match="has 2 head groups, the layer 1 heads"):
            family.run(model)
        ran = {row.backend for row in handle.report().layers}
        assert ran == {"stock", "torch"}


@pytest.mark.parametrize("kept", ["full", "lists", "lists-while-alike", "clusters"])
@pytest.mark.parametrize("named", [True, False])
def test_branches_of_guidance_keep_their_own(named, kept):
    """A branch gives the same whatever the other one is fed with, where the pipeline names them and where not."""
    pipe = pipeline()
    model, family = pipe.transformer, pipe.family
    context = model.cache_context if named else lambda name: nullcontext()

    def branch(other):
        outputs = []
        with apply(pipe, KEEPING[kept]):
            pipe.scheduler.set_timesteps(3)
            for step in range(3):
                with context("cond"):
                    outputs.append(family.run(model, seed=step))
                with context("uncond"):
                    family.run(model, seed=step + other)
                pipe.scheduler.step(outputs[0], pipe.scheduler.timesteps[step], outputs[0])
        return torch.stack(outputs)

    assert torch.equal(branch(10), branch(20))


def test_branches_one_after_the_other_equal_branches_apart():
    pipe = pipeline()
    model, family = pipe.transformer, pipe.family
    with apply(pipe, Neighborhood(3)):
        pipe.scheduler.set_timesteps(2)
        with model.cache_context("cond"):
            cond = family.run(model, seed=1)
        with model.cache_context("uncond"):
            uncond = family.run(model, seed=2)
    for seed, expected in ((2, uncond), (1, cond)):
        with apply(pipe, Neighborhood(3)):
            pipe.scheduler.set_timesteps(2)
            assert torch.equal(family.run(model, seed=seed), expected)


@pytest.mark.parametrize(
    "pattern",
    [
        SparseFrames(1, 1),
        Windows((1, 2, 2)),
        MultiAxis((5, 2, 2)),
        Neighborhood((None, 2, 2), dilation="alternate"),
        PerLayer({1: SparseFrames(1, 1)}, Neighborhood(3)),
        PerStep({0: Neighborhood(3), 0.5: Neighborhood(1)}),
    ],
    ids=lambda pattern: pattern.name,
)
def test_patterns_that_change_with_step_and_layer_run_as_placed_and_the_same_twice(pattern):
    pipe = pipeline()
    stock = pipe(pipe.transformer, steps=6)
    with apply(pipe, pattern) as handle:
        layer, met = handle.layers[1], []
        layer.module.register_forward_pre_hook(lambda *_: met.append(layer.concrete))
        first, second = pipe(pipe.transformer, steps=6), pipe(pipe.transformer, steps=6)
    assert torch.equal(first, second) and not torch.allclose(first, stock, atol=1e-4)
    branches = len(met) // 12
    assert met[::branches] == [pattern.at(1, 3, step, 6) for step in range(6)] * 2


def test_dense_steps_that_nobody_counts_are_noticed():
    """Some pipelines step copies of their scheduler, as diffusion forcing does for every frame."""
    family = FAMILIES["wan"]
    pipe = Pipeline(FlowMatchEulerDiscreteScheduler(), family, transformer=family.model())
    with apply(pipe, Neighborhood(3), dense_steps=1):
        pipe.scheduler.set_timesteps(4)
        with pytest.warns(UserWarning, match=r"16 forward passes without a step.*dense_steps=1 does not end"):
            for _ in range(16):
                family.run(pipe.transformer)
    with apply(pipe, Neighborhood(3), dense_steps=1), warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe(pipe.transformer, steps=20)
