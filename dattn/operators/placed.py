"""What is one thing in one place and another elsewhere: the base of ``PerLayer`` and ``PerStep``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dattn.backends import Choice
from dattn.block_mask import BlockMask, MaskCache
from dattn.grid import TokenGrid
from dattn.spec import Call, Operator, Spec


@dataclass(frozen=True)
class Placed(Operator):
    """A choice among patterns and operators that ``at`` makes; where there is no place it is the first.

    A subclass says ``at``, ``first`` and ``every``.
    """

    @property
    def first(self) -> Any:
        """What is at the first place."""
        raise NotImplementedError

    @property
    def every(self) -> tuple[Spec, ...]:
        """All that there is to choose from."""
        raise NotImplementedError

    def fit(self, grid: TokenGrid) -> tuple[Spec, str | None]:
        """The first, clamped to the grid."""
        return self.first.fit(grid)

    @property
    def static(self) -> bool:
        """Whether the first has a mask."""
        return self.first.static

    @property
    def untuned(self) -> str:
        """What the first of them that wants training says."""
        return next((p.untuned for p in self.every if p.untuned), "")

    def keeping(self, layer: int, layers: int) -> int:
        """That of the one that keeps most."""
        return max(p.keeping(layer, layers) for p in self.every)

    def mask(self, grid: TokenGrid) -> BlockMask:
        """That of the first."""
        return self.first.mask(grid)

    def allowed(self, grid: TokenGrid) -> Tensor:
        """That of the first."""
        return self.first.allowed(grid)

    def compute(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """As the first does."""
        return self.first.attend(*call[:5], **call.options)

    def choose(self, backend: str, query: Tensor) -> Choice:
        """As the first does."""
        return self.first.choose(backend, query)

    def cost(self, grid: TokenGrid, head_dim: int, masks: MaskCache) -> float:
        """That of the first."""
        return self.first.cost(grid, head_dim, masks)


def check_specs(name: str, specs: tuple[Any, ...]) -> None:
    """Raise ``ValueError`` unless all are patterns or operators."""
    wrong = [spec for spec in specs if not isinstance(spec, Spec)]
    if wrong:
        raise ValueError(f"{wrong[0]!r} in {name}: give patterns or operators, such as Radial()")


def rows_of(name: str, given: Any) -> tuple[tuple[Any, Any], ...]:
    """The pairs of a dict, or of what ``to_dict`` makes of one.

    Raises:
        ValueError: neither of them.
    """
    rows = tuple(given.items()) if isinstance(given, dict) else given
    if not isinstance(rows, tuple | list) or any(not isinstance(r, tuple | list) or len(r) != 2 for r in rows):
        raise ValueError(f"{name}={given!r}: give a dict, such as {{0: Radial()}}")
    return tuple((key, value) for key, value in rows)
