"""What ``torch.compile`` sees of a layer's attention: one opaque operator, so that a whole model is one graph.

The graph holds the layer's grid, and reads the layer's number from a tensor: blocks that are alike but for their
number share one graph. Pattern, mask, step and backend stay in Python, behind the
operator, so a pattern that changes with the step recompiles nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from dattn.adapters.base import Positions
from dattn.backends import Backend, load
from dattn.backends.problem import Problem, check_mask, empty_like_model
from dattn.grid import TokenGrid
from dattn.patterns.dense import Dense
from dattn.processors.layer import Layer, resized

NO_CUDA_GRAPH = (torch.Tag.cudagraph_unsafe,)  # a captured graph would repeat what Python decided once
_layers: WeakValueDictionary[int, Layer] = WeakValueDictionary()
_numbers = count()
Sizes = tuple[int, int, int, int, int]


def number_of(layer: Layer) -> Tensor:
    """int64 scalar on the CPU by which the operator finds a layer for as long as something else holds it."""
    number = next(_numbers)
    _layers[number] = layer
    with torch.inference_mode(False):
        return torch.tensor(number, device="cpu")


def attend(
    number: Tensor,
    sizes: Sizes | Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    key_mask: Tensor | None = None,
) -> Tensor:
    """The layer's attention on [batch, heads, tokens, head_dim], as one node of the graph.

    ``sizes`` are ``TokenGrid.sizes``, or what ``measured`` gave.
    """
    known, found = ([], sizes) if isinstance(sizes, Tensor) else (sizes, None)
    return _attend(query, key, value, number, known, scale, key_mask, found)[0]


@torch.library.custom_op("dattn::measured", mutates_args=())
def measured(ids: Tensor, text: int, video: bool) -> Tensor:
    """int64 [5] on the CPU: the sizes of the grid that a table of positions tells."""
    return torch.tensor(Positions(ids, text, video).grid().sizes, device="cpu")


@measured.register_fake
def _(ids: Tensor, text: int, video: bool) -> Tensor:
    return torch.empty(5, dtype=torch.int64, device="cpu")


@torch.library.custom_op("dattn::attend", mutates_args=(), tags=NO_CUDA_GRAPH)
def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    number: Tensor,
    sizes: Sequence[int],
    scale: float,
    key_mask: Tensor | None,
    found: Tensor | None,
) -> tuple[Tensor, Tensor]:
    layer, grid = _entered(number, query, sizes, found)
    with torch.autocast(query.device.type, enabled=False):
        if layer.active and not layer.concrete.static:
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
    found: Tensor | None,
    results: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """``results``: output, LSE, and the gradients of both."""
    layer, grid = _entered(number, query, sizes, found)
    if layer.pattern is None:
        raise RuntimeError(
            f"{layer.name}: its handle was removed before the backward pass, which needs it: remove it later"
        )
    if not layer.concrete.static:
        name = layer.concrete.name
        raise NotImplementedError(f"{name} has no gradient in a compiled model: train it uncompiled, or take a pattern")
    with torch.autocast(query.device.type, enabled=False):
        problem = _problem(layer, grid, query, key, value, scale, key_mask)
        grads = _backend(layer, query).backward(problem, *results)
    return _placed(grads[0]), _placed(grads[1]), _placed(grads[2])


def _entered(number: Tensor, query: Tensor, sizes: Sequence[int], found: Tensor | None) -> tuple[Layer, TokenGrid]:
    """A layer on a grid that it may not have noted yet: graphs note things last."""
    layer = _layers.get(int(number))
    if layer is None:
        raise RuntimeError("this graph was compiled with a dattn handle that is gone: compile the model again")
    frames, height, width, before, after = sizes if found is None else found.tolist()
    grid = TokenGrid(frames, height, width, text=(before, after))
    own = resized(grid, query.shape[2])
    if own is None:
        raise ValueError(f"{layer.name}: the sequence has {query.shape[2]} tokens, its grid {grid.tokens} ({grid})")
    layer.enter(grid)
    return layer, own


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
    pattern = layer.concrete if layer.active else Dense()  # "auto" may decide so on a grid that a graph does not know
    mask = layer.masks.get(pattern, grid, query.device)
    problem = Problem(query, key, value, mask, scale, key_mask)
    check_mask(problem)
    return problem


def _wide(query: Tensor) -> torch.dtype:
    return torch.promote_types(query.dtype, torch.float32)


@_attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return empty_like_model(value), query.new_empty(query.shape[:3], dtype=_wide(query))


@_gradients.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return empty_like_model(query), empty_like_model(key), empty_like_model(value)


def _placed(tensor: Tensor) -> Tensor:
    """The tensor, in memory as the compiler was told."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, number, *ctx.rest, key_mask, found = inputs
    ctx.save_for_backward(query, key, value, number, key_mask, found, *output)


def _backward(ctx: Any, grad_output: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, number, key_mask, found, *results = ctx.saved_tensors
    grads = _gradients(query, key, value, number, *ctx.rest, key_mask, found, [*results, grad_output, grad_lse])
    return *grads, None, None, None, None, None


_attend.register_autograd(_backward, setup_context=_keep)
