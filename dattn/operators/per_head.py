"""Patterns per head: each group of heads has its own.

Pattern g of G serves the heads h with ⌊h·G/H⌋ = g. Static patterns become one block mask with a list per head group,
computed in one launch; where there is an operator among them, or where their tails are written differently, group after
group is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from dattn.attention import attend, masks_in
from dattn.backends import Choice
from dattn.block_mask import BlockMask, MaskCache
from dattn.grid import TokenGrid
from dattn.head_masks import for_head_groups
from dattn.heads import head_groups
from dattn.patterns.base import Pattern
from dattn.spec import VISITED, Call, Operator, Spec, State, part_of


@dataclass(frozen=True)
class PerHead(Operator):
    """A tuple of patterns or operators, shared out evenly among the heads in their order.

    Heads that have the same one are computed in one call, wherever they are, if they do not look at each other.

    Args:
        patterns: one or more, at most as many as there are heads when attention is computed.

    Raises:
        ValueError: nothing, or something that is neither pattern nor operator.
    """

    patterns: tuple[Spec, ...]

    def __post_init__(self) -> None:
        given = self.patterns if isinstance(self.patterns, tuple | list) else ()
        if not given or not all(isinstance(p, Spec) for p in given):
            raise ValueError(f"patterns={self.patterns!r}: give a tuple of patterns, such as (Radial(), Dense())")
        object.__setattr__(self, "patterns", tuple(given))

    @property
    def static(self) -> bool:
        """Whether all of them are masks that one launch can compute: with tails that are written alike."""
        return self.fixed and len(self._tails) == 1

    @property
    def fixed(self) -> bool:
        """Whether all of them are masks."""
        return all(p.fixed for p in self.patterns)

    def keeping(self, layer: int, layers: int) -> int:
        """All of them together."""
        return sum(p.keeping(layer, layers) for p in self.patterns)

    @property
    def _tails(self) -> set[bool | int]:
        """The tails of all, those of patterns per head in it as well."""
        own = (p._tails if isinstance(p, PerHead) else {getattr(p, "tail", False)} for p in self.patterns)
        return set().union(*own)

    @property
    def in_parts(self) -> bool:
        """True."""
        return True

    @property
    def untuned(self) -> str:
        """What the first of them that wants training says."""
        return next((p.untuned for p in self.patterns if p.untuned), "")

    def at(self, layer: int, layers: int, step: int, steps: int) -> Spec:
        """Each at that place."""
        return replace(self, patterns=tuple(p.at(layer, layers, step, steps) for p in self.patterns))

    def fit(self, grid: TokenGrid) -> tuple[Spec, str | None]:
        """Each clamped to the grid."""
        fitted = [p.fit(grid) for p in self.patterns]
        notes = [f"{p.name}: {note}" for p, note in fitted if note]
        return replace(self, patterns=tuple(p for p, _ in fitted)), ", ".join(notes) or None

    def for_heads(self, heads: tuple[int, ...], of: int) -> Spec:
        """Each head's own."""
        return PerHead(tuple(self.patterns[h * len(self.patterns) // of].for_heads((h,), of) for h in heads))

    def mask(self, grid: TokenGrid) -> BlockMask:
        """One mask with head groups, where all are static.

        Raises:
            ValueError: an operator among them, or tails with different runs.
        """
        patterns = self._masks()
        masks = {p: p.mask(grid) for p in dict.fromkeys(patterns)}
        return for_head_groups([masks[p] for p in patterns])

    def allowed(self, grid: TokenGrid) -> Tensor:
        """bool [groups, tokens, tokens], or [tokens, tokens] of one: see ``Pattern.allowed``."""
        return self._stacked(lambda p: p.allowed(grid))

    def visual_allowed(self, grid: TokenGrid) -> Tensor:
        """bool [groups, visual, visual], or [visual, visual] of one: see ``Pattern.visual_allowed``."""
        return self._stacked(lambda p: p.visual_allowed(grid))

    def _stacked(self, of: Callable[[Pattern], Tensor]) -> Tensor:
        parts = [t if t.ndim == 3 else t[None] for t in map(of, self._masks())]
        share = math.lcm(*(len(part) for part in parts))
        together = torch.cat([part.repeat_interleave(share // len(part), 0) for part in parts])
        return together if len(together) > 1 else together[0]

    def _masks(self) -> list[Any]:
        """The patterns, all of them static."""
        dynamic = [p.name for p in self.patterns if not p.fixed]
        if dynamic:
            raise ValueError(f"{', '.join(dynamic)} in PerHead: an operator has no mask; only attention computes it")
        return list(self.patterns)

    def compute(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """Pattern after pattern, the groups that have the same together; there is no LSE."""
        return self._compute(call, False)

    def with_lse(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """The same with the LSE, where all are masks."""
        return self._compute(call, self.fixed)

    def _compute(self, call: Call, want_lse: bool) -> tuple[Tensor, Tensor | None]:
        output = torch.empty_like(call.value)
        lse: Tensor | None = None
        visited: dict[int, tuple[float, float]] = {}
        groups = head_groups(call.query.shape[1], len(self.patterns))
        layer = call.state.get("layer", 0), call.state.get("layers", 1)
        before, every = call.state.get("sharing", (0, self.keeping(*layer)))
        for numbers in self._together(call):
            pattern, own = self.patterns[numbers[0]], part_of(call.state, f"heads {numbers[0]}")
            own["sharing"] = before / len(numbers), every / len(numbers)  # parts as large as these together
            before += pattern.keeping(*layer) * len(numbers)
            heads: Any = [head for number in numbers for head in range(call.query.shape[1])[groups[number]]]
            heads = groups[numbers[0]] if len(numbers) == 1 else heads  # a slice copies nothing
            q, k, v = (t[:, heads] for t in call[:3])
            part = attend(q, k, v, pattern, call.grid, state=own, return_lse=want_lse, **call.options)
            if want_lse:
                part, sums = part
                lse = sums.new_empty(output.shape[:3]) if lse is None else lse
                lse[:, heads] = sums
            output[:, heads] = part
            if VISITED in own:
                shares: Any = own.pop(VISITED)
                visited |= dict.fromkeys(numbers, shares)
        if visited:
            width, masks = call.query.shape[-1], masks_in(call.state)
            every = [
                visited[number] if number in visited else (cost_of(p, call.grid, width, masks), 0.0)
                for number, p in enumerate(self.patterns)
            ]
            call.state[VISITED] = tuple(sum(column) / len(every) for column in zip(*every, strict=True))
        return output, lse

    def _together(self, call: Call) -> list[list[int]]:
        """The numbers of the groups that are computed in one call."""
        found: dict[Any, list[int]] = {}
        for number, pattern in enumerate(self.patterns):
            found.setdefault(pattern if _head_by_head(pattern, call) else number, []).append(number)
        return list(found.values())

    def choose(self, backend: str, query: Tensor) -> Choice:
        """What each of them runs on."""
        general = super().choose
        choices = [
            general(backend, query) if p.static else cast(Operator, p).choose(backend, query) for p in self.patterns
        ]
        names = list(dict.fromkeys(choice.name for choice in choices))
        return Choice("+".join(names), "; ".join(dict.fromkeys(choice.reason for choice in choices)))

    def held(self, state: State) -> int:
        """What they keep, all together."""
        states = [(p, state.get(f"heads {number}", {})) for number, p in enumerate(self.patterns) if not p.static]
        return sum(cast(Operator, p).held(own) for p, own in states)

    def cost(self, grid: TokenGrid, head_dim: int, masks: MaskCache) -> float:
        """The mean over the groups."""
        return sum(cost_of(p, grid, head_dim, masks) for p in self.patterns) / len(self.patterns)


def _head_by_head(spec: Any, call: Call) -> bool:
    """Whether a head has the same whichever heads are computed with it."""
    if spec.static:
        return masks_in(call.state).get(spec, call.grid, call.query.device).groups == 1
    try:
        return spec.for_heads((0,), 2) is spec
    except ValueError:
        return False


def cost_of(spec: Any, grid: TokenGrid, head_dim: int, masks: MaskCache) -> float:
    """What a pattern or an operator computes ÷ dense work."""
    if not spec.static:
        return spec.cost(grid, head_dim, masks)
    mask = masks.get(spec, grid, "cpu")
    return mask.density + mask.tail_share
