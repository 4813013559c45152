"""Patterns per layer: some layers have their own, the others a common one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dattn.operators.placed import Placed, check_specs, rows_of
from dattn.patterns.dense import Dense
from dattn.spec import Spec


@dataclass(frozen=True)
class PerLayer(Placed):
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
        rows = tuple((tuple(k) if isinstance(k, tuple | list) else (k,), p) for k, p in rows_of("layers", self.layers))
        numbers = [n for row, _ in rows for n in row]
        if not numbers or any(type(n) is not int or n < 0 for n in numbers) or len(set(numbers)) < len(numbers):
            raise ValueError(f"layers={self.layers!r}: give {{layer: pattern}}, each layer once, counted from 0")
        object.__setattr__(self, "layers", rows)
        check_specs("PerLayer", self.every)

    @property
    def every(self) -> tuple[Spec, ...]:
        """Those of the layers that are named, and the default."""
        return (*(p for _, p in self.layers), self.default)

    @property
    def first(self) -> Any:
        """What layer 0 has."""
        return self._of(0)

    def _of(self, layer: int) -> Any:
        return next((p for row, p in self.layers if layer in row), self.default)

    def keeping(self, layer: int, layers: int) -> int:
        """That of the layer's own."""
        return self._of(layer).keeping(layer, layers)

    def at(self, layer: int, layers: int, step: int, steps: int) -> Spec:
        """What that layer has, at that place."""
        last = max(n for row, _ in self.layers for n in row)
        if last >= layers:
            raise ValueError(
                f"layer {last} in PerLayer: the model has {layers} self-attention layers, 0 to {layers - 1}"
            )
        return self._of(layer).at(layer, layers, step, steps)
