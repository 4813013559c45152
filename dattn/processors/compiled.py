"""What ``torch.compile`` sees of a layer's attention: one opaque operator, so that a whole model is one graph.

The graph holds the layer's grid, and reads the layer's number from a tensor: blocks that are alike but for their
number share one graph. Pattern, mask, step and backend stay in Python, behind the
operator, so a pattern that changes with the step recompiles nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from dattn.backends import Backend, load
from dattn.backends.problem import Problem, empty_like_model
from dattn.grid import TokenGrid

if TYPE_CHECKING:
    from dattn.processors.layer import Layer

NO_CUDA_GRAPH = (torch.Tag.cudagraph_unsafe,)  # a captured graph would repeat what Python decided once
_layers: WeakValueDictionary[int, Layer] = WeakValueDictionary()
_numbers = count()


def number_of(layer: Layer) -> Tensor:
    """int64 scalar on the CPU by which the operator finds a layer for as long as something else holds it."""
    number = next(_numbers)
    _layers[number] = layer
    return torch.tensor(number)


def attend(
    number: Tensor,
    grid: TokenGrid,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    key_mask: Tensor | None = None,
) -> Tensor:
    """The layer's attention on [batch, heads, tokens, head_dim], as one node of the graph."""
    return _attend(query, key, value, number, grid.sizes, scale, key_mask)[0]


@torch.library.custom_op("dattn::attend", mutates_args=(), tags=NO_CUDA_GRAPH)
def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    number: Tensor,
    sizes: Sequence[int],
    scale: float,
    key_mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    layer, grid = _entered(number, sizes)
    with torch.autocast(query.device.type, enabled=False):
        if not layer.concrete.static:
            output = layer.eager(query, key, value, scale, key_mask, grid)
            return _placed(output), query.new_zeros(query.shape[:3], dtype=_wide(query))
        output, lse = _backend(layer, query).forward(_problem(layer, grid, query, key, value, scale, key_mask))
    return _placed(output), lse.contiguous()


@torch.library.custom_op("dattn::attend_backward", mutates_args=(), tags=NO_CUDA_GRAPH)
def _gradients(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    number: Tensor,
    sizes: Sequence[int],
    scale: float,
    key_mask: Tensor | None,
    results: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """``results``: output, LSE, and the gradients of both."""
    layer, grid = _entered(number, sizes)
    if not layer.concrete.static:
        name = layer.concrete.name
        raise NotImplementedError(f"{name} has no gradient in a compiled model: train it uncompiled, or take a pattern")
    with torch.autocast(query.device.type, enabled=False):
        problem = _problem(layer, grid, query, key, value, scale, key_mask)
        grads = _backend(layer, query).backward(problem, *results)
    return _placed(grads[0]), _placed(grads[1]), _placed(grads[2])


def _entered(number: Tensor, sizes: Sequence[int]) -> tuple[Layer, TokenGrid]:
    """A layer on a grid that it may not have noted yet: graphs note things last."""
    layer = _layers.get(int(number))
    if layer is None:
        raise RuntimeError("this graph was compiled with a dattn handle that is gone: compile the model again")
    frames, height, width, before, after = sizes
    grid = TokenGrid(frames, height, width, text=(before, after))
    layer.enter(grid)
    return layer, grid


def _backend(layer: Layer, query: Tensor) -> Backend:
    return load(layer.chosen(query))


def _problem(
    layer: Layer,
    grid: TokenGrid,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    key_mask: Tensor | None,
) -> Problem:
    mask = layer.masks.get(layer.concrete, grid, query.device)
    return Problem(query, key, value, mask, scale, key_mask)


def _wide(query: Tensor) -> torch.dtype:
    return torch.promote_types(query.dtype, torch.float32)


@_attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return empty_like_model(query), query.new_empty(query.shape[:3], dtype=_wide(query))


@_gradients.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return empty_like_model(query), empty_like_model(key), empty_like_model(value)


def _placed(tensor: Tensor) -> Tensor:
    """The tensor, in memory as the compiler was told."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, number, *ctx.rest, key_mask = inputs
    ctx.save_for_backward(query, key, value, number, key_mask, *output)


def _backward(ctx: Any, grad_output: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, number, key_mask, *results = ctx.saved_tensors
    grads = _gradients(query, key, value, number, *ctx.rest, key_mask, [*results, grad_output, grad_lse])
    return *grads, None, None, None, None


_attend.register_autograd(_backward, setup_context=_keep)
