"""The stand-ins, and what they rely on inside Diffusers: a failure here means that a release has changed it."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from diffusers.hooks._helpers import AttentionProcessorMetadata, AttentionProcessorRegistry
from diffusers.models import attention_dispatch, attention_processor
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

from dattn.processors import heart
from dattn.processors.heart import attending, dispatched, key_mask_of, sdpa
from dattn.processors.stand_in import LAYER, stand_in, unwrap, why_not


class Echo:
    """A layer that takes every call, or none."""

    name = "echo"
    active = True
    controlled = False
    pairs = False

    def __init__(self, takes=True):
        self.takes, self.seen = takes, []

    def begin(self):
        pass

    def expects(self, query, key, masked):
        self.seen.append((tuple(query.shape), tuple(key.shape), masked))
        return self.takes

    def attend(self, query, key, value, scale, key_mask, lse):
        self.scale, self.key_mask = scale, key_mask
        return value * 2

    def pass_by(self, reason):
        self.seen.append(reason)


def test_the_functions_that_we_stand_in_for_have_the_signatures_that_we_copy():
    dispatch = attention_dispatch.dispatch_attention_fn
    assert dispatched.__code__.co_varnames[:11] == dispatch.__code__.co_varnames[:11]
    assert dispatch.__kwdefaults__ == dispatched.__kwdefaults__ == {"backend": None, "parallel_config": None}
    names = ["query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"]
    assert list(sdpa.__code__.co_varnames[: len(names)]) == names
    assert all(f"{name}=" in F.scaled_dot_product_attention.__doc__ for name in names[3:])
    assert attention_processor.F is F
    assert callable(AttentionProcessorRegistry.register)
    assert "skip_processor_output_fn" in AttentionProcessorMetadata.__dataclass_fields__
    assert callable(torch.overrides._get_current_function_mode_stack)


@pytest.mark.parametrize("takes", [True, False])
def test_both_ways_to_the_heart(takes):
    query, key, value = torch.randn(3, 2, 5, 3, 4).unbind(0)
    layer = Echo(takes)
    with attending(layer):
        out = dispatched(query, key, value, scale=0.5)
        turned = sdpa(*(t.transpose(1, 2) for t in (query, key, value)), scale=0.5).transpose(1, 2)
    assert layer.seen == [((2, 3, 5, 4), (2, 3, 5, 4), False)] * 2
    heads_first = [t.transpose(1, 2) for t in (query, key, value)]
    expected = value * 2 if takes else F.scaled_dot_product_attention(*heads_first, scale=0.5).transpose(1, 2)
    assert torch.equal(out, expected) and torch.equal(turned, expected)


def test_fewer_heads_of_keys_are_repeated():
    layer, query, key = Echo(), torch.randn(1, 6, 5, 4), torch.randn(1, 2, 5, 4)
    with attending(layer, 0.25):
        out = sdpa(query, key, key, enable_gqa=True)
    assert layer.scale == 0.25
    assert torch.equal(out, key.repeat_interleave(3, 1) * 2)


def test_a_ring_of_rings_is_left_to_the_dispatcher(monkeypatch):
    layer, query = Echo(), torch.randn(1, 5, 3, 4)
    both = SimpleNamespace(context_parallel_config=SimpleNamespace(ring_degree=2, ulysses_degree=2))
    asked = []

    def dispatcher(query, *_, parallel_config, **options):
        asked.append(parallel_config)
        return query

    monkeypatch.setattr(attention_dispatch, "dispatch_attention_fn", dispatcher)
    with attending(layer):
        assert torch.equal(dispatched(query, query, query, parallel_config=both), query)
        assert torch.equal(dispatched(query, query, query, torch.ones(5, 5), parallel_config=both), query)
    assert asked == [both, both]
    assert "give one of them" in layer.seen[0] and "a mask or a context" in layer.seen[1]


@pytest.mark.parametrize(
    ("shape", "kind", "is_key_mask"),
    [
        ((2, 1, 1, 5), torch.bool, True),
        ((1, 1, 1, 5), torch.bool, True),
        ((2, 5), torch.bool, True),
        ((1, 5), torch.bool, True),
        ((5, 5), torch.bool, False),
        ((2, 1, 5, 5), torch.bool, False),
        ((2, 3, 1, 5), torch.bool, False),
        ((2, 1, 1, 5), torch.float32, False),
        ((2, 4), torch.bool, False),
    ],
)
def test_masks_that_hide_keys_alone(shape, kind, is_key_mask):
    mask = (torch.randn(shape) > 0).to(kind)
    found = key_mask_of(mask, 2, 5)
    assert (found is not None) == is_key_mask
    if is_key_mask:
        assert torch.equal(found, mask.reshape(-1, 5).expand(2, 5))


def test_a_stand_in_is_the_processor_in_all_but_its_heart():
    stock = AttnProcessor2_0()
    stock.mark = 1
    ours = stand_in(stock)
    assert isinstance(ours, AttnProcessor2_0) and type(ours) is not AttnProcessor2_0
    assert type(ours) is type(stand_in(AttnProcessor2_0()))
    ours.mark = 2
    assert stock.mark == 2
    back = unwrap(ours)
    assert type(back) is AttnProcessor2_0 and back.mark == 2
    assert unwrap(stock) is stock
    assert why_not(ours) == why_not(stock) == ""
    module = attention_processor.Attention(8, heads=2, dim_head=4, processor=ours)
    hidden = torch.randn(1, 5, 8)
    assert torch.equal(module(hidden), stock(module, hidden))
    setattr(module, LAYER, Echo())
    assert not torch.equal(module(hidden), stock(module, hidden))
    assert heart._current.layer is None


def test_a_processor_that_spells_attention_out_keeps_the_scale_of_its_module():
    module = attention_processor.Attention(8, heads=2, dim_head=4, scale_qk=False, processor=AttnProcessor())
    layer = Echo()
    setattr(module, LAYER, layer)
    stand_in(AttnProcessor())(module, torch.randn(1, 5, 8))
    assert layer.scale == module.scale == 1.0


def test_a_call_that_is_passed_by_keeps_that_scale_too():
    module = attention_processor.Attention(8, heads=2, dim_head=4, scale_qk=False, processor=AttnProcessor())
    hidden = torch.randn(1, 5, 8)
    expected = module(hidden)
    setattr(module, LAYER, Echo(takes=False))
    torch.testing.assert_close(stand_in(AttnProcessor())(module, hidden), expected)


def test_a_processor_of_that_name_from_elsewhere_is_not_taken_for_it():
    named = type("AttnProcessor", (), {"__call__": lambda self, attn, hidden: hidden * 7, "__module__": "elsewhere"})
    assert "calls neither" in why_not(named())
    assert why_not(AttnProcessor()) == ""


def test_a_processor_without_a_dict_is_left_alone():
    slotted = type("Slotted", (), {"__slots__": (), "__call__": AttnProcessor2_0.__call__})
    assert "Slotted" in why_not(slotted())


class Elsewhere(WanAttnProcessor):
    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)


def test_a_processor_without_a_heart_of_its_own_says_so():
    assert why_not(WanAttnProcessor()) == ""
    assert "Elsewhere calls neither" in why_not(Elsewhere())
    assert "function calls neither" in why_not(lambda: None)


def test_nothing_happens_on_import():
    """No Diffusers import, no CUDA, no change of the environment or of random numbers."""
    code = """
import os, sys, torch
before, state = dict(os.environ), torch.get_rng_state()
import dattn
assert "diffusers" not in sys.modules, "diffusers was imported"
assert not torch.cuda.is_initialized()
assert dict(os.environ) == before
assert torch.equal(torch.get_rng_state(), state)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
