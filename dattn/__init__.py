"""dattn: one line replaces the attention inside a Diffusers pipeline.

>>> import dattn
>>> handle = dattn.apply(pipe, dattn.Radial(decay=0.2), dense_steps=0.25, dense_layers=1)  # doctest: +SKIP
"""

from dattn.attention import attention
from dattn.block_mask import BlockMask
from dattn.calibration import Calibration
from dattn.grid import TokenGrid
from dattn.norms import LoadedNorms, load_norms
from dattn.operators import (
    OPERATORS,
    Agent,
    Bias,
    FirstOrder,
    Growing,
    InLine,
    PerHead,
    PerLayer,
    PerStep,
    RadialBias,
    Rectified,
    Reshaped,
    SignificanceTail,
    TokenMerge,
)
from dattn.patterns import (
    DYNAMIC,
    PATTERNS,
    SETTINGS,
    Alike,
    Anchor,
    BlockCausal,
    Clustered,
    CrossShaped,
    Dense,
    Dynamic,
    Grouped,
    LearnedGate,
    MeanSim,
    MultiAxis,
    Neighborhood,
    Pattern,
    Planes,
    ProxyHeads,
    Pyramid,
    Radial,
    Routing,
    Selected,
    SlidingTile,
    SparseFrames,
    SparseVideoGen,
    StridedHeads,
    VMoBA,
    Windows,
    XAttention,
)
from dattn.plugin import Handle, apply, remove
from dattn.recipe import Recipe
from dattn.registry import pattern_from_dict, pattern_from_string
from dattn.spec import Operator
from dattn.support import supported_models
from dattn.tuning.tune import tune

__version__ = "0.1.0"

__all__ = [
    "DYNAMIC",
    "OPERATORS",
    "PATTERNS",
    "SETTINGS",
    "Agent",
    "Alike",
    "Anchor",
    "Bias",
    "BlockCausal",
    "BlockMask",
    "Calibration",
    "Clustered",
    "CrossShaped",
    "Dense",
    "Dynamic",
    "FirstOrder",
    "Grouped",
    "Growing",
    "Handle",
    "InLine",
    "LearnedGate",
    "LoadedNorms",
    "MeanSim",
    "MultiAxis",
    "Neighborhood",
    "Operator",
    "Pattern",
    "PerHead",
    "PerLayer",
    "PerStep",
    "Planes",
    "ProxyHeads",
    "Pyramid",
    "Radial",
    "RadialBias",
    "Recipe",
    "Rectified",
    "Reshaped",
    "Routing",
    "Selected",
    "SignificanceTail",
    "SlidingTile",
    "SparseFrames",
    "SparseVideoGen",
    "StridedHeads",
    "TokenGrid",
    "TokenMerge",
    "VMoBA",
    "Windows",
    "XAttention",
    "apply",
    "attention",
    "load_norms",
    "pattern_from_dict",
    "pattern_from_string",
    "remove",
    "supported_models",
    "tune",
]
