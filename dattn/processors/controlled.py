"""What the controls of a layer make of a call, outside of any graph.

Imported by the first such call: what is kept out of graphs brings the compiler in, and that takes a second.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dattn.attention import Narrow, attend_over
from dattn.control.base import Call
from dattn.processors.heart import Stock, as_many_heads, attend_alone, key_mask_of
from dattn.processors.layer import Layer
from dattn.processors.parts import OWN, Parts


@torch.compiler.disable
def attend_controlled(
    layer: Layer, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None, stock: Stock
) -> Tensor | None:
    """[batch, heads, tokens, head_dim] in and out, or None where the call is not for the controls."""
    key, value = (as_many_heads(t, query) for t in (key, value))

    parts = Parts((query, key, value, mask), layer.chain.acting)

    def patterned(call: Call, lse: bool = False) -> Any:
        given = call.query, call.key, call.value, call.mask
        layer.part = parts.of(given)
        return attend_alone(layer, *given, False, scale, lse) if layer.active else None

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
