"""ByLayer: other orders in other layers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dattn.block_mask import MaskCache
from dattn.grid import TokenGrid
from dattn.orders.base import Order, Partition
from dattn.patterns.base import as_tuple


@dataclass(frozen=True)
class ByLayer(Order):
    """One order after the other, layer by layer, and again from the first (VMoBA's 1-D, 2-D, 3-D).

    Raises:
        ValueError: no orders.
    """

    orders: tuple[Order, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "orders", as_tuple(self.orders))
        if not isinstance(self.orders, tuple) or not all(isinstance(order, Order) for order in self.orders):
            raise ValueError(f"orders={self.orders!r}: give a tuple of orders, such as (Raster(), Curve())")
        if not self.orders:
            raise ValueError("orders=(): give one order at least")

    @property
    def looks(self) -> bool:
        """Whether one of them does."""
        return any(order.looks for order in self.orders)

    def at(self, layer: int) -> Order:
        """That of the layer."""
        return self.orders[layer % len(self.orders)].at(layer)

    def partition(self, query: Tensor, key: Tensor, grid: TokenGrid, block_size: int, masks: MaskCache) -> Partition:
        """That of the first layer."""
        return self.at(0).partition(query, key, grid, block_size, masks)

    def fit(self, grid: TokenGrid) -> tuple[Order, str | None]:
        """Each clamped to the grid."""
        fitted = [order.fit(grid) for order in self.orders]
        return ByLayer(tuple(order for order, _ in fitted)), next((note for _, note in fitted if note), None)
