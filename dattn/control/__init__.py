"""Controls: what changes what attention says. One file per control; pass them to ``dattn.apply(pipe, control=…)``."""

from dattn.control.base import Call, Control, Place
from dattn.control.reweight import Reweight

__all__ = ["Call", "Control", "Place", "Reweight"]
