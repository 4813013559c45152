"""Which tokens of a layer's picture follow which of several texts, and how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from dattn.apart import apart, listed
from dattn.block_mask import BlockMask, MaskCache

NOTHING = 1e-9
"""What is left of a share of 1 after subtracting others is rounding below this."""


class Part(NamedTuple):
    """What a text has of a picture.

    Attributes:
        text: 0 is the base prompt's, others the regions'.
        rows: int64 [rows], the tokens of the picture that follow it.
        share: [rows, 1], by how much.
        near: int64 [near], the tokens of the picture that it sees.
        bias: [near], added to the logits with which it sees them; None is 0.
    """

    text: int
    rows: Tensor
    share: Tensor
    near: Tensor
    bias: Tensor | None


@dataclass(frozen=True, eq=False)
class Kinds:
    """Tokens of a picture by the regions that they are in: who sees whom, with a pattern or without.

    Attributes:
        kind: int64 [tokens].
        sees: bool [kinds, kinds].
    """

    kind: Tensor
    sees: Tensor
    _lists: MaskCache = field(default_factory=lambda: MaskCache(64), repr=False)

    @classmethod
    def of(cls, members: Tensor) -> Kinds:
        """Of bool [regions, tokens]: tokens of no region see all and are seen by all, others those of their regions."""
        kinds, kind = members.unique(dim=1, return_inverse=True)
        free = ~kinds.any(0)
        sees = free | free[:, None] | (kinds[:, :, None] & kinds[:, None]).any(0)
        sees, merged = sees.unique(dim=0, return_inverse=True)  # kinds that see the same are one
        first = torch.stack([(merged == number).nonzero()[0, 0] for number in range(len(sees))])
        return cls(merged[kind], sees[:, first])

    @cached_property
    def groups(self) -> list[tuple[Tensor, Tensor]]:
        """The tokens of every kind, and those that they see: int64 each."""
        return [
            ((self.kind == n).nonzero().flatten(), row[self.kind].nonzero().flatten())
            for n, row in enumerate(self.sees)
        ]

    def narrowed(self, mask: BlockMask) -> BlockMask | None:
        """A pattern's block mask of the picture without what may not be seen; None where lists cannot say it.

        It is kept for as long as this is.
        """
        return self._lists.keep(mask, lambda: apart(mask, self.kind, self.sees)) if listed(mask) else None


@dataclass(frozen=True)
class Plan:
    """All texts' parts of one picture, and who in it sees whom.

    Attributes:
        parts: the base prompt's and those of the regions that act.
        kinds: of the picture's tokens, where not all see all.
    """

    parts: tuple[Part, ...]
    kinds: Kinds | None


def plan(covers: Tensor, acting: Sequence[int], weight: float, isolate: bool, like: Tensor) -> Plan:
    """The plan of a picture.

    Args:
        covers: the share of every token that lies in each region, [regions, tokens].
        acting: regions whose text is there.
        weight: of the regions against the base prompt, which has the rest.
        isolate: whether tokens of one region do not see those of another.
        like: a tensor of the wanted type and device.
    """
    shares = weight * (covers / covers.sum(0).clamp(min=1))[list(acting)]
    rest = 1 - shares.sum(0)
    rest = rest.masked_fill(rest < NOTHING, 0)
    near = [torch.ones_like(rest), *covers[list(acting)]]
    texts = zip((0, *(1 + i for i in acting)), (rest, *shares), near, strict=True)
    kinds = Kinds.of((covers[list(acting)] > 0).to(like.device)) if isolate and acting else None
    return Plan(tuple(_part(*text, like) for text in texts), None if kinds is None or kinds.sees.all() else kinds)


def _part(text: int, share: Tensor, cover: Tensor, like: Tensor) -> Part:
    rows, near = (tensor.nonzero().flatten() for tensor in (share, cover))
    bias = None if (cover[near] == 1).all() else cover[near].log().to(like)
    device = like.device
    return Part(text, rows.to(device), share[rows, None].to(like), near.to(device), bias)
