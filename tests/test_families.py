"""Every model family under every condition that people run it in; patterns take turns."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from itertools import count

import accelerate
import pytest
import torch
from accelerate.hooks import remove_hook_from_submodules
from diffusers.hooks import FirstBlockCacheConfig, LayerSkipConfig, SmoothedEnergyGuidanceConfig
from diffusers.hooks.layer_skip import _apply_layer_skip_hook
from diffusers.hooks.smoothed_energy_guidance_utils import _apply_smoothed_energy_guidance_hook
from peft import LoraConfig
from torch import nn

from dattn import Dense, Neighborhood, Radial, Reshaped, Selected
from dattn.plugin import apply
from dattn.scores import Pooled
from dattn.selection import TopK
from tests import every_pattern
from tests.families import CORE, FAMILIES
from tests.families.base import Family, halved
from tests.tiny_models import masked_sdpa, sample

PATTERNS = ("dense", "sparse", "dynamic", "reshaped")
STATIC = ("dense", "sparse")
TURNS = (*PATTERNS, *every_pattern.PATTERNS)


def pattern_of(name: str, family: Family):
    video = any(grid.frames > 1 for grid in family.grids)
    return {
        "dense": Dense(),
        "sparse": Radial(block_size=16) if video else Neighborhood(3),
        "dynamic": Selected(Pooled(), TopK(0.4), block_size=16),
        "reshaped": Reshaped(Neighborhood(3)),
    }.get(name) or every_pattern.PATTERNS[name]


def close(out, expected, scale=1e-4):
    return (out - expected).abs().max() <= scale * expected.abs().max()


def served(handle, family):
    """Nothing but what the family names was left alone, and for the reason that it names."""
    rows = handle.report().layers
    for row in rows:
        reason = next((why for part, why in family.stock.items() if part in row.name), None)
        assert row.backend == ("torch" if reason is None else "stock"), (row.name, row.why)
        assert reason is None or reason in row.why
    return bool(rows)


@pytest.fixture(params=FAMILIES)
def family(request, noted):
    return FAMILIES[request.param]


COMPILED = [pytest.param(name, marks=pytest.mark.slow if "-" in name or name not in CORE else ()) for name in FAMILIES]
"""Compiling takes long: the core families, and by hand the others."""
CONDITIONED = [pytest.param(name, marks=pytest.mark.slow if "-" in name else ()) for name in FAMILIES]
"""Every family, and by hand its variants."""


@pytest.mark.parametrize("name", PATTERNS)
def test_the_pattern_that_runs_is_the_one_it_defines(family, name):
    model, pattern = family.model(), pattern_of(name, family)
    stock = family.run(model)
    before = [module.processor for module in model.modules() if hasattr(module, "processor")]
    with masked_sdpa(pattern, family.grids):
        expected = family.run(model)
    with apply(model, pattern) as handle:
        out = family.run(model)  # of operators the first step
        assert served(handle, family)
        assert {row.grid for row in handle.report().layers if row.backend == "torch"} == {
            grid.sizes for grid in family.grids
        }
        assert torch.equal(family.run(model), out)
    assert close(out, expected)
    assert close(out, stock) == (name in ("dense", "reshaped") or not family.grids)
    assert torch.equal(family.run(model), stock)
    after = [module.processor for module in model.modules() if hasattr(module, "processor")]
    assert all(new is old for new, old in zip(after, before, strict=True))


def test_layers_are_listed_in_the_order_in_which_they_run(family):
    model, ran = family.model(), []
    with apply(model, Dense()) as handle:
        for layer in handle.layers:
            layer.module.register_forward_pre_hook(lambda *_, name=layer.name: ran.append(name))
        family.run(model)
        assert list(dict.fromkeys(ran)) == [layer.name for layer in handle.layers]


def test_a_later_step_of_an_operator_is_another(family):
    model = family.model()
    with apply(model, pattern_of("reshaped", family)) as handle:
        handle.step(0, 2)
        first = family.run(model)
        handle.step(1, 2)
        assert close(family.run(model), first) == (not family.grids)


def test_size_batch_and_prompt_may_change_between_calls(family):
    model, pattern = family.model(), pattern_of("dynamic", family)
    with apply(model, pattern):
        first = family.run(model)
        other = family.run(model, latent=family.other)
        batch = family.run(model, batch=2, seed=3)
        assert torch.equal(family.run(model), first)
    with apply(model, pattern):
        assert torch.equal(family.run(model, latent=family.other), other)
        assert torch.equal(family.run(model, batch=2, seed=3), batch)


@pytest.mark.parametrize("name", PATTERNS)
def test_batch_two_is_two_of_batch_one(family, name):
    model, pair = family.model(), family.inputs(2)
    with apply(model, pattern_of(name, family)) as handle, torch.no_grad():
        both = family.call(model, pair)
        assert served(handle, family)
        for row in (0, 1):
            assert close(family.call(model, sample(pair, row)), both[row : row + 1])


def linear_names(model: nn.Module) -> list[str]:
    """Names of linear modules inside of attention."""
    return [
        f"{outer}.{inner}"
        for outer, module in model.named_modules()
        if hasattr(module, "processor")
        for inner, part in module.named_modules()
        if isinstance(part, nn.Linear)
    ]


def add_lora(model: nn.Module) -> None:
    """LoRA on the projections of attention, with weights that matter."""
    model.add_adapter(LoraConfig(r=2, target_modules=linear_names(model), init_lora_weights=False))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2


def lora(family, pattern):
    before, after = family.model(), family.model()
    add_lora(before)
    with apply(before, pattern) as handle, apply(after, pattern):
        expected, plain = family.run(before), family.run(after)
        assert served(handle, family)
        add_lora(after)
        assert not close(expected, plain, 1e-2)
        assert torch.equal(family.run(after), expected)


def fused(family, pattern):
    model = family.model()
    with apply(model, pattern):
        expected = family.run(model)
    stock = family.run(model)
    model.fuse_qkv_projections()
    with apply(model, pattern) as handle:
        assert close(family.run(model), expected)
        assert served(handle, family)
    assert close(family.run(model), stock)


def offload(family, pattern):
    """Weights stay away and come for each module's call, as in model and sequential offloading."""
    model = family.model()
    with apply(model, pattern):
        expected = family.run(model)
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
        assert torch.equal(family.run(model), expected)
        remove_hook_from_submodules(model)


