"""Orders: how a dynamic pattern lays out the visual tokens before it cuts them into blocks, as values."""

from dattn.orders.base import ALWAYS, Order, Partition
from dattn.orders.by_cluster import ByCluster
from dattn.orders.by_layer import ByLayer
from dattn.orders.curve import Curve, hilbert_index
from dattn.orders.raster import PatchMajor, Raster
from dattn.orders.tiled import Tiled
from dattn.orders.tree import Tree

_ALL: tuple[type[Order], ...] = (Raster, PatchMajor, Curve, Tiled, ByLayer, Tree, ByCluster)
ORDERS: dict[str, type[Order]] = {order.__name__: order for order in _ALL}

__all__ = [
    "ALWAYS", "ORDERS", "ByCluster", "ByLayer", "Curve", "Order", "Partition", "PatchMajor", "Raster", "Tiled", "Tree",
    "hilbert_index",
]  # fmt: skip
