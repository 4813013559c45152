"""Controls: what changes what attention says. One file per control; pass them to ``dattn.apply(pipe, control=…)``."""

from dattn.control.base import Call, Control, Place
from dattn.control.heat_maps import HeatMaps
from dattn.control.local_blend import LocalBlend
from dattn.control.refine import Refine
from dattn.control.replace import Replace
from dattn.control.reweight import Reweight

__all__ = ["Call", "Control", "HeatMaps", "LocalBlend", "Place", "Refine", "Replace", "Reweight"]
