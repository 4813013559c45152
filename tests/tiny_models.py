"""What tests do with tiny models: stock ones under an element-wise mask, and a pipeline's denoising loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dattn.attention import attention
from dattn.grid import TokenGrid
from tests.families.base import Family, Inputs


def sample(inputs: Inputs, row: int) -> Inputs:
    """One sample of a batch of two or more; tables of positions, which are longer, have no batch."""
    size = max(len(value) for value in inputs.values() if isinstance(value, list | Tensor) and len(value) < 4)
    return {name: _row(value, row, size) for name, value in inputs.items()}


def _row(value: Any, row: int, size: int) -> Any:
    """A row of whatever is as long as the batch; a tuple, a dict or a list of another length holds several."""
    if isinstance(value, dict):
        return {name: _row(item, row, size) for name, item in value.items()}
    if isinstance(value, tuple) or (isinstance(value, list) and len(value) != size):
        return type(value)(_row(item, row, size) for item in value)
    return value[row : row + 1] if isinstance(value, list | Tensor) and len(value) == size else value


@contextmanager
def masked_sdpa(pattern: Any, grids: tuple[TokenGrid, ...]) -> Iterator[None]:
    """Stock models whose SDPA calls get the pattern's own element-wise mask wherever the length is a grid's.

    The mask that a model passes for padded keys stays. Whatever is no mask alone takes the place of the call.
    """
    plain = F.scaled_dot_product_attention
    by_length = {grid.tokens: grid for grid in grids}
    masked = pattern.static and not getattr(pattern, "tail", False)
    masks = {grid.tokens: pattern.fit(grid)[0].allowed(grid) for grid in grids if masked}
    met, layer = set(), count()

    def sdpa(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *more: Any, **rest: Any
    ) -> Tensor:
        if key.shape[2] == query.shape[2]:
            tokens, heads = query.shape[2], query.shape[1]
            if tokens not in by_length:
                return plain(query, key, value, attn_mask, *more, **rest)
            met.add(tokens)
            if not masked:
                grid = by_length[tokens]
                own = pattern.at(next(layer), 99, 0, 1).fit(grid)[0]  # which layer: for those that differ by layer
                return _in_place(own, grid, query, key, value, attn_mask, rest.get("scale"))
            own = masks[tokens]
            if own.ndim == 3:
                own = own[torch.arange(heads) * len(own) // heads]
            if attn_mask is not None and attn_mask.is_floating_point():
                attn_mask = attn_mask.where(own, -torch.inf)
            else:
                attn_mask = own if attn_mask is None else own & attn_mask
        return plain(query, key, value, attn_mask, *more, **rest)

    with mock.patch.object(F, "scaled_dot_product_attention", sdpa):
        yield
    assert met == set(by_length)


def _in_place(
    pattern: Any, grid: TokenGrid, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None
) -> Tensor:
    """Attention where a mask hides keys, or adds the product of a number of the query and one of the key."""
    width = value.shape[-1]
    if mask is not None and mask.is_floating_point():
        factor = mask[:, :, torch.arange(grid.tokens), torch.arange(grid.tokens), None].expand(*query.shape[:3], 1)
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        query, key = torch.cat([query, factor / scale], -1), torch.cat([key, factor], -1)
        value, mask = torch.cat([value, torch.zeros_like(factor)], -1), None
    elif mask is not None:
        mask = mask.expand(len(query), 1, -1, -1).any(2)[:, 0]
    return attention(query, key, value, pattern, grid, scale=scale, key_mask=mask)[..., :width]


class Pipeline:
    """The part of a pipeline that the plugin sees: components by name, a scheduler, a denoising loop."""

    def __init__(self, scheduler: object, family: Family, **models: nn.Module) -> None:
        self.scheduler = scheduler
        self.family = family
        vars(self).update(models)

    def __call__(
        self, model: nn.Module, steps: int = 4, seed: int = 0, batch: int = 1, only: int | None = None
    ) -> Tensor:
        """Denoise with classifier-free guidance, one branch after the other where the model names them.

        ``only`` denoises that sample of the batch alone.
        """
        inputs = self.family.inputs(batch, seed)
        if only is not None:
            inputs, batch = sample(inputs, only), 1
        name = "sample" if "sample" in inputs else "hidden_states"
        self.scheduler.set_timesteps(steps)
        for time in self.scheduler.timesteps:
            call = inputs | {"timestep": time.expand(batch)}
            with torch.no_grad():
                guess = self._guided(model, call)
            inputs[name] = self.scheduler.step(guess, time, inputs[name], return_dict=False)[0]
        return inputs[name]

    def _guided(self, model: nn.Module, call: Inputs) -> Tensor:
        if not hasattr(model, "cache_context"):
            return model(**call, return_dict=False)[0]
        with model.cache_context("cond"):
            cond = model(**call, return_dict=False)[0]
        with model.cache_context("uncond"):
            blank = call | {"encoder_hidden_states": torch.zeros_like(call["encoder_hidden_states"])}
            uncond = model(**blank, return_dict=False)[0]
        return uncond + 3 * (cond - uncond)