def group_offload(family, pattern):
    model = family.model()
    with apply(model, pattern) as handle:
        expected = family.run(model)
        cpu = torch.device("cpu")
        model.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
        assert torch.equal(family.run(model), expected)
        assert served(handle, family)


def gradients(family, model):
    model.zero_grad()
    torch.manual_seed(0)
    family.call(model, family.inputs()).square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def checkpointing(family, pattern):
    if isinstance(pattern, Reshaped):  # without a gradient
        pattern = pattern.pattern
    model = family.model().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with apply(model, pattern):
        plain = gradients(family, model)
        model.enable_gradient_checkpointing()
        again = gradients(family, model)
    assert plain and plain.keys() == again.keys()
    largest = max(grad.abs().max() for grad in plain.values())
    assert max((plain[name] - again[name]).abs().max() for name in plain) <= 1e-5 * largest


def bfloat16(family, pattern):
    model, half = family.model(), halved(family.model())
    with apply(model, pattern):
        exact = family.run(model)
    with masked_sdpa(pattern, family.grids):
        stock = family.run_in(half, torch.bfloat16)
    with apply(half, pattern):
        ours = family.run_in(half, torch.bfloat16)
    error = lambda out: (out.double() - exact.double()).square().mean().sqrt()
    assert error(ours) <= 2 * error(stock) + 1e-6


def float8(family, pattern):
    model = family.model()
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    with masked_sdpa(pattern, family.grids):
        expected = family.run(model)
    with apply(model, pattern):
        assert close(family.run(model), expected)


def first_block_cache(family, pattern):
    """With a threshold of 0 nothing is reused; with a large one the second step is, as in the stock model."""
    model = family.model()
    with apply(model, pattern):
        expected = family.run(model)
        model.enable_cache(FirstBlockCacheConfig(threshold=0.0))
        with model.cache_context("cond"):
            assert torch.equal(family.run(model), expected)
            assert not torch.equal(family.run(model, seed=1), expected)
        model.disable_cache()
        model.enable_cache(FirstBlockCacheConfig(threshold=1e9))
        with model.cache_context("cond"):
            assert torch.equal(family.run(model), expected)
            family.run(model)
        model.disable_cache()


