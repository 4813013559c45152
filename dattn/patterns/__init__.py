"""Patterns: who may attend to whom. One file per pattern; add yours to the table."""

from __future__ import annotations

from dattn.patterns.anchor import Anchor
from dattn.patterns.base import Pattern
from dattn.patterns.block_causal import BlockCausal
from dattn.patterns.clustered import Clustered
from dattn.patterns.cross_shaped import CrossShaped
from dattn.patterns.dense import Dense
from dattn.patterns.dynamic import Dynamic
from dattn.patterns.grouped import Grouped
from dattn.patterns.multi_axis import MultiAxis
from dattn.patterns.neighborhood import Neighborhood
from dattn.patterns.planes import Planes
from dattn.patterns.pyramid import Pyramid
from dattn.patterns.radial import Radial
from dattn.patterns.selected import Selected
from dattn.patterns.settings import SETTINGS, Alike, LearnedGate, MeanSim, ProxyHeads, Routing, VMoBA, XAttention
from dattn.patterns.sliding_tile import SlidingTile
from dattn.patterns.sparse_frames import SparseFrames
from dattn.patterns.sparse_video_gen import SparseVideoGen
from dattn.patterns.strided_heads import StridedHeads
from dattn.patterns.windows import Windows

_ALL: tuple[type[Pattern], ...] = (
    Dense,
    Radial,
    Neighborhood,
    Planes,
    Grouped,
    SlidingTile,
    SparseFrames,
    BlockCausal,
    Windows,
    MultiAxis,
    CrossShaped,
    StridedHeads,
)
PATTERNS: dict[str, type[Pattern]] = {pattern.__name__: pattern for pattern in _ALL}
_DYNAMIC: tuple[type[Dynamic], ...] = (Selected, SparseVideoGen, Clustered, Pyramid, Anchor)
DYNAMIC: dict[str, type[Dynamic]] = {pattern.__name__: pattern for pattern in _DYNAMIC}

__all__ = [
    "DYNAMIC",
    "PATTERNS",
    "SETTINGS",
    "Alike",
    "Anchor",
    "BlockCausal",
    "Clustered",
    "CrossShaped",
    "Dense",
    "Dynamic",
    "Grouped",
    "LearnedGate",
    "MeanSim",
    "MultiAxis",
    "Neighborhood",
    "Pattern",
    "Planes",
    "ProxyHeads",
    "Pyramid",
    "Radial",
    "Routing",
    "Selected",
    "SlidingTile",
    "SparseFrames",
    "SparseVideoGen",
    "StridedHeads",
    "VMoBA",
    "Windows",
    "XAttention",
]
