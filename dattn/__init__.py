"""dattn: one line replaces the attention inside a Diffusers pipeline.

>>> import dattn
>>> handle = dattn.apply(pipe, dattn.Radial(decay=0.2), dense_steps=0.25, dense_layers=1)  # doctest: +SKIP
"""

from dattn.attention import attention
from dattn.block_mask import BlockMask
from dattn.grid import TokenGrid
from dattn.patterns import (
    PATTERNS,
    BlockCausal,
    Dense,
    Grouped,
    MultiAxis,
    Neighborhood,
    Pattern,
    Radial,
    SlidingTile,
    SparseFrames,
    Windows,
    pattern_from_dict,
    pattern_from_string,
)
from dattn.plugin import Handle, apply, remove, supported_models

__version__ = "0.1.0"

__all__ = [
    "PATTERNS",
    "BlockCausal",
    "BlockMask",
    "Dense",
    "Grouped",
    "Handle",
    "MultiAxis",
    "Neighborhood",
    "Pattern",
    "Radial",
    "SlidingTile",
    "SparseFrames",
    "TokenGrid",
    "Windows",
    "apply",
    "attention",
    "pattern_from_dict",
    "pattern_from_string",
    "remove",
    "supported_models",
]
