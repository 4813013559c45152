"""Everything else that people do to a Diffusers model, before or after ``apply``."""

import copy
from unittest import mock

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor
from peft import LoraConfig

from dattn.patterns import Dense, Neighborhood, Radial
from dattn.plugin import apply, remove
from dattn.processors.stand_in import StandIn
from tests.families import CORE as FAMILIES
from tests.tiny_models import masked_sdpa

PATTERNS = {"dense": Dense(), "radial": Radial(block_size=16), "neighborhood": Neighborhood(3)}
WINDOW = Neighborhood(3)


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(params=PATTERNS)
def pattern(request):
    return PATTERNS[request.param]


def close(out, expected, scale=1e-4):
    return (out - expected).abs().max() <= scale * expected.abs().max()


def add_lora(model):
    """LoRA on the attention projections, with weights that matter."""
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model


def test_lora_before_and_after(family, pattern):
    before, after = add_lora(family.model()), family.model()
    with apply(family.model(), pattern) as handle:
        plain = family.run(handle._patches[0].model)
    with apply(before, pattern):
        expected = family.run(before)
    assert not close(plain, expected, 1e-2)
    with apply(after, pattern):
        assert torch.equal(family.run(after), plain)
        add_lora(after)
        assert torch.equal(family.run(after), expected)
        after.disable_adapters()
        assert torch.equal(family.run(after), plain)
    after.enable_adapters()
    assert close(family.run(after), family.run(before))


def test_fused_projections_before_and_after(family, pattern):
    model = family.model()
    with apply(model, pattern):
        expected = family.run(model)
    stock = family.run(model)
    model.fuse_qkv_projections()
    own = {id(module.processor) for module in model.modules() if hasattr(module, "processor")}
    with apply(model, pattern) as handle:
        assert close(family.run(model), expected)
        assert {row.backend for row in handle.report().layers} == {"torch"}
    assert {id(module.processor) for module in model.modules() if hasattr(module, "processor")} == own
    assert close(family.run(model), stock)


def test_fusing_and_unfusing_under_a_handle(family):
    model = family.model()
    stock = family.run(model)
    handle = apply(model, WINDOW)
    expected = family.run(model)
    for change in (model.fuse_qkv_projections, model.unfuse_qkv_projections):
        change()
        assert close(family.run(model), expected)
        assert {row.backend for row in handle.report().layers} == {"torch"}
    model.fuse_qkv_projections()
    handle.remove()
    assert close(family.run(model), stock)
    model.unfuse_qkv_projections()
    assert close(family.run(model), stock)


def gradients(family, model):
    model.zero_grad()
    model(**family.inputs(), return_dict=False)[0].square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradient_checkpointing_gives_the_same_gradients(family, pattern):
    model = family.model().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    stock = gradients(family, model)
    with apply(model, pattern):
        plain = gradients(family, model)
        model.enable_gradient_checkpointing()
        again = gradients(family, model)
    assert plain.keys() == again.keys() == stock.keys()
    largest = max(grad.abs().max() for grad in stock.values())
    assert max((plain[name] - again[name]).abs().max() for name in plain) <= 1e-5 * largest
    if isinstance(pattern, Dense):
        assert max((plain[name] - stock[name]).abs().max() for name in plain) <= 1e-4 * largest


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_exact_as_stock(family, pattern, dtype):
    model = family.model()
    with apply(model, pattern):
        exact = family.run(model)
    half = family.model().to(dtype)
    with masked_sdpa(pattern, family.grids):
        stock = family.run_in(half, dtype)
    with apply(half, pattern):
        ours = family.run_in(half, dtype)
    assert ours.dtype == dtype

    def error(out):
        return (out.double() - exact.double()).square().mean().sqrt()

    assert error(ours) <= 2 * error(stock) + 1e-6


