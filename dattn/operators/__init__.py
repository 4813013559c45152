"""Operators: attention that is not a mask. One file each; add yours to the table."""

from __future__ import annotations

from dattn.operators.agent import Agent
from dattn.operators.bias import Bias, RadialBias
from dattn.operators.first_order import FirstOrder
from dattn.operators.growing import Growing
from dattn.operators.in_line import InLine
from dattn.operators.per_head import PerHead
from dattn.operators.per_layer import PerLayer
from dattn.operators.per_step import PerStep
from dattn.operators.rectified import Rectified
from dattn.operators.reshaped import Reshaped
from dattn.operators.significance_tail import SignificanceTail
from dattn.operators.token_merge import TokenMerge
from dattn.spec import Spec

__all__ = [
    "OPERATORS",
    "Agent",
    "Bias",
    "FirstOrder",
    "Growing",
    "InLine",
    "PerHead",
    "PerLayer",
    "PerStep",
    "RadialBias",
    "Rectified",
    "Reshaped",
    "SignificanceTail",
    "TokenMerge",
]

_ALL: tuple[type[Spec], ...] = (
    Reshaped,
    Rectified,
    FirstOrder,
    SignificanceTail,
    Agent,
    TokenMerge,
    Bias,
    RadialBias,
    InLine,
    PerHead,
    PerLayer,
    PerStep,
    Growing,
)
OPERATORS: dict[str, type[Spec]] = {operator.__name__: operator for operator in _ALL}
