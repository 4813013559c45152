"""Tiny random models of every supported family, with sizes that divide nothing: a file each."""

from tests.families import (
    allegro,
    aura_flow,
    chroma,
    cogvideox,
    cogview,
    cosmos,
    flux,
    flux2,
    framepack,
    hidream,
    hunyuan_dit,
    hunyuan_image,
    hunyuan_video,
    hunyuan_video15,
    kandinsky5,
    latte,
    ltx,
    ltx2,
    lumina2,
    mochi,
    pixart,
    qwen_image,
    sana,
    sana_video,
    sd3,
    unet,
    wan,
    wan_animate,
    z_image,
)
from tests.families.base import Family

__all__ = ["CORE", "FAMILIES"]

_FILES = (
    wan,
    cogvideox,
    flux,
    unet,
    hunyuan_video,
    sd3,
    ltx,
    qwen_image,
    flux2,
    z_image,
    cosmos,
    kandinsky5,
    chroma,
    mochi,
    ltx2,
    hunyuan_image,
    hunyuan_video15,
    wan_animate,
    sana_video,
    hidream,
    lumina2,
    aura_flow,
    cogview,
    framepack,
    sana,
    pixart,
    hunyuan_dit,
    allegro,
    latte,
)
FAMILIES: dict[str, Family] = {family.name: family for file in _FILES for family in file.FAMILIES}

CORE = {name: FAMILIES[name] for name in ("wan", "cogvideox", "flux", "unet")}
"""Separate, joint and packed sequences, and several levels: what every pattern is tried on."""
