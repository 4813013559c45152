"""RegionalLoRA equals base + Σ mask · delta in every layer, told apart by name."""

import contextlib
import re

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from peft import LoraConfig
from torch import nn

import dattn
from dattn.control.parts import part
from dattn.control.regional_lora import RegionalLoRA
from tests.families import flux, unet, wan

pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
FAMILIES = {"wan": wan.FAMILIES[0], "flux": flux.FAMILIES[0], "unet": unet.FAMILIES[0]}
PLACELESS = r"time_|\.norm|norm_out|context|add_|attn2\.to_[kv]|text_embedder"
MASKS = {"left": (0, 0, 0.4, 1), "soft": torch.linspace(0, 1, 60).reshape(5, 12)}


class Pipe:
    """A pipeline as far as a handle needs one."""

    def __init__(self, model):
        self.scheduler = FlowMatchEulerDiscreteScheduler()
        setattr(self, "unet" if hasattr(model, "down_blocks") else "transformer", model)


def tuned(family, targets=(nn.Linear, nn.Conv2d), **kinds):
    """A model in float64 with two active adapters on everything, its pipeline, and inputs."""
    model = family.model().double()
    names = [name for name, module in model.named_modules() if isinstance(module, targets)]
    torch.manual_seed(0)
    for adapter in MASKS:
        config = LoraConfig(r=2, lora_alpha=3, target_modules=names, init_lora_weights=False, **kinds)
        model.add_adapter(config, adapter_name=adapter)
    model.set_adapters([*MASKS])
    return model.double(), Pipe(model)


def inputs_of(family, text=None, batch=2):
    inputs = {name: t.double() if t.is_floating_point() else t for name, t in family.inputs(batch).items()}
    if text:
        shape = batch, text, inputs["encoder_hidden_states"].shape[2]
        inputs["encoder_hidden_states"] = torch.randn(shape, generator=torch.Generator().manual_seed(1)).double()
        if "txt_ids" in inputs:
            inputs["txt_ids"] = torch.zeros(text, 3).double()
    return inputs


def run(model, inputs):
    with torch.no_grad():
        return model(**inputs, return_dict=False)[0]


def cover(mask, name, output, grids, elsewhere, text):
    """What the delta of a layer is multiplied with."""
    if re.search(PLACELESS, name) or output.ndim == 2:
        return elsewhere
    if output.ndim == 4:
        return mask.cover(dattn.TokenGrid(1, *output.shape[2:])).reshape(output.shape[2:])
    grid = next(g for g in grids if g.visual == output.shape[1] - text * ("single" in name))
    picture = mask.cover(grid)[:, None]
    before = torch.full((output.shape[1] - grid.visual, 1), elsewhere, dtype=torch.float64)
    return torch.cat([before, picture])


def wanted(family, masks, inputs, elsewhere=1.0, pattern=None):
    """The model's output with every layer that has adapters computed anew."""
    model, pipe = tuned(family)
    text = inputs["encoder_hidden_states"].shape[1]

    def recomputed(name, layer, args, output):
        result = layer.base_layer(args[0])
        for adapter, mask in masks.items():
            delta = layer.lora_B[adapter](layer.lora_A[adapter](args[0])) * layer.scaling[adapter]
            result = result + delta * cover(part(adapter, mask), name, output, family.grids, elsewhere, text)
        return result

    for name, module in model.named_modules():
        if hasattr(module, "lora_B"):
            module.register_forward_hook(lambda m, args, output, name=name: recomputed(name, m, args, output))
    with contextlib.nullcontext() if pattern is None else dattn.apply(pipe, pattern):
        return run(model, inputs)


@pytest.mark.parametrize(("name", "elsewhere"), [("wan", 1.0), ("wan", 0.3), ("flux", 0.3), ("unet", 0.3)])
def test_deltas_are_masked(name, elsewhere):
    family = FAMILIES[name]
    inputs = inputs_of(family)
    model, pipe = tuned(family)
    plain = run(model, inputs)
    with RegionalLoRA(MASKS, elsewhere).on(pipe):
        output = run(model, inputs)
    assert (output - wanted(family, MASKS, inputs, elsewhere)).abs().max() < 1e-12 * output.abs().max()
    assert (output - plain).abs().max() > 1e-2 * plain.abs().max()
    assert torch.equal(run(model, inputs), plain)


