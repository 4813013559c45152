"""Which tokens of a layer's picture follow which of several texts, and how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

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


@dataclass(frozen=True)
class Plan:
    """All texts' parts of one picture, and who in it sees whom.

    Attributes:
        parts: the base prompt's and those of the regions that act.
        groups: queries and the keys that they see among the picture's tokens, int64 each; empty where all see all.
    """

    parts: tuple[Part, ...]
    groups: tuple[tuple[Tensor, Tensor], ...]


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
    groups = _groups(covers[list(acting)] > 0, like.device) if isolate and acting else ()
    return Plan(tuple(_part(*text, like) for text in texts), groups)


def _part(text: int, share: Tensor, cover: Tensor, like: Tensor) -> Part:
    rows, near = (tensor.nonzero().flatten() for tensor in (share, cover))
    bias = None if (cover[near] == 1).all() else cover[near].log().to(like)
    device = like.device
    return Part(text, rows.to(device), share[rows, None].to(like), near.to(device), bias)


def _groups(members: Tensor, device: torch.device) -> tuple[tuple[Tensor, Tensor], ...]:
    """Tokens that are in the same of some regions, bool [regions, tokens], and the keys that they see."""
    kinds, kind = members.unique(dim=1, return_inverse=True)
    found = []
    for number, regions in enumerate(kinds.T):
        free = ~members.any(0) | (members & regions[:, None]).any(0) | ~regions.any()
        found.append(((kind == number).nonzero().flatten().to(device), free.nonzero().flatten().to(device)))
    return tuple(found)
