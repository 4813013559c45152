"""A model's own attention processor with another heart.

A stand-in runs the code of the processor that it stands in for, with the two names by which processors call attention
bound to ``heart``. Projections, norms, rotary embedding, LoRA, fused weights and image branches therefore stay the
model's, and nothing of Diffusers is copied or registered. It is an instance of a subclass of the processor's class and
shares its attributes, so whatever Diffusers asks or sets, it asks and sets on both. The layer that it serves hangs on
the attention module; a module without one runs the processor's own code.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from dattn.processors.heart import attending, dispatched, sdpa
from dattn.processors.layer import Layer

LAYER = "_dattn_layer"
SPELLED_OUT = frozenset({"AttnProcessor", "SlicedAttnProcessor", "XFormersAttnProcessor"})
"""Processors that compute what ``AttnProcessor2_0`` computes in other words, with the module's own scale."""


class StandIn:
    """What every stand-in class is, whichever processor it stands in for."""

    stock: type
    """The class that it stands in for."""


def why_not(stock: Any) -> str:
    """Why a processor cannot be stood in for; ``""`` if it can."""
    if _code_with_heart(_class(stock)) is not None and hasattr(stock, "__dict__"):
        return ""
    return f"its processor {_class(stock).__name__} calls neither PyTorch's attention nor Diffusers' dispatcher itself"


def stand_in(stock: Any) -> Any:
    """A stand-in for ``stock``, which is not written to."""
    return _sharing(stock, _class_for(_class(stock)))


def unwrap(processor: Any) -> Any:
    """The processor behind a stand-in; any other as it is."""
    return _sharing(processor, processor.stock) if isinstance(processor, StandIn) else processor


def _class(processor: Any) -> type:
    return processor.stock if isinstance(processor, StandIn) else type(processor)


def _sharing(processor: Any, cls: type) -> Any:
    """An instance of ``cls`` with the attributes of ``processor``, now and later."""
    other: Any = object.__new__(cls)
    object.__setattr__(other, "__dict__", processor.__dict__)  # past ``nn.Module``, which would file it away
    return other


@functools.cache
def _class_for(stock: type) -> type:
    """The subclass of a processor's class whose instances are stand-ins."""
    own: Any = vars(stock).get("__call__") or stock.__call__
    with_heart = _code_with_heart(stock)
    assert with_heart is not None  # ``why_not`` was asked

    @functools.wraps(own)
    def call(self: Any, attn: Any, *args: Any, **kwargs: Any) -> Any:
        layer: Layer | None = getattr(attn, LAYER, None)
        if layer is None or not (layer.active or layer.controlled):
            return own(self, attn, *args, **kwargs)
        with attending(layer, attn.scale if _spelled_out(stock) else None):
            return with_heart(self, attn, *args, **kwargs)

    names = {"__call__": call, "stock": stock, "__module__": stock.__module__, "__doc__": stock.__doc__}
    cls = type(stock.__name__, (StandIn, stock), names)
    _register_with_guidance(cls)
    return cls


def _spelled_out(stock: type) -> bool:
    return stock.__name__ in SPELLED_OUT and stock.__module__ == "diffusers.models.attention_processor"


@functools.cache
def _code_with_heart(stock: type) -> Callable[..., Any] | None:
    """A processor's ``__call__`` that calls our heart; None where it calls none itself."""
    if _spelled_out(stock):
        from diffusers.models.attention_processor import AttnProcessor2_0

        stock = AttnProcessor2_0
    code = stock.__call__
    if not isinstance(code, FunctionType):
        return None
    # A graph compiler looks the globals of a module with a name up in that module, not in what is given here.
    names = {name: value for name, value in code.__globals__.items() if name != "__name__"}
    uses = set(code.__code__.co_names)
    if "dispatch_attention_fn" in uses:
        names["dispatch_attention_fn"] = dispatched
    elif {"F", "scaled_dot_product_attention"} <= uses and names.get("F") is F:
        names["F"] = _functional()
    else:
        return None
    # A copy: a compiler keeps its results with the code, and they would look for the other function's names.
    rebound = FunctionType(code.__code__.replace(), names, code.__name__, code.__defaults__, code.__closure__)
    rebound.__kwdefaults__ = code.__kwdefaults__
    return rebound


@functools.cache
def _functional() -> ModuleType:
    """``torch.nn.functional`` with our attention."""
    module = ModuleType("dattn_functional")
    vars(module).update({name: value for name, value in vars(F).items() if not name.startswith("__")})
    vars(module)["scaled_dot_product_attention"] = sdpa
    return module


def _register_with_guidance(cls: type) -> None:
    """Tell Diffusers' guidance hooks what skipping a stand-in returns; they look it up by class."""
    from diffusers.hooks._helpers import AttentionProcessorMetadata, AttentionProcessorRegistry

    skip: Any = _skip
    AttentionProcessorRegistry.register(cls, AttentionProcessorMetadata(skip_processor_output_fn=skip))


def _skip(
    module: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor | tuple[Tensor, Tensor]:
    """The inputs: of joint attention both, which hands back both; some self-attention is given the same twice."""
    if encoder_hidden_states is None or encoder_hidden_states is hidden_states:
        return hidden_states
    return hidden_states, encoder_hidden_states
