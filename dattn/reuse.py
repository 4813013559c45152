"""Masks that are kept for several steps of a denoising call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from dattn.block_mask import BlockMask
from dattn.spec import State

MaskOf = Callable[[Tensor], BlockMask]


def check_reuse(reuse: int | float) -> None:
    """Raise ``ValueError`` unless it is a number of steps, 1 or more, or a cosine in (0, 1)."""
    whole = type(reuse) is int and reuse >= 1
    if not whole and not (isinstance(reuse, float) and 0 < reuse < 1):
        raise ValueError(f"reuse={reuse!r}: give a number of steps, 1 for none, or a cosine similarity between 0 and 1")


@dataclass(eq=False)
class Kept:
    """What was chosen at an earlier step.

    Attributes:
        pattern: by whom.
        step: when.
        chosen: bool [batch, heads or 1, blocks, regions].
        mask: its block mask.
        means: the mean queries [batch, heads, blocks, head_dim] that each sample's choice was made for, or None.
    """

    pattern: Any
    step: int
    chosen: Tensor
    mask: BlockMask
    means: Tensor | None

    @classmethod
    def of(
        cls,
        pattern: Any,
        step: int,
        chosen: Tensor,
        mask_of: MaskOf,
        means: Tensor | None = None,
    ) -> Kept:
        """A choice and its mask."""
        return cls(pattern, step, chosen, mask_of(chosen), means)

    @property
    def bytes(self) -> int:
        """Memory that it holds, apart from what masks of the same grid share."""
        lists = (self.chosen, self.mask.full.offsets, self.mask.full.index, self.means)
        return sum(t.numel() * t.element_size() for t in lists if t is not None)


@dataclass(frozen=True)
class Reuse:
    """How long a choice is kept: ``span`` steps, or, below 1, while the cosine of the mean queries is that high."""

    span: int | float

    def mask(
        self,
        state: State,
        pattern: Any,
        means: Callable[[], Tensor],
        choose: Callable[[], Tensor],
        mask_of: MaskOf,
    ) -> BlockMask:
        """The mask of an earlier step of this state where it may still serve, or a new one.

        Args:
            state: of a layer and guidance branch; without a "step" in it nothing is kept.
            pattern: whose choice; another pattern's is not taken.
            means: gives the mean queries [batch, heads, blocks, head_dim] of this call.
            choose: gives bool [batch, heads or 1, blocks, regions].
            mask_of: makes the block mask of that.
        """
        step = state.get("step")
        if self.span == 1 or step is None:
            return mask_of(choose())
        kept = state.get("kept")
        old = kept if isinstance(kept, Kept) and kept.pattern == pattern else None
        if self.span > 1:
            if old is None or not 0 <= step - old.step < self.span:
                old = Kept.of(pattern, step, choose(), mask_of)
        else:
            old = self._while_alike(old, pattern, step, means(), choose, mask_of)
        state["kept"] = old
        return old.mask

    def _while_alike(
        self,
        old: Kept | None,
        pattern: Any,
        step: int,
        means: Tensor,
        choose: Callable[[], Tensor],
        mask_of: MaskOf,
    ) -> Kept:
        """Every sample of the batch decides for itself."""
        if old is None or old.means is None or old.means.shape != means.shape:
            return Kept.of(pattern, step, choose(), mask_of, means)
        alike = cosine_similarity(means, old.means, dim=-1).mean((1, 2)) >= self.span
        if alike.all():
            return old
        stays = alike.view(-1, 1, 1, 1)
        chosen, means = torch.where(stays, old.chosen, choose()), torch.where(stays, old.means, means)
        return Kept.of(pattern, step, chosen, mask_of, means)