def test_float8_weight_storage(family, pattern):
    model = family.model()
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    stock = family.run(model)
    with apply(model, pattern):
        out = family.run(model)
    with masked_sdpa(pattern, family.grids):
        assert close(out, family.run(model))
    assert torch.equal(family.run(model), stock)


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_users_attention_backend_serves_the_rest(when):
    family = FAMILIES["wan"]
    model = family.model()
    chosen = AttentionBackendName._NATIVE_MATH
    with apply(model, WINDOW):
        expected = family.run(model)
    try:
        if when == "before":
            model.set_attention_backend("_native_math")
        handle = apply(model, WINDOW, dense_layers=1)
        if when == "after":
            model.set_attention_backend("_native_math")
        processors = [block.attn1.processor for block in model.blocks]
        assert all(processor._attention_backend is chosen for processor in processors)
        family.run(model)
        assert [row.backend for row in handle.report().layers] == ["stock", "torch", "torch"]
        handle.remove()
        assert all(block.attn1.processor._attention_backend is chosen for block in model.blocks)
        model.reset_attention_backend()
    finally:
        from diffusers.models.attention_dispatch import _AttentionBackendRegistry

        _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)
    with apply(model, WINDOW):
        assert torch.equal(family.run(model), expected)


def test_guidance_hooks_find_our_processors(family):
    from diffusers.hooks import LayerSkipConfig
    from diffusers.hooks._helpers import AttentionProcessorRegistry
    from diffusers.hooks.layer_skip import _apply_layer_skip_hook

    model = family.model()
    handle = apply(model, WINDOW)
    hidden, text = torch.ones(1), torch.zeros(1)
    for layer in handle.layers:
        skip = AttentionProcessorRegistry.get(type(layer.module.processor)).skip_processor_output_fn
        joint = family.joint
        given = {"hidden_states": hidden} | ({"encoder_hidden_states": text} if joint else {})
        assert skip(layer.module, **given) == ((hidden, text) if joint else hidden)
    if family.name == "cogvideox":
        before = family.run(model)
        _apply_layer_skip_hook(model, LayerSkipConfig(indices=[1], fqn="transformer_blocks", skip_ff=False))
        assert not torch.equal(family.run(model), before)


def test_skipped_attention_scores_are_the_values_not_a_mixture():
    from diffusers.hooks import LayerSkipConfig
    from diffusers.hooks.layer_skip import _apply_layer_skip_hook

    family = FAMILIES["unet"]
    config = LayerSkipConfig(
        indices=[0],
        fqn="down_blocks.0.attentions.0.transformer_blocks",
        skip_attention=False,
        skip_ff=False,
        skip_attention_scores=True,
    )
    stock, ours = family.model(), family.model()
    apply(ours, WINDOW, layers=[0])
    for model in (stock, ours):
        _apply_layer_skip_hook(model, config, "skip")
    assert torch.equal(family.run(ours), family.run(stock))


@pytest.mark.parametrize("stock", [AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor])
def test_every_stock_unet_processor_is_stood_in_for(stock):
    family = FAMILIES["unet"]
    model = family.model()
    with apply(model, WINDOW):
        expected = family.run(model)
    model.set_attn_processor(stock(2) if stock is SlicedAttnProcessor else stock())
    with apply(model, WINDOW) as handle:
        assert close(family.run(model), expected)
        assert {row.backend for row in handle.report().layers} == {"torch"}


def test_a_processor_set_later_is_the_new_stock_one():
    family = FAMILIES["unet"]
    model = family.model()
    handle = apply(model, WINDOW)
    expected = family.run(model)
    later = AttnProcessor()
    model.set_attn_processor(later)
    assert close(family.run(model), expected)
    handle.remove()
    assert all(processor is later for processor in model.attn_processors.values())


class Custom(AttnProcessor2_0):
    """What a guidance method might put in place for a while."""

    def __call__(self, attn, hidden_states, *args, **kwargs):
        return super().__call__(attn, hidden_states, *args, **kwargs) * 0.5


def test_an_unknown_processor_is_left_alone_until_it_goes():
    family = FAMILIES["unet"]
    model = family.model()
    handle = apply(model, WINDOW)
    expected = family.run(model)
    first = handle.layers[0]
    ours, custom = first.module.processor, Custom()
    first.module.set_processor(custom)
    assert not torch.equal(family.run(model), expected)
    row = handle.report().layers[0]
    assert row.backend == "stock" and "Custom" in row.why
    assert first.module.processor is custom
    first.module.set_processor(ours)
    assert torch.equal(family.run(model), expected)
    assert handle.report().layers[0].backend == "torch"


