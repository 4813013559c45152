"""Patterns per layer: some layers have their own, the others a common one. It is nothing but ``at``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dattn.backends import Choice
from dattn.block_mask import BlockMask, MaskCache
from dattn.grid import TokenGrid
from dattn.patterns.dense import Dense
from dattn.spec import Operator, Spec, State


@dataclass(frozen=True)
class PerLayer(Operator):
    """A pattern or operator for each of some layers, and one for all others.

    Where there are no layers, as in ``dattn.attention``, it is what layer 0 has.

    Args:
        layers: ``{layer: pattern}`` or ``{(layer, layer, …): pattern}``, self-attention layers counted from 0 in
            execution order.
        default: for all other layers; dense attention where it is left out.

    Raises:
        ValueError: no layer, one that is named twice or that the model does not have, or no pattern.
    """

    layers: Any
    default: Spec = field(default=Dense())

    def __post_init__(self) -> None:
        given = self.layers.items() if isinstance(self.layers, dict) else self.layers
        rows = tuple((tuple(k) if isinstance(k, tuple | list) else (k,), p) for k, p in given)
        numbers = [n for row, _ in rows for n in row]
        if not numbers or any(type(n) is not int or n < 0 for n in numbers) or len(set(numbers)) < len(numbers):
            raise ValueError(f"layers={self.layers!r}: give {{layer: pattern}}, each layer once, counted from 0")
        wrong = [p for p in (*(p for _, p in rows), self.default) if not isinstance(p, Spec)]
        if wrong:
            raise ValueError(f"{wrong[0]!r} in PerLayer: give patterns or operators, such as Radial()")
        object.__setattr__(self, "layers", rows)

    def of(self, layer: int) -> Any:
        """What that layer has."""
        return next((p for row, p in self.layers if layer in row), self.default)

    def at(self, layer: int, layers: int, step: int, steps: int) -> Spec:
        """What that layer has, at that place."""
        last = max(n for row, _ in self.layers for n in row)
        if last >= layers:
            raise ValueError(
                f"layer {last} in PerLayer: the model has {layers} self-attention layers, 0 to {layers - 1}"
            )
        return self.of(layer).at(layer, layers, step, steps)

    def fit(self, grid: TokenGrid) -> tuple[Spec, str | None]:
        """What layer 0 has, clamped to the grid."""
        return self.of(0).fit(grid)

    @property
    def static(self) -> bool:
        """Whether layer 0 has a mask."""
        return self.of(0).static

    @property
    def untuned(self) -> str:
        """What the first of them that wants training says."""
        return next((p.untuned for p in (*(p for _, p in self.layers), self.default) if p.untuned), "")

    def mask(self, grid: TokenGrid) -> BlockMask:
        """That of layer 0."""
        return self.of(0).mask(grid)

    def allowed(self, grid: TokenGrid) -> Tensor:
        """That of layer 0."""
        return self.of(0).allowed(grid)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        grid: TokenGrid,
        state: State,
        *,
        scale: float,
        key_mask: Tensor | None,
        backend: str,
    ) -> tuple[Tensor, Tensor | None]:
        """As layer 0 does."""
        return self.of(0).attend(query, key, value, grid, state, scale=scale, key_mask=key_mask, backend=backend)

    def choose(self, backend: str, query: Tensor) -> Choice:
        """As layer 0 does."""
        return self.of(0).choose(backend, query)

    def cost(self, grid: TokenGrid, head_dim: int, masks: MaskCache) -> float:
        """That of layer 0."""
        return self.of(0).cost(grid, head_dim, masks)
