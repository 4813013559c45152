"""A layer whose tokens are spread over processes, as a ``ParallelConfig`` of Diffusers says.

Imported by the first such call: what is kept out of graphs brings the compiler in, and that takes a second.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dattn.backends import load
from dattn.grid import TokenGrid
from dattn.processors.layer import Layer
from dattn.processors.parallel import attend_spread, spread_over, tokens_of
from dattn.processors.ring import Ring, attend_ring


def attend_distributed(
    layer: Layer, query: Tensor, key: Tensor, value: Tensor, masked: bool, scale: float | None, config: Any
) -> Tensor | None:
    """[batch, heads, own tokens, head_dim] in and out, or None where the call is not for the layer.

    Args:
        masked: a mask came with the call.
        config: the ``ParallelConfig``.

    Raises:
        ValueError: controls act here; fewer heads than processes, heads that cannot be computed apart, or tokens that
            are spread in another way than is known; in a ring a pattern that is not static, or one with a tail.
    """
    context = config.context_parallel_config
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
        return _in_a_ring(layer, context._ring_mesh.get_group(), query, key, value, scale)
    else:
        return _by_heads(layer, context._ulysses_mesh.get_group(), query, key, value, scale)
    return None


@torch.compiler.disable
def _by_heads(layer: Layer, group: Any, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    grid, tokens = _parts(layer, group, query)
    heads, device = query.shape[1], query.device
    terms = (attend_spread, layer.concrete if layer.concrete.static else None, grid, heads, device, group)
    spread = layer.masks.keep(terms, lambda: spread_over(group, tokens, _work(layer, heads, device), device))
    mine = layer.concrete.for_heads(tuple(spread.heads[spread.rank]), heads)
    own = lambda q, k, v: layer.eager(q, k, v, scale, None, grid, mine)
    layer.serve()
    return attend_spread(spread, query, key, value, own)


@torch.compiler.disable
def _in_a_ring(layer: Layer, group: Any, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """``_by_heads`` where keys and values go round instead of heads."""
    if not layer.concrete.static:
        raise ValueError(f"{layer.concrete.name} looks at the keys of all processes: use ulysses_degree instead")
    grid, tokens = _parts(layer, group, query)
    mask = layer.masks.get(layer.concrete, grid, query.device)
    ring = layer.masks.keep((Ring, layer.concrete, grid, query.device, group), lambda: Ring.of(group, mask, tokens))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    layer.serve()
    return attend_ring(ring, load(layer.chosen(query)), query, key, value, scale, max(map(len, tokens)))


def _parts(layer: Layer, group: Any, query: Tensor) -> tuple[TokenGrid, list[Tensor]]:
    """The grid, and which of its tokens each process has."""
    assert layer.grid is not None  # an active layer has one
    tokens = tokens_of(layer.grid, group.size(), layer.one_stream)
    own = len(tokens[group.rank()])
    if layer.samples or own != query.shape[2]:
        raise ValueError(
            f"{layer.name}: process {group.rank()} has {query.shape[2]} tokens of {layer.grid}, not {own}; patterns "
            "know sequences that Diffusers cuts: all samples alike, text and picture each in consecutive parts"
        )
    return layer.grid, tokens


def _work(layer: Layer, heads: int, device: torch.device) -> list[float]:
    """What each head costs, as far as the grid tells."""
    if layer.grid is None or not layer.concrete.static:
        return [1.0] * heads
    mask = layer.masks.get(layer.concrete, layer.grid, device)
    visited = mask.visited.sum(0).expand(mask.groups).tolist()
    return [visited[h * mask.groups // heads] for h in range(heads)]
