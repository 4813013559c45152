"""The controls of one attention module, one around the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dattn.adapters.text import Prompt
from dattn.attention import Narrow
from dattn.control.base import Call, Control, Place, Runs
from dattn.control.stage import Stage
from dattn.grid import TokenGrid
from dattn.processors.layer import resized

Pair = tuple[Tensor, Tensor]


class Chain:
    """What stands between a module and its attention: the first control is innermost.

    Args:
        controls: in the order in which they were given.
        stage: of the handle.
        name: of the module, with the pipeline's component in front.
        cross: whether the module looks at the prompt alone.
        index: position among the model's modules of its kind.
        count: how many of those there are.
        level: of the module, where the prompt may be in its sequence; None where the model has modules for text.
    """

    def __init__(
        self,
        controls: Sequence[Control],
        stage: Stage,
        name: str,
        cross: bool,
        index: int,
        count: int,
        level: str | None = "",
    ) -> None:
        self._controls, self._stage = controls, stage
        self._name, self._cross, self._index, self._count, self._level = name, cross, index, count, level
        self._places: list[Place] = []  # one for all samples, or one for each
        self._acting: list[Control] = []
        self._calls = 0  # of attention in this pass, where each is for one sample

    def enter(self, grids: TokenGrid | tuple[TokenGrid, ...] | None) -> None:
        """The model is called with this grid at this module, or one for every sample; None: nothing can be done."""
        self._places = [] if grids is None else self._places_on(grids if isinstance(grids, tuple) else (grids,))
        self._acting = [c for c in self._controls if self._places and c.acts(self._places[0])]
        self._calls = 0

    @property
    def on(self) -> bool:
        """Whether any control acts here now."""
        return bool(self._acting)

    @property
    def acting(self) -> tuple[Control, ...]:
        """The controls that act here now."""
        return tuple(self._acting)

    def _places_on(self, grids: Sequence[TokenGrid]) -> list[Place]:
        texts = self._stage.texts
        samples = range(max(len(grids), len(texts)))
        places = [self._place_on(grids[i % len(grids)], texts[i % len(texts)]) for i in samples]
        return places[:1] if all(place == places[0] for place in places) else places

    def _place_on(self, grid: TokenGrid, text: Prompt) -> Place:
        stage, count = self._stage, text.count or self._stage.text_count
        keys = slice(0, count) if self._cross else self._shared(grid, text, count)
        kind = "cross" if self._cross else "joint" if keys.stop > keys.start else "self"
        where = self._name, self._index, self._count, stage.step, stage.steps
        return Place(kind, *where, grid, keys, slice(grid.text_before, grid.text_before + grid.visual))

    def _shared(self, grid: TokenGrid, text: Prompt, count: int) -> slice:
        """Where the prompt is in the sequence that it shares with the picture; empty where it is not in it."""
        if self._level != text.level:
            return slice(0, 0)
        behind = not grid.text_before if text.behind is None else text.behind
        first = text.skip + (grid.text_before + grid.visual if behind else 0)
        return slice(first, min(first + count, grid.tokens if behind else grid.text_before))

    def _place_of(self, query: Tensor, key: Tensor, sample: int) -> Place | None:
        """The place of a call; None if it is not the one that this module is known for, such as an image prompt's."""
        place = self._places[sample % len(self._places)]
        text = self._stage.texts[sample % len(self._stage.texts)]
        if self._cross:
            expected = place.grid.tokens, place.text.stop + text.beside
            return place if (query.shape[2], key.shape[2]) == expected else None
        grid = resized(place.grid, query.shape[2])
        if grid is None or key.shape[2] != query.shape[2]:
            return None
        return place if grid is place.grid else self._place_on(grid, text)

    def run(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: float | None,
        base: Callable[[Call], Tensor],
        base_pair: Callable[[Call], Pair],
        sparse: bool = False,
        over: Callable[[Call, Narrow], Pair | None] | None = None,
    ) -> Tensor | None:
        """Attention under every control that acts here; None if this call is not for them.

        ``base``, ``base_pair`` and ``over`` compute it without any, by a pattern where it is ``sparse``; see ``Runs``.
        """
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        runs = Runs(base, base_pair, sparse, over=over)
        for control in self._acting:
            runs = _around(control, runs, base_pair, self._stage)
        call = Call(query, key, value, mask, scale, self._places[0], slice(0, 0), runs)
        if len(self._places) > 1 and len(self._places) == len(query):
            each = [self._run(call.take(torch.tensor([i], device=query.device)), i) for i in range(len(query))]
            found = [output for output in each if output is not None]
            return torch.cat(found) if len(found) == len(each) else None
        if len(query) == 1 < self._stage.batch:
            self._calls += 1
            return self._run(call, (self._calls - 1) % self._stage.batch)
        return self._run(call, None)

    def _run(self, call: Call, sample: int | None) -> Tensor | None:
        """The output of a call for all samples, or for one of them."""
        place = self._place_of(call.query, call.key, sample or 0)
        if place is None:
            return None
        self._stage.sample = sample
        try:
            return call.runs.inner(replace(call, place=place, rows=self._stage.rows(len(call.query))))
        finally:
            self._stage.sample = None


def _around(control: Control, runs: Runs, base_pair: Callable[[Call], Pair], stage: Stage) -> Runs:
    """What runs around a control: its edit of what runs inside."""

    def edited(call: Call) -> Tensor:
        stage.acted.add(control)
        return control.edit(replace(call, runs=runs))

    changes = runs.changes or ("" if control.keeps_sums else type(control).__name__)

    def pair(call: Call) -> Pair:
        if changes:
            raise ValueError(
                f"{changes} changes what keys weigh, which a control after it has to know: give {changes} last"
            )
        return edited(call), base_pair(call)[1]

    return Runs(edited, pair, runs.sparse, False, changes)