def guidance(family, pattern):
    """Two branches in one batch, and one after the other under names."""
    model, pair = family.model(), family.inputs(2)
    context = getattr(model, "cache_context", lambda _: nullcontext())
    with apply(model, pattern), torch.no_grad():
        both = family.call(model, pair)
        for row, name in enumerate(("cond", "uncond")):
            with context(name):
                assert close(family.call(model, sample(pair, row)), both[row : row + 1])


GUIDES = {
    "perturbed attention": lambda m: _apply_layer_skip_hook(
        m, LayerSkipConfig([0], skip_attention=False, skip_attention_scores=True, skip_ff=False), "guide"
    ),
    "skipped attention": lambda m: _apply_layer_skip_hook(m, LayerSkipConfig([0], skip_ff=False), "guide"),
    "skipped layer": lambda m: _apply_layer_skip_hook(m, LayerSkipConfig([0]), "guide"),
    "smoothed energy": lambda m: _apply_smoothed_energy_guidance_hook(m, SmoothedEnergyGuidanceConfig([0]), 1.0),
}


def guided(family, model, attach):
    """The output under a guidance hook; why not, where the stock model cannot have it."""
    try:
        attach(model)
        return family.run(model)
    except Exception as error:  # whatever the stock model meets
        return f"{type(error).__name__}: {error}"


def guidance_hooks(family, pattern):
    """The hooks of perturbed-attention, skip-layer and smoothed-energy guidance do what they do to the stock model."""
    found = []
    for name, attach in GUIDES.items():
        stock, ours = family.model(), family.model()
        expected = guided(family, stock, attach)
        with apply(ours, Dense()):
            out = guided(family, ours, attach)
        if isinstance(expected, str):
            ours_alone = "not registered" in expected and "Processor" in expected
            assert not (ours_alone and family.grids and isinstance(out, str)), (name, out)
        else:
            assert close(out, expected), name
        found.append(out)
    if all(isinstance(out, str) for out in found):
        pytest.skip(f"{family.name}: Diffusers' hooks fail on the stock model")


CONDITIONS: dict[str, Callable[[Family, object], None]] = {
    check.__name__: check
    for check in (
        lora,
        fused,
        offload,
        group_offload,
        checkpointing,
        bfloat16,
        float8,
        first_block_cache,
        guidance,
        guidance_hooks,
    )
}
TURN = dict(zip(((f, c) for f in FAMILIES for c in CONDITIONS), count()))  # one more condition, another turn


def skip_what_it_cannot(family, condition):
    if condition in family.cannot:
        pytest.skip(f"{family.name}: {family.cannot[condition]}")


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("family", CONDITIONED, indirect=True)
def test_condition(family, condition):
    skip_what_it_cannot(family, condition)
    name = TURNS[(TURN[family.name, condition] + list(FAMILIES).index(family.name)) % len(TURNS)]
    CONDITIONS[condition](family, pattern_of(name, family))


@pytest.mark.slow
@pytest.mark.parametrize("name", every_pattern.PATTERNS)
@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("family", CORE, indirect=True)
def test_condition_with_every_pattern(family, condition, name):
    skip_what_it_cannot(family, condition)
    CONDITIONS[condition](family, every_pattern.PATTERNS[name])


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("name", STATIC)
@pytest.mark.parametrize("family", COMPILED, indirect=True)
def test_full_graph(family, name, fresh_compiler):
    skip_what_it_cannot(family, "compile")
    model, pattern = family.model(), pattern_of(name, family)
    with apply(model, pattern) as handle:
        expected = family.run(model)
        run = torch.compile(model, backend=family.compiler, fullgraph=True)
        assert close(family.run(run), expected)
        assert served(handle, family)


@pytest.mark.parametrize("family", COMPILED, indirect=True)
def test_repeated_blocks(family, fresh_compiler):
    skip_what_it_cannot(family, "compile_repeated_blocks")
    model = family.model()
    with apply(model, pattern_of("sparse", family)), warnings.catch_warnings():
        expected = family.run(model)
        model.compile_repeated_blocks(fullgraph=True, backend=family.compiler)
        assert close(family.run(model), expected)
