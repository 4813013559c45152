"""Tree: tokens that are alike next to each other, by halving along where they differ most."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dattn.on_cpu import argsort
from dattn.orders.by_content import ByContent
from dattn.patterns.base import check_count
from dattn.principal import along, leading
from dattn.runs import runs
from dattn.sums import in_order


@dataclass(frozen=True)
class Tree(ByContent):
    """Tokens that are alike next to each other, queries and keys each for themselves, head by head.

    All tokens of a head are sorted along the direction in which they differ most (the first principal component, by
    power iteration) and cut into ``ways`` equal parts; each of these is sorted along its own direction and cut again,
    down to single blocks. Blocks are full, unlike k-means clusters, and a mean says more of a block's tokens than in
    any order of places, which both scores and tails live on. All of that happens in the few directions in which the
    head's tokens differ most: blocks are as much alike as with all of them, for a third of the time.

    Args:
        ways: parts that every cut makes; more take fewer levels, and are much less exact.
        steps: power iterations for every direction.
        dims: directions of the head that are looked at; its size or more: all of them.

    Raises:
        ValueError: fewer than 2 parts, no iteration, or no direction.
    """

    ways: int = 2
    steps: int = 8
    dims: int = 8

    def __post_init__(self) -> None:
        check_count("ways", self.ways, least=2)
        check_count("steps", self.steps)
        check_count("dims", self.dims)

    def sorted(self, tokens: Tensor, block_size: int) -> Tensor:
        """int64 [batch, heads, tokens]: the order of float [batch, heads, tokens, head_dim]."""
        count, device = tokens.shape[2], tokens.device
        few, start = leading(tokens.flatten(0, 1), self.dims)
        few, order = few[None], torch.arange(count, device=device).expand(1, len(few), -1)
        bounds = [0, -(-count // block_size)]  # of the parts, in blocks
        while max(b - a for a, b in pairwise(bounds)) > 1:
            ends = (torch.tensor(bounds, device=device) * block_size).clamp_max(count)
            parts, there = runs(few, ends.diff())
            places = argsort(along(parts[0], ends.diff(), start, self.steps).masked_fill(~there, torch.inf))
            places += ends[:-1, None]
            moves = (places.flatten(1) if there.all() else places[:, there])[None]
            few, order = in_order(few, moves), order.gather(2, moves)
            bounds = [0, *(e for a, b in pairwise(bounds) for e in _cuts(a, b, self.ways))]
        return order.view(tokens.shape[:3])


def _cuts(first: int, last: int, ways: int) -> list[int]:
    """The ends of at most ``ways`` equal parts of first … last."""
    parts = min(ways, last - first)
    return [first + (last - first) * (i + 1) // parts for i in range(parts)]
