"""What was measured at some grids, and something else at all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dattn.grid import TokenGrid
from dattn.operators.placed import Placed
from dattn.spec import Spec

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class ByGrid(Placed):
    """A pattern for each of some grids.

    Args:
        grids: (frames, height, width), name and pattern of each.
        otherwise: at any other grid.
    """

    grids: tuple[tuple[Shape, str, Spec], ...]
    otherwise: Any

    @property
    def first(self) -> Any:
        """What no grid asks for."""
        return self.otherwise

    @property
    def every(self) -> tuple[Spec, ...]:
        """All of them."""
        return (*(spec for _, _, spec in self.grids), self.otherwise)

    def at(self, layer: int, layers: int, step: int, steps: int) -> Spec:
        """Each at that place."""
        place = layer, layers, step, steps
        return ByGrid(
            tuple((shape, name, spec.at(*place)) for shape, name, spec in self.grids), self.otherwise.at(*place)
        )

    def fit(self, grid: TokenGrid) -> tuple[Spec, str | None]:
        """What the grid asks for; the note names the recipe."""
        for shape, name, spec in self.grids:
            if shape == grid.shape:
                fitted, note = spec.fit(grid)
                return fitted, f"recipe {name}" + (f", {note}" if note else "")
        fitted, note = self.otherwise.fit(grid)
        return fitted, "; ".join(["no recipe for this grid", *([note] if note else [])])
