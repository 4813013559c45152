"""Patterns of one's own with a mask that does not fit, for the tests of every backend."""

from dataclasses import dataclass

import torch

from dattn import Radial, TokenGrid

GRID = TokenGrid(3, 4, 5)


@dataclass(frozen=True)
class Elsewhere(Radial):
    """Its mask is for another grid, of ``frames``."""

    frames: int = 2

    def mask(self, grid):
        return Radial(block_size=16).mask(TokenGrid(self.frames, 4, 5))


@dataclass(frozen=True)
class OnMeta(Radial):
    """Its mask stays on another device."""

    def mask(self, grid):
        mask = super().mask(grid).to("meta")
        object.__setattr__(mask, "to", lambda device: mask)
        return mask


WRONG = {
    "fewer tokens": (Elsewhere(block_size=16), "a mask of 40 queries and 40 keys for 60 tokens: .*pattern.mask"),
    "more tokens": (Elsewhere(block_size=16, frames=300), "a mask of 6000 queries and 6000 keys for 60 tokens"),
    "another device": (OnMeta(block_size=16), "a mask on meta, the query on cpu: move it"),
}


def inputs():
    return torch.randn(3, 1, 2, GRID.tokens, 16, generator=torch.Generator().manual_seed(0))