@pytest.mark.parametrize(("name", "text"), [("wan", 75), ("flux", 63), ("unet", 35)])
def test_as_much_text_as_picture(name, text):
    family = FAMILIES[name]
    inputs = inputs_of(family, text)
    model, pipe = tuned(family)
    with RegionalLoRA(MASKS, 0.3).on(pipe):
        output = run(model, inputs)
    assert (output - wanted(family, MASKS, inputs, 0.3)).abs().max() < 1e-12 * output.abs().max()


def test_a_track_of_boxes():
    family = FAMILIES["wan"]
    masks = {"left": [(0, 0, 0.4, 1), (0.6, 0, 1, 1)], "soft": MASKS["soft"]}
    inputs = inputs_of(family)
    model, pipe = tuned(family)
    with RegionalLoRA(masks).on(pipe):
        output = run(model, inputs)
    assert (output - wanted(family, masks, inputs)).abs().max() < 1e-12 * output.abs().max()


def test_an_adapter_without_a_mask_acts_everywhere():
    family = FAMILIES["flux"]
    inputs = inputs_of(family)
    model, pipe = tuned(family)
    with RegionalLoRA({"left": MASKS["left"]}).on(pipe):
        output = run(model, inputs)
    masks = {"left": MASKS["left"], "soft": torch.ones(1, 1)}
    assert (output - wanted(family, masks, inputs)).abs().max() < 1e-12 * output.abs().max()


def test_only_in_its_window():
    family = FAMILIES["wan"]
    inputs = inputs_of(family)
    model, pipe = tuned(family)
    plain = run(model, inputs)
    with dattn.apply(pipe, control=RegionalLoRA(MASKS, window=(0.2, 0.5))) as handle:
        for step, masked in ((1, False), (2, True), (4, True), (5, False)):
            handle.step(step, 10)
            assert torch.equal(run(model, inputs), plain) != masked


def test_an_error_in_a_pass_leaves_nothing_behind():
    family = FAMILIES["wan"]
    inputs = inputs_of(family)
    model, pipe = tuned(family)
    plain = run(model, inputs)
    with pytest.raises(RuntimeError), RegionalLoRA(MASKS).on(pipe):
        run(model, inputs | {"hidden_states": inputs["hidden_states"][:, :2]})
    assert not any(module._forward_hooks for name, module in model.named_modules() if "lora_" in name)
    assert torch.equal(run(model, inputs), plain)


def test_with_a_sparse_pattern():
    """Deltas know nothing of the pattern."""
    family, pattern = FAMILIES["wan"], dattn.Neighborhood((1, 3, 3))
    inputs = inputs_of(family)
    model, pipe = tuned(family)
    with dattn.apply(pipe, pattern, control=RegionalLoRA(MASKS)):
        output = run(model, inputs)
    assert (output - wanted(family, MASKS, inputs, pattern=pattern)).abs().max() < 1e-12 * output.abs().max()
    assert (output - wanted(family, MASKS, inputs)).abs().max() > 1e-6


@pytest.mark.parametrize(
    ("masks", "elsewhere", "message"),
    [
        ({}, 1, "a mask for each adapter"),
        ({"left": (0, 0, 0, 1)}, 1, "in fractions"),
        ({"left": MASKS["left"]}, float("nan"), "elsewhere=nan"),
    ],
)
def test_wrong_options(masks, elsewhere, message):
    with pytest.raises(ValueError, match=message):
        RegionalLoRA(masks, elsewhere)


def refused(model, pipe, message, adapter="left"):
    family = FAMILIES["wan"]
    with pytest.raises(ValueError, match=message), RegionalLoRA({adapter: MASKS["left"]}).on(pipe):
        run(model, inputs_of(family))


def test_adapters_that_cannot_be_masked():
    model, pipe = tuned(FAMILIES["wan"], nn.Linear)
    refused(model, pipe, "'other' is not loaded", "other")
    refused(model, model, "needs a pipeline|apply it to that")
    model.set_adapters(["soft"])
    refused(model, pipe, "is not active")
    model.set_adapters([*MASKS])
    model.fuse_lora()
    refused(model, pipe, "is fused")
    refused(*tuned(FAMILIES["wan"], nn.Linear, use_dora=True), "no plain LoRA")
