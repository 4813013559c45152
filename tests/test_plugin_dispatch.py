"""What we rely on inside Diffusers. A failure here means that a Diffusers release has changed it."""

import subprocess
import sys

import pytest
import torch
from diffusers.hooks._helpers import AttentionProcessorMetadata, AttentionProcessorRegistry
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    dispatch_attention_fn,
)

from dattn.plugin import apply
from dattn.processors.dispatch import attending, dattn_backend
from tests.tiny_models import FAMILIES


def test_the_enum_and_the_registry_take_our_member():
    member = dattn_backend()
    assert isinstance(member, AttentionBackendName)
    assert member == "dattn" and member.value == "dattn" and member.name == "DATTN"
    assert AttentionBackendName("dattn") is member is AttentionBackendName["DATTN"] is dattn_backend()
    assert list(AttentionBackendName).count(member) == 1
    assert hash(member) == hash("dattn")
    assert member in _AttentionBackendRegistry.list_backends()
    wanted = {"query", "key", "value", "attn_mask", "scale", "_parallel_config"}
    assert _AttentionBackendRegistry._supported_arg_names[member] == wanted


class Echo:
    name = "echo"

    def attend(self, query, key, value, scale):
        self.seen = query.shape, scale
        return value


def test_the_dispatcher_hands_over_tokens_before_heads():
    query, key, value = torch.randn(3, 2, 5, 3, 4).unbind(0)
    layer = Echo()
    with attending(layer):
        out = dispatch_attention_fn(query, key, value, scale=0.5, backend=dattn_backend())
    assert layer.seen == ((2, 3, 5, 4), 0.5)
    assert torch.equal(out, value)


def test_a_mask_or_context_parallelism_is_refused():
    query = torch.randn(1, 5, 3, 4)
    with attending(Echo()), pytest.raises(NotImplementedError, match="mask"):
        dispatch_attention_fn(query, query, query, attn_mask=torch.ones(5, 5), backend=dattn_backend())
    with attending(Echo()), pytest.raises(NotImplementedError, match="parallel"):
        dispatch_attention_fn(query, query, query, backend=dattn_backend(), parallel_config=object())


def test_choosing_the_backend_by_hand_says_what_to_do():
    query = torch.randn(1, 5, 3, 4)
    with pytest.raises(ValueError, match=r"dattn\.apply"):
        dispatch_attention_fn(query, query, query, backend=dattn_backend())


def test_the_private_names_that_we_use_are_there():
    assert all(
        hasattr(AttentionBackendName, f"_{name}_") for name in ("member_map", "value2member_map", "member_names")
    )
    assert callable(_AttentionBackendRegistry.register)
    assert attention_dispatch.dispatch_attention_fn.__kwdefaults__ == {"backend": None, "parallel_config": None}
    assert callable(AttentionProcessorRegistry.register)
    assert "skip_processor_output_fn" in AttentionProcessorMetadata.__dataclass_fields__
    assert callable(torch.overrides._get_current_function_mode_stack)


def test_wan_calls_the_dispatcher_with_the_backend_of_its_processor():
    model = FAMILIES["wan"].model()
    processor = model.blocks[0].attn1.processor
    assert {"_attention_backend", "_parallel_config"} <= set(dir(type(processor)))
    apply(model, "dense")
    FAMILIES["wan"].run(model)
    assert processor._attention_backend is None


def test_nothing_happens_on_import():
    """No Diffusers import, no backend, no CUDA, no change of the environment or of random numbers."""
    code = """
import os, sys, torch
before, state = dict(os.environ), torch.get_rng_state()
import dattn
assert "diffusers" not in sys.modules, "diffusers was imported"
assert not torch.cuda.is_initialized()
assert dict(os.environ) == before
assert torch.equal(torch.get_rng_state(), state)
from diffusers.models.attention_dispatch import AttentionBackendName
assert "dattn" not in AttentionBackendName._value2member_map_
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
