"""Where each concept of a training picture is, told by the model's own attention (AttenCraft, arXiv 2405.17965).

    spread = A⁴ c²                A: self-attention, mean over heads; c: the map of the class in cross-attention

mean over layers, each brought to [0, 1]. A place belongs to a concept whose value exceeds those of all others, and of
the background, 1 - the largest, by a margin. The powers are taken one after the other, on values: no map is built.
Masks are 32 x 32, whatever the level of the maps, and are looked for again as the model learns: new ones take the place
of the old where their structural similarity is 0.8 or more for every concept, so that none is lost on the way.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dattn.control.base import Call, Control, Place
from dattn.control.map_store import MapStore, resize
from dattn.metrics import ssim

from .concepts import to_unit

SIDE = 32
"""Height and width of masks."""
TOKENS = SIDE**2
"""Of the layers whose self-attention is looked at, or as near to it as the model has them."""
POWER, MARGIN = 4, 0.1
ALIKE = 0.8
"""The least structural similarity of masks to those that they replace."""


class Spread(Control):
    """Carries maps along self-attention in a forward pass of a bare model."""

    keeps_sums = True

    def __init__(self) -> None:
        self._maps: Tensor | None = None
        self._store = MapStore((1, SIDE, SIDE))

    def watch(self, maps: Tensor | None) -> None:
        """A forward pass for samples with these maps, [samples, maps, height, width], comes; None ends it."""
        self._maps, self._store = maps, MapStore((1, SIDE, SIDE))

    def acts(self, place: Place) -> bool:
        """In self-attention of one level."""
        if self._maps is None or place.kind != "self":
            return False
        levels = {grid.visual for grid in self.stage.levels} or {place.grid.visual}
        return place.grid.visual == min(levels, key=lambda visual: abs(visual - TOKENS))

    def edit(self, call: Call) -> Tensor:
        """Note the maps that were carried; attention as it is."""
        assert self._maps is not None
        shape, (heads, _, width) = call.place.grid.shape, call.value.shape[1:]
        parts = resize(self._maps[:, :, None], shape).clamp(min=0).square().flatten(2).mT.split(width, -1)
        carried = torch.cat([self._carried(call, part.to(call.value), heads, width) for part in parts], -1)
        self._store.add(carried.mT.unflatten(2, shape))
        return call.attend()

    def _carried(self, call: Call, columns: Tensor, heads: int, width: int) -> Tensor:
        """A⁴ of [samples, tokens, columns], no more of these than a head is wide."""
        count = columns.shape[-1]
        for _ in range(POWER):
            value = F.pad(columns, (0, width - count))[:, None].expand(-1, heads, -1, -1)
            columns = call.with_values(value.contiguous()).attend()[..., :count].mean(1)
        return columns

    def masks(self) -> Tensor:
        """float32 [samples, maps, SIDE, SIDE], 1 where a place belongs to a concept and 0 elsewhere."""
        return assigned(to_unit(self._store.mean[:, :, 0]))


def assigned(values: Tensor) -> Tensor:
    """To whom places belong: values [samples, concepts, height, width] in [0, 1] to 1 and 0."""
    best = values.amax(1, keepdim=True)
    others = torch.stack([_without(values, i).amax(1) for i in range(values.shape[1])], 1)
    return ((values > others + MARGIN) & (values > 1 - best + MARGIN)).float()


def alike(masks: Tensor, before: Tensor) -> bool:
    """Whether masks [concepts, height, width] are so like those before that they can replace them.

    A concept without a place may get one; none may lose its own, which the similarity of small ones would not tell.
    """
    placed = before.sum((1, 2)) > 0
    pairs = zip(*(side[placed].numpy()[:, None, :, :, None] for side in (masks, before)), strict=True)
    return all(one.any() and ssim(one, other) >= ALIKE for one, other in pairs)


def _without(values: Tensor, index: int) -> Tensor:
    """The other concepts' values; 0 where there are none."""
    rest = torch.cat([values[:, :index], values[:, index + 1 :]], 1)
    return rest if rest.shape[1] else torch.zeros_like(values[:, :1])