def test_processors_rebuilt_from_their_class_are_put_right(family):
    """Loading an IP-Adapter rebuilds every self-attention processor from the class of the one in place."""
    model = family.model()
    stock = family.run(model)
    handle = apply(model, WINDOW)
    expected = family.run(model)
    for layer in handle.layers:
        layer.module.set_processor(type(layer.module.processor)())
    handle.layers[0].module.set_processor(type(handle.layers[0].module.processor)())
    assert torch.equal(family.run(model), expected)
    classes = [type(layer.module.processor) for layer in handle.layers]
    handle.remove()
    assert close(family.run(model), stock)
    for layer, cls in zip(handle.layers, classes, strict=True):
        layer.module.set_processor(cls())
    assert close(family.run(model), stock)


def test_processors_rebuilt_from_their_class_do_not_stay(family):
    model = family.model()
    handle = apply(model, WINDOW)
    classes = [type(layer.module.processor) for layer in handle.layers]
    for layer, cls in zip(handle.layers, classes, strict=True):
        layer.module.set_processor(cls())
    handle.remove()
    assert not any(isinstance(layer.module.processor, StandIn) for layer in handle.layers)


def test_a_failed_apply_leaves_nothing_behind(monkeypatch):
    model = FAMILIES["wan"].model()
    before = [vars(block.attn1).copy() for block in model.blocks]
    monkeypatch.setattr("dattn.processors.patch.stand_in", mock.Mock(side_effect=[*[None] * 2, RuntimeError("stop")]))
    with pytest.raises(RuntimeError, match="stop"):
        apply(model, WINDOW)
    assert [vars(block.attn1) for block in model.blocks][2:] == before[2:]
    assert not any(hasattr(block.attn1, "_dattn_layer") for block in model.blocks)
    assert not hasattr(model, "_dattn_handle") and not model._forward_pre_hooks


def test_branches_of_a_copy_are_its_own():
    family = FAMILIES["wan"]
    model = family.model()
    handle = apply(model, WINDOW)
    copied = copy.deepcopy(model)
    with copied.cache_context("cond"):
        assert handle.layers[0]._branch == ""
        assert copied._dattn_handle.layers[0]._branch == "cond"
    assert copied._dattn_handle.layers[0].number != handle.layers[0].number


def test_an_attention_mask_runs_stock_with_a_warning():
    family = FAMILIES["unet"]
    model = family.model()
    layer = apply(model, WINDOW).layers[0]
    family.run(model)
    attn, hidden = layer.module, torch.randn(1, layer.grid.tokens, 8)
    mask = torch.zeros(1, 1, layer.grid.tokens)
    mask[..., 5:] = -1e4
    with torch.no_grad():
        with pytest.warns(UserWarning, match="attention mask"):
            out = attn(hidden, attention_mask=mask)
        assert "mask" in layer.refusal
        assert torch.equal(out, AttnProcessor2_0()(attn, hidden, attention_mask=mask))
        with pytest.warns(UserWarning, match="12 tokens, its grid 130"):
            attn(hidden[:, :12])


def test_cross_attention_is_never_touched(family):
    model = family.model()
    before = {name: processor for name, processor in model.attn_processors.items() if "attn2" in name}
    apply(model, WINDOW)
    assert all(model.attn_processors[name] is processor for name, processor in before.items())
    assert len(before) == {"wan": 3, "unet": 7}.get(family.name, 0)
    remove(model)


def test_image_to_video_wan_keeps_its_image_branch():
    family = FAMILIES["wan"]
    model = family.model(added_kv_proj_dim=24, image_dim=6)
    inputs = family.inputs() | {
        "encoder_hidden_states": torch.randn(1, 512, 10),
        "encoder_hidden_states_image": torch.randn(1, 4, 6),
    }
    with torch.no_grad():
        stock = model(**inputs, return_dict=False)[0]
        with apply(model, Dense()) as handle:
            out = model(**inputs, return_dict=False)[0]
            assert {row.backend for row in handle.report().layers} == {"torch"}
    assert close(out, stock)
