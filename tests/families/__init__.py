"""Tiny random models of every supported family, with sizes that divide nothing: a file each."""

from tests.families import cogvideox, flux, unet, wan
from tests.families.base import Family

__all__ = ["CORE", "FAMILIES"]

_FILES = (wan, cogvideox, flux, unet)
FAMILIES: dict[str, Family] = {family.name: family for file in _FILES for family in file.FAMILIES}

CORE = {name: FAMILIES[name] for name in ("wan", "cogvideox", "flux", "unet")}
"""Separate, joint and packed sequences, and several levels: what every pattern is tried on."""
