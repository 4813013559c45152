"""Controls: what changes what attention says. One file per control; pass them to ``dattn.apply(pipe, control=…)``."""

from dattn.control.a_star import AStar
from dattn.control.amplify_heads import AmplifyHeads
from dattn.control.attend_and_excite import AttendAndExcite
from dattn.control.base import Call, Control, Place
from dattn.control.emphasize import Emphasize
from dattn.control.head_hunt import head_hunt
from dattn.control.heat_maps import HeatMaps
from dattn.control.isolation import Isolation
from dattn.control.key_bank import KeyBank
from dattn.control.local_blend import LocalBlend
from dattn.control.lora_window import LoRAWindow
from dattn.control.order_shift import OrderShift
from dattn.control.perturb import Perturb
from dattn.control.refine import Refine
from dattn.control.region import Region
from dattn.control.regional_lora import RegionalLoRA
from dattn.control.regions import Regions
from dattn.control.replace import Replace
from dattn.control.reposition import Reposition
from dattn.control.reweight import Reweight
from dattn.control.shared_keys import SharedKeys
from dattn.control.split_context import SplitContext
from dattn.control.subject_keys import SubjectKeys

__all__ = [
    "AStar",
    "AmplifyHeads",
    "AttendAndExcite",
    "Call",
    "Control",
    "Emphasize",
    "HeatMaps",
    "Isolation",
    "KeyBank",
    "LoRAWindow",
    "LocalBlend",
    "OrderShift",
    "Perturb",
    "Place",
    "Refine",
    "Region",
    "RegionalLoRA",
    "Regions",
    "Replace",
    "Reposition",
    "Reweight",
    "SharedKeys",
    "SplitContext",
    "SubjectKeys",
    "head_hunt",
]
