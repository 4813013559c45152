"""Anchor: single keys whose logits come near the largest one that a block of queries is sure to see.

AnchorAttention (arXiv 2505.23520). Neighbouring blocks of queries form a super-block, which sees its own blocks, the
text and what is kept anyway: the *anchor region*. Of every query the anchor is its largest logit there; a key outside
is kept for the super-block if for one of its blocks

    mean anchor of the block's queries - mean query · key / √d  ≤  theta

The keys that a super-block keeps are gathered into compact blocks of its own behind all others, so that single keys
("stripes") cost no more than their share of a block; the key side of the mask lists such a token several times. The
original is causal, with the initial keys in the region; here all keys are candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from dattn.block_mask import BlockMask
from dattn.grid import Layout, TokenGrid, split, text_blocks
from dattn.on_cpu import at_once
from dattn.orders import Order, Partition, Raster
from dattn.patterns.base import as_tuple, check_count
from dattn.patterns.dynamic import Dynamic, Given
from dattn.patterns.selected import check_block, check_keep, sides_of
from dattn.reuse import for_steps, held_by
from dattn.scores.base import CHUNK, Sides
from dattn.selection import to_lists, whole_blocks
from dattn.spec import State, check_kind
from dattn.sums import means


class Supers(NamedTuple):
    """Blocks of queries taken together.

    Attributes:
        of_block: int64 [blocks], the super-block of each.
        region: bool [supers, blocks], the blocks of keys in each anchor region.
        near: bool [supers, visual], its keys.
        places: for every super-block int64 [keys], its keys again, and the text, which lies behind the visual ones.
    """

    of_block: Tensor
    region: Tensor
    near: Tensor
    places: tuple[Tensor, ...]


@dataclass(frozen=True)
class Anchor(Dynamic):
    """Single keys chosen by how near their logits come to an anchor.

    The keys and values of every super-block are copied: at 75 600 tokens, 40 heads of 128 and ``step`` 16 some 13 GB
    where a fifth of the keys is kept. A block of queries whose region nobody may see, by a key mask, keeps all others.

    Args:
        theta: how far below the mean anchor a logit may lie, in natural logarithms: e^-theta of the anchor's weight.
            12 is published for language models; the smaller, the sparser.
        step: blocks of queries in a super-block; 16 is published, for sequences of 128k.
        keep: names of what is in the anchor region besides, see ``dattn.orders.ALWAYS``; text always is.
        order: how the visual tokens are laid out.
        reuse: steps that lists are kept for.
        block_size: 16, 32, 64 or 128.

    Raises:
        ValueError: a field outside these bounds, or of another kind.
    """

    theta: float = 12.0
    step: int = 16
    keep: tuple[str, ...] = ("sink", "neighbours")
    order: Order = Raster()
    reuse: int = 1
    block_size: int = 128

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", as_tuple(self.keep))
        check_kind("order", self.order, Order, "Raster()")
        check_block(self.block_size, False)
        check_keep(self.keep, self.order)
        if self.order.looks:
            raise ValueError(
                f"order={self.order!r}: blocks of queries and of keys must be places; give one like Curve()"
            )
        for name in ("step", "reuse"):
            check_count(name, getattr(self, name))
        if isinstance(self.theta, bool) or not isinstance(self.theta, int | float) or not math.isfinite(self.theta):
            raise ValueError(f"theta={self.theta!r}: give a number, the larger the more is kept")

    def at(self, layer: int, layers: int, step: int, steps: int) -> Anchor:
        """The order of that layer."""
        order = self.order.at(layer)
        return self if order is self.order else replace(self, order=order)

    def fit(self, grid: TokenGrid) -> tuple[Anchor, str | None]:
        """The order clamped to the grid."""
        order, note = self.order.fit(grid)
        return (self if note is None else replace(self, order=order)), note

    def build(self, given: Given) -> BlockMask:
        """See ``Dynamic.build``."""

        def make() -> BlockMask:
            sides = sides_of(given, self.order, self.block_size)
            partition = sides.partition
            key = self, partition.grid, partition.blocks.device
            supers = sides.masks.keep(key, lambda: self.supers(partition))
            return _mask(partition, supers, self.stripes(given, sides, supers))

        return for_steps(given.state, (self, *given.terms), self.reuse, make)

    def supers(self, partition: Partition) -> Supers:
        """The super-blocks of a partition."""
        blocks = len(partition.blocks)
        of_block = torch.arange(blocks, device=partition.blocks.device) // self.step
        members = of_block == torch.arange(-(-blocks // self.step), device=of_block.device)[:, None]
        kept = partition.always(self.keep).index_select(1, partition.region)
        region = members | (members.double() @ kept.double() > 0)
        near = region.repeat_interleave(partition.blocks, 1)
        text = partition.grid.tokens - partition.grid.visual
        places = tuple(keys.nonzero()[:, 0] for keys in pad(near, (0, text), value=True))
        return Supers(of_block, region, near, places)

    def stripes(self, given: Given, sides: Sides, supers: Supers) -> Tensor:
        """bool [batch, heads, supers, visual]: the keys outside of its region that each super-block keeps, in order."""
        part, scale = sides.partition, sides.query.shape[-1] ** -0.5
        more = len(supers.places) * self.step - len(part.blocks)  # blocks that the last super-block lacks
        anchors = means(self._tops(given, sides, supers), part.blocks) * scale
        anchors = pad(anchors, (0, 0, 0, more), value=torch.inf)
        typical = pad(sides.query_means() * scale, (0, 0, 0, more))
        few = max(1, at_once(CHUNK, anchors.device) // anchors.numel())
        found = []
        for keys in sides.key.split(few, 2):
            above = (typical @ keys.mT).sub_(anchors).unflatten(2, (-1, self.step)).amax(3)
            found.append(above >= -self.theta)
        return torch.cat(found, -1) & ~supers.near & ~_hidden(given, part)[:, None, None]

    def _tops(self, given: Given, sides: Sides, supers: Supers) -> Tensor:
        """[batch, heads, visual, 1]: the largest product of every query in its region; inf where that is everything."""
        text, text_hidden = _text(given)
        keys = torch.cat([sides.key, text], 2) if text.shape[2] else sides.key
        hidden = torch.cat([_hidden(given, sides.partition), text_hidden], 1)
        tokens = [int(blocks.sum()) for blocks in sides.partition.blocks.split(self.step)]
        tops = torch.full_like(sides.query[..., :1], torch.inf)
        parts = zip(supers.places, sides.query.split(tokens, 2), tops.split(tokens, 2), strict=True)
        for places, queries, own in parts:
            if len(places) == keys.shape[2]:
                continue
            known = keys.index_select(2, places).mT
            few = max(1, at_once(CHUNK, keys.device) // known[:, :, 0].numel())
            for some, top in zip(queries.split(few, 2), own.split(few, 2), strict=True):
                products = some @ known
                if given.key_mask is not None:
                    products.masked_fill_(hidden[:, None, None, places], -torch.inf)
                top.copy_(products.amax(-1, keepdim=True))
        return tops

    def held(self, state: State) -> int:
        """Lists that serve several steps."""
        return held_by(state)


def _hidden(given: Given, partition: Partition) -> Tensor:
    """bool [batch or 1, visual]: keys that nobody sees, in order."""
    if given.key_mask is None:
        return torch.zeros(1, given.grid.visual, dtype=torch.bool, device=given.query.device)
    return ~given.key_mask[:, given.grid.text_before + partition.key]


def _text(given: Given) -> tuple[Tensor, Tensor]:
    """The keys of the text [batch, heads, text, head_dim], and bool [batch or 1, text], which of them nobody sees."""
    grid, key = given.grid, given.key
    text = torch.ones(grid.tokens, dtype=torch.bool, device=key.device)
    text[grid.text_before : grid.text_before + grid.visual] = False
    hidden = text[None] & False if given.key_mask is None else ~given.key_mask
    return key[:, :, text].to(torch.promote_types(key.dtype, torch.float32)), hidden[:, text]


def _mask(partition: Partition, supers: Supers, stripes: Tensor) -> BlockMask:
    """The mask of regions and of stripes, bool [batch, heads, supers, visual], gathered behind the other keys."""
    size, base, leading = partition.block_size, partition.layouts[0], stripes.shape[:2]
    raster = partition.grid.text_before + partition.key
    parts = [(raster[keys.nonzero()[:, 1]], *split(keys.sum(-1), size)) for keys in stripes.flatten(0, 1)]
    order, lengths, owner = (
        pad_sequence(rows, batch_first=True, padding_value=fill).unflatten(0, leading)
        for rows, fill in zip(map(list, zip(*parts, strict=True)), (0, 0, -1), strict=True)
    )
    behind = lambda first, more: torch.cat([first.expand(*leading, -1), more.to(first.dtype)], -1)
    pooled = pad(base.pooled, (0, owner.shape[-1]))
    key = Layout(behind(base.order, order), behind(base.lengths, lengths), pooled)
    before, after = text_blocks(partition.grid, size)
    region = pad(supers.region[supers.of_block], (before, after, before, after), value=True)
    of_block = pad(supers.of_block, (before, after), value=-2)  # text sees all keys where they are
    kept = torch.cat([region.expand(*leading, -1, -1), owner[:, :, None] == of_block[:, None]], -1)
    return whole_blocks(base, key, to_lists(kept), size)
