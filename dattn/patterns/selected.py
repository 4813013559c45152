"""Blocks chosen by scores: how to score, how to choose, in which order, what to keep anyway, and for how long.

    scores [heads, query blocks, key regions]  →  the best of them, and what is always kept  →  block lists

The published systems that choose blocks are settings of this one pattern; see ``presets`` below them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from dattn.attention import masks_in
from dattn.block_mask import BlockMask, MaskCache, tail_run
from dattn.grid import BLOCK_SIZES, TokenGrid
from dattn.orders import ALWAYS, Order, Raster
from dattn.patterns.base import as_tuple, check_tail
from dattn.patterns.dynamic import Dynamic, Given
from dattn.reuse import check_reuse, for_steps, held_by, while_alike
from dattn.scores.base import Score, Sides
from dattn.scores.pooled import Pooled
from dattn.selection import Select, TopP
from dattn.spec import ORDERS, State, check_kind, together


@dataclass(frozen=True)
class Selected(Dynamic):
    """Every block of queries sees the regions of keys that ``select`` chooses by ``score``.

    Args:
        score: how much a block of queries is expected to attend to a region of keys.
        select: which regions of a row are kept.
        order: how the visual tokens are laid out, and what a region is.
        keep: names of what is kept besides, see ``dattn.orders.ALWAYS``; text always is.
        reuse: keep the lists for so many steps, or, below 1, for as long as the mean queries of the blocks have at
            least this cosine similarity with those that the lists were made for (Recycled Attention,
            arXiv 2411.05787).
        block_size: 16, 32, 64 or 128.
        tail: pool what is skipped: False, True (one key per block) or a run of 16 … block size tokens.

    Raises:
        ValueError: a field outside these bounds, or of another kind.
    """

    score: Score = Pooled()
    select: Select = TopP()
    order: Order = Raster()
    keep: tuple[str, ...] = ("own",)
    reuse: int | float = 1
    block_size: int = 128
    tail: bool | int = False

    def __post_init__(self) -> None:
        for name, kind in (("score", Score), ("select", Select), ("order", Order)):
            check_kind(name, getattr(self, name), kind, _EXAMPLES[name])
        object.__setattr__(self, "keep", as_tuple(self.keep))
        check_keep(self.keep, self.order)
        check_reuse(self.reuse)
        if self.order.looks and isinstance(self.reuse, float):
            raise ValueError(
                f"reuse={self.reuse!r} with {self.order}: its blocks change from call to call; give a number of steps"
            )
        check_block(self.block_size, self.tail)

    def at(self, layer: int, layers: int, step: int, steps: int) -> Selected:
        """Order and score of that layer."""
        order, score = self.order.at(layer), self.score.at(layer)
        return self if order is self.order and score is self.score else replace(self, order=order, score=score)

    def fit(self, grid: TokenGrid) -> tuple[Selected, str | None]:
        """The order clamped to the grid."""
        order, note = self.order.fit(grid)
        return (self if note is None else replace(self, order=order)), note

    def for_heads(self, heads: tuple[int, ...], of: int) -> Selected:
        """Itself, where every head chooses alone."""
        if self.select.across == "layer" or self.score.all_heads or isinstance(self.reuse, float):
            raise together(self)
        return self

    def build(self, given: Given) -> BlockMask:
        """See ``Dynamic.build``."""
        tail, terms = tail_run(self.tail, self.block_size), (self, *given.terms)

        def make() -> BlockMask:
            sides = sides_of(given, self.order, self.block_size)
            return sides.partition.mask(self.kept(sides), tail)

        if isinstance(self.reuse, int):
            return for_steps(given.state, terms, self.reuse, make)
        sides = sides_of(given, self.order, self.block_size)
        mask_of = lambda kept: sides.partition.mask(kept, tail)
        return while_alike(given.state, terms, self.reuse, sides.query_means(), lambda: self.kept(sides), mask_of)

    def held(self, state: State) -> int:
        """Lists that serve several steps."""
        return held_by(state)

    def kept(self, sides: Sides) -> Tensor:
        """bool [batch, heads or 1, blocks, regions]: what every block sees."""
        kept = self.select.kept(self.score.of(sides)) | sides.partition.always(self.keep)
        must = self.score.must(sides)
        return kept if must is None else kept | must

    def cost(self, grid: TokenGrid, head_dim: int, masks: MaskCache) -> float:
        """The density that ``select`` asks for, before it is known."""
        return self.select.expected()


_EXAMPLES = {"score": "Pooled()", "select": "TopP(0.9)", "order": "Raster()"}


def sides_of(given: Given, order: Order, block_size: int) -> Sides:
    """Queries and keys in an order."""
    masks, known = masks_in(given.state), given.state.get(ORDERS, {})
    partition = known.get((order, block_size))
    if partition is None:
        looked_at = given.wide() if order.looks else (given.query, given.key)
        partition = known[order, block_size] = order.partition(*looked_at, given.grid, block_size, masks)
    queries, keys = partition.visual(given.query, given.seen_keys())
    return Sides(queries, keys, partition, masks, given.factor, given.kernels)


def check_keep(keep: tuple[str, ...], order: Order) -> None:
    """Raise ``ValueError`` unless these are names in ``ALWAYS``, and none where blocks are no places."""
    if not isinstance(keep, tuple) or any(name not in ALWAYS for name in keep):
        raise ValueError(f"keep={keep!r}: give a tuple of names among {', '.join(ALWAYS)}")
    if order.looks and keep:
        raise ValueError(f"keep={keep!r} with {order}: its blocks are no places in the grid; give keep=()")


def check_block(block_size: int, tail: bool | int) -> None:
    """Raise ``ValueError`` unless the block size is one of ours and the tail's runs divide it."""
    if block_size not in BLOCK_SIZES:
        raise ValueError(f"block_size={block_size!r}: choose one of {', '.join(map(str, BLOCK_SIZES))}")
    check_tail(tail)
    tail_run(tail, block_size)
