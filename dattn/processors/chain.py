"""The controls of one attention module, one around the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

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
    """

    def __init__(
        self, controls: Sequence[Control], stage: Stage, name: str, cross: bool, index: int, count: int
    ) -> None:
        self._controls, self._stage = controls, stage
        self._name, self._cross, self._index, self._count = name, cross, index, count
        self._place: Place | None = None
        self._acting: list[Control] = []

    def enter(self, grid: TokenGrid | None) -> None:
        """The model is called with this grid at this module; None where nothing can be done to it."""
        self._place = None if grid is None else self._place_on(grid)
        self._acting = [] if self._place is None else [c for c in self._controls if c.acts(self._place)]

    @property
    def on(self) -> bool:
        """Whether any control acts here now."""
        return bool(self._acting)

    def _place_on(self, grid: TokenGrid) -> Place:
        stage, joint = self._stage, not self._cross and grid.tokens > grid.visual
        visual = slice(grid.text_before, grid.text_before + grid.visual) if joint else slice(0, grid.visual)
        text = slice(0, stage.text_count if self._cross else 0)
        if joint:
            first = 0 if grid.text_before else grid.visual
            text = slice(first, first + (grid.text_before or grid.text_after))
        kind = "cross" if self._cross else "joint" if joint else "self"
        where = self._name, self._index, self._count, stage.step, stage.steps
        return Place(kind, *where, grid, text, visual)

    def _place_of(self, query: Tensor, key: Tensor) -> Place | None:
        """The place of a call; None if it is not the one that this module is known for, such as an image prompt's."""
        place = self._place
        assert place is not None  # asked only while something acts
        if self._cross:
            return place if key.shape[2] == place.text.stop and query.shape[2] == place.grid.visual else None
        grid = resized(place.grid, query.shape[2])
        if grid is None or key.shape[2] != query.shape[2]:
            return None
        return place if grid is place.grid else self._place_on(grid)

    def run(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: float | None,
        base: Callable[[Call], Tensor],
        base_pair: Callable[[Call], Pair],
    ) -> Tensor | None:
        """Attention under every control that acts here; None if this call is not for them.

        ``base`` and ``base_pair`` compute it without any.
        """
        place = self._place_of(query, key)
        if place is None:
            return None
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        runs = Runs(base, base_pair)
        rows = self._stage.rows(len(query))
        for control in self._acting:
            runs = _around(control, runs, base_pair)
        return runs.inner(Call(query, key, value, mask, scale, place, rows, runs))


def _around(control: Control, runs: Runs, base_pair: Callable[[Call], Pair]) -> Runs:
    """What runs around a control: its edit of what runs inside."""

    def edited(call: Call) -> Tensor:
        return control.edit(replace(call, runs=runs))

    return Runs(edited, lambda call: (edited(call), base_pair(call)[1]))
