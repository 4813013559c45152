"""Masks that are kept for several steps of a denoising call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from dattn.block_mask import BlockMask
from dattn.spec import State

KEPT = "kept mask"


@dataclass(eq=False)
class Kept:
    """A mask of an earlier step, in a state.

    Attributes:
        terms: for what: pattern, grid, shape of the queries, device. A mask of other terms is not taken.
        step: when it was made.
        mask: what was made.
        chosen: bool [batch, heads or 1, blocks, regions], where samples decide for themselves how long it serves.
        means: the mean queries [batch, heads, blocks, head_dim] that each sample's choice was made for, there too.
    """

    terms: Any
    step: int
    mask: BlockMask
    chosen: Tensor | None = None
    means: Tensor | None = None


def check_reuse(reuse: int | float) -> None:
    """Raise ``ValueError`` unless it is a number of steps, 1 or more, or a cosine in (0, 1)."""
    whole = type(reuse) is int and reuse >= 1
    if not whole and not (isinstance(reuse, float) and 0 < reuse < 1):
        raise ValueError(f"reuse={reuse!r}: give a number of steps, 1 for none, or a cosine similarity between 0 and 1")


def for_steps(state: State, terms: Any, span: int, make: Callable[[], BlockMask]) -> BlockMask:
    """The mask that was made for these ``terms`` less than ``span`` steps ago in this state, or a new one.

    A state without a "step" keeps nothing.
    """
    step = state.get("step")
    if span == 1 or step is None:
        return make()
    kept = _known(state, terms)
    if kept is None or not 0 <= step - kept.step < span:
        kept = state[KEPT] = Kept(terms, step, make())
    return kept.mask


def while_alike(
    state: State,
    terms: Any,
    least: float,
    means: Tensor,
    choose: Callable[[], Tensor],
    mask_of: Callable[[Tensor], BlockMask],
) -> BlockMask:
    """The mask of a choice that is made anew for every sample whose mean queries turn away from those it was made for.

    Args:
        state: of a layer and guidance branch.
        terms: see ``Kept``.
        least: the cosine similarity, the mean over heads and blocks, down to which a choice is kept.
        means: the mean queries [batch, heads, blocks, head_dim] of this call.
        choose: gives bool [batch, heads or 1, blocks, regions].
        mask_of: makes the block mask of that.
    """
    old = _known(state, terms)
    if old is None or old.chosen is None or old.means is None:
        chosen = choose()
    else:
        alike = cosine_similarity(means, old.means, dim=-1).mean((1, 2)) >= least
        if alike.all():
            return old.mask
        stays = alike.view(-1, 1, 1, 1)
        chosen, means = torch.where(stays, old.chosen, choose()), torch.where(stays, old.means, means)
    state[KEPT] = Kept(terms, state.get("step", 0), mask_of(chosen), chosen, means)
    return state[KEPT].mask


def _known(state: State, terms: Any) -> Kept | None:
    kept = state.get(KEPT)
    return kept if isinstance(kept, Kept) and kept.terms == terms else None


def held_by(state: State) -> int:
    """Bytes that a kept mask takes: lists, orders, and what the backends keep with it, apart from what grids share."""
    kept = state.get(KEPT)
    if not isinstance(kept, Kept):
        return 0
    mask = kept.mask
    sides = [t for side in (mask.query, mask.key) for t in (side.order, side.lengths) if t.shape[1] > 1]
    held = [kept.chosen, kept.means, *sides, *_tensors([mask.full, mask.levels, mask.derived])]
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in held if t is not None}.values())


def _tensors(value: Any) -> list[Tensor]:
    """All tensors inside of dicts, sequences and dataclasses."""
    if isinstance(value, Tensor):
        return [value]
    if is_dataclass(value):
        value = [getattr(value, f.name) for f in fields(value)]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [t for part in parts for t in _tensors(part)]
