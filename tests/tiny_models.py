"""What tests do with tiny models: stock ones under an element-wise mask, and a pipeline's denoising loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dattn.attention import attention
from dattn.grid import TokenGrid
from tests.families.base import Family, Inputs


def sample(inputs: Inputs, row: int) -> Inputs:
    """One sample of a batch of two or more; tables of positions have no batch."""
    size = max(len(value) for value in inputs.values() if isinstance(value, list | Tensor) and len(value) < 4)
    batched = lambda name, value: isinstance(value, list | Tensor) and len(value) == size and not name.endswith("_ids")
    return {name: value[row : row + 1] if batched(name, value) else value for name, value in inputs.items()}


@contextmanager
def masked_sdpa(pattern: Any, grids: tuple[TokenGrid, ...]) -> Iterator[None]:
    """Stock models whose SDPA calls get the pattern's own element-wise mask wherever the length is a grid's.

    The mask that a model passes for padded keys stays. Whatever is no static pattern takes the place of the call.
    """
    plain = F.scaled_dot_product_attention
    by_length = {grid.tokens: grid for grid in grids}
    fitted = {grid.tokens: pattern.fit(grid)[0] for grid in grids}
    masks = {grid.tokens: fitted[grid.tokens].allowed(grid) for grid in grids if pattern.static}
    met = set()

    def sdpa(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **rest: object) -> Tensor:
        if key.shape[2] == query.shape[2]:
            tokens, heads = query.shape[2], query.shape[1]
            if tokens not in by_length:
                return plain(query, key, value, attn_mask=attn_mask, **rest)
            met.add(tokens)
            if not pattern.static:
                kept = None if attn_mask is None else attn_mask.reshape(-1, tokens).expand(len(query), -1)
                scale = rest.get("scale")
                return attention(query, key, value, fitted[tokens], by_length[tokens], scale=scale, key_mask=kept)
            own = masks[tokens]
            if own.ndim == 3:
                own = own[torch.arange(heads) * len(own) // heads]
            attn_mask = own if attn_mask is None else own & attn_mask
        return plain(query, key, value, attn_mask=attn_mask, **rest)

    with mock.patch.object(F, "scaled_dot_product_attention", sdpa):
        yield
    assert met == set(by_length)


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
