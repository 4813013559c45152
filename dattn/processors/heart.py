"""The heart of an attention processor: what it calls with query, key and value.

``sdpa`` and ``dispatched`` have the signatures of ``F.scaled_dot_product_attention`` and of Diffusers'
``dispatch_attention_fn``. Inside ``attending(layer)`` they compute what the layer's pattern and controls say; a call
that is not for those goes to the function whose place they take.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dattn.attention import Narrow, attend_over
from dattn.control.base import Call
from dattn.processors.layer import Layer
from dattn.processors.parts import OWN, Parts

Stock = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""What a processor's call would have run: query, key, value, mask -> output."""


class _Current(threading.local):
    """Set in every thread from the start: a compiler that first saw it missing would not find it again."""

    def __init__(self) -> None:
        self.layer: Layer | None = None
        self.scale: float | None = None


_current = _Current()


@contextmanager
def attending(layer: Layer, scale: float | None = None) -> Iterator[None]:
    """Inside, whatever reaches this file in this thread is computed by ``layer``.

    ``scale`` is the factor of the logits where the call names none; None means head_dim ** -0.5.
    """
    outer = _current.layer, _current.scale
    _current.layer, _current.scale = layer, scale
    layer.begin()
    try:
        yield
    finally:
        _current.layer, _current.scale = outer


def sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """[batch, heads, tokens, head_dim] in and out."""
    scale = _current.scale if scale is None else scale

    def stock(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        rest = mask, dropout_p, is_causal
        return F.scaled_dot_product_attention(query, key, value, *rest, scale=scale, enable_gqa=enable_gqa)

    return _compute(query, key, value, attn_mask, is_causal, scale, stock)


def dispatched(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    attention_kwargs: dict[str, Any] | None = None,
    *,
    backend: Any = None,
    parallel_config: Any = None,
) -> Tensor:
    """[batch, tokens, heads, head_dim] in and out."""
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    def stock(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        tokens_first = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        rest = mask, dropout_p, is_causal, scale, enable_gqa, attention_kwargs
        where = {"backend": backend, "parallel_config": parallel_config}
        return dispatch_attention_fn(*tokens_first, *rest, **where).transpose(1, 2)

    heads_first = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    if parallel_config is None:
        return _compute(*heads_first, attn_mask, is_causal, scale, stock).transpose(1, 2)
    ours = _attend_spread(*heads_first, attn_mask is not None or is_causal, scale, parallel_config)
    return (stock(*heads_first, attn_mask) if ours is None else ours).transpose(1, 2)


def _compute(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    stock: Stock,
) -> Tensor:
    """A call of attention: under the controls of the layer, by its pattern, or by ``stock``."""
    layer = _current.layer
    assert layer is not None  # a stand-in is attending
    if layer.controlled and not causal:
        ours = _controlled(layer, query, key, value, mask, scale, stock)
    else:
        ours = _attend(layer, query, key, value, mask, causal, scale) if layer.active else None
    return stock(query, key, value, mask) if ours is None else ours


@torch.compiler.disable
def _controlled(
    layer: Layer, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None, stock: Stock
) -> Tensor | None:
    """What the controls of a layer make of a call, or None where it is not for them."""
    key, value = (_as_many_heads(t, query) for t in (key, value))

    parts = Parts((query, key, value, mask), layer.chain.acting)

    def patterned(call: Call, lse: bool = False) -> Any:
        given = call.query, call.key, call.value, call.mask
        layer.part = parts.of(given)
        return _attend(layer, *given, False, scale, lse) if layer.active else None

    def base(call: Call) -> Tensor:
        ours = patterned(call)
        if (
            ours is None and mask is None and call.mask is not None
        ):  # a control hides keys: not every backend takes a mask
            return F.scaled_dot_product_attention(call.query, call.key, call.value, call.mask, scale=call.scale)
        return stock(call.query, call.key, call.value, call.mask) if ours is None else ours

    def pair(call: Call) -> tuple[Tensor, Tensor]:
        ours = patterned(call, lse=True)
        return call.aside() if ours is None else ours

    try:
        return layer.chain.run(query, key, value, mask, scale, base, pair, layer.active, partial(_over, layer))
    finally:
        layer.part = OWN
        if not parts.met:
            layer.turn()  # as if it had been: the next one is another branch's


def _over(layer: Layer, call: Call, narrow: Narrow) -> tuple[Tensor, Tensor] | None:
    """What a layer computes over a part of its pattern's block mask, or None where it has none for the call."""
    key_mask = key_mask_of(call.mask, len(call.query), call.key.shape[2])
    plain = call.mask is None or key_mask is not None
    if layer.samples or not plain or not layer.active or not layer.expects(call.query, call.key, False):
        return None
    grid = layer.grid_of(call.query.shape[2])
    assert grid is not None  # ``expects`` was asked
    layer.chosen(call.query)
    given = call.query, call.key, call.value, layer.concrete, grid, narrow
    options: dict[str, Any] = {"scale": call.scale, "key_mask": key_mask, "backend": layer.backend}
    return attend_over(*given, **options, state={"masks": layer.masks})


def _attend(
    layer: Layer,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    lse: bool = False,
) -> Any:
    """What the current layer computes, with ``lse`` a pair, or None where the call is not for it."""
    bias = None
    if layer.pairs and mask is not None and mask.shape[-2] == mask.shape[-1] == key.shape[2]:
        mask = mask[:, 0].diagonal(dim1=1, dim2=2)
        if mask.dtype != torch.bool:
            bias, mask = mask, None
    key_mask = key_mask_of(mask, len(query), key.shape[2])
    if not layer.expects(query, key, causal or (mask is not None and key_mask is None)):
        return None
    key, value = (_as_many_heads(t, query) for t in (key, value))
    if bias is None:
        return layer.attend(query, key, value, scale, key_mask, lse)
    scale, width = query.shape[-1] ** -0.5 if scale is None else scale, value.shape[-1]
    longer = _with_bias(query, key, value, bias, scale)
    if not lse:
        return layer.attend(*longer, scale)[..., :width]
    output, sums = layer.attend(*longer, scale, lse=True)
    return output[..., :width], sums


def _as_many_heads(tensor: Tensor, query: Tensor) -> Tensor:
    """Keys or values with a head for every head of the queries, which may share them."""
    shared = query.shape[1] // tensor.shape[1]
    return tensor if shared == 1 else tensor.repeat_interleave(shared, 1)


def _with_bias(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Longer heads, whose logits have added what ``bias`` [batch, tokens] says of query and key, multiplied."""
    column = F.pad(bias.to(query.dtype)[:, None, :, None], (0, 7)).expand(*query.shape[:3], 8)  # in eights for GPUs
    return torch.cat([query, column / scale], -1), torch.cat([key, column], -1), F.pad(value, (0, 8))


def _attend_spread(
    query: Tensor, key: Tensor, value: Tensor, masked: bool, scale: float | None, config: Any
) -> Tensor | None:
    """The same where every process has some of the tokens, as a ``ParallelConfig`` of Diffusers says."""
    layer, context = _current.layer, config.context_parallel_config
    assert layer is not None
    if layer.controlled:
        names = ", ".join(type(control).__name__ for control in layer.chain.acting)
        raise ValueError(
            f"{names} at {layer.name} under context parallelism, where no process has all tokens: leave control= out, "
            "or run the model without a parallel configuration"
        )
    if masked or key.shape != query.shape:
        layer.pass_by("a mask or a context came with context parallelism, which serves plain self-attention")
    elif context.ring_degree > 1 and context.ulysses_degree > 1:
        layer.pass_by("context parallelism with ring_degree and ulysses_degree at once: give one of them")
    elif context.ring_degree > 1:
        return layer.attend_ring(context._ring_mesh.get_group(), query, key, value, scale)
    else:
        return layer.attend_spread(context._ulysses_mesh.get_group(), query, key, value, scale)
    return None


def key_mask_of(mask: Tensor | None, batch: int, tokens: int) -> Tensor | None:
    """bool [batch, tokens] where a boolean mask is alike for all queries and heads; otherwise None."""
    if mask is None or mask.dtype != torch.bool:
        return None
    if mask.ndim == 4 and mask.shape[1] == mask.shape[2] == 1:
        mask = mask[:, 0, 0]
    if mask.ndim != 2 or mask.shape[1] != tokens or len(mask) not in (1, batch) or tokens == batch == len(mask):
        return None
    return mask.expand(batch, -1)
