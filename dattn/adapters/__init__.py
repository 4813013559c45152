"""Model families: one file each, one line each in ``ADAPTERS``."""

from __future__ import annotations

from torch import nn

from dattn.adapters import (
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
from dattn.adapters.base import Adapter, Inputs, Site

__all__ = ["ADAPTERS", "Adapter", "Inputs", "Site", "adapter_for"]

ADAPTERS = (
    wan.ADAPTER,
    cogvideox.ADAPTER,
    flux.ADAPTER,
    unet.ADAPTER,
    hunyuan_video.ADAPTER,
    sd3.ADAPTER,
    ltx.ADAPTER,
    qwen_image.ADAPTER,
    flux2.ADAPTER,
    z_image.ADAPTER,
    cosmos.ADAPTER,
    kandinsky5.ADAPTER,
    chroma.ADAPTER,
    mochi.ADAPTER,
    ltx2.ADAPTER,
    hunyuan_image.ADAPTER,
    hunyuan_video15.ADAPTER,
    wan_animate.ADAPTER,
    sana_video.ADAPTER,
    hidream.ADAPTER,
    lumina2.ADAPTER,
    aura_flow.ADAPTER,
    cogview.ADAPTER,
    framepack.ADAPTER,
    sana.ADAPTER,
    pixart.ADAPTER,
    hunyuan_dit.ADAPTER,
    allegro.ADAPTER,
    latte.ADAPTER,
)


def adapter_for(model: nn.Module) -> Adapter:
    """The adapter of a model, by the names of its class and base classes.

    Raises:
        ValueError: no adapter knows the model.
    """
    names = {cls.__name__ for cls in type(model).__mro__}
    for adapter in ADAPTERS:
        if names & set(adapter.models):
            return adapter
    known = ", ".join(f"{name} ({adapter.title})" for adapter in ADAPTERS for name in adapter.models)
    raise ValueError(
        f"{type(model).__name__} is not supported; supported: {known}. A new model is one file in "
        "dattn/adapters and one line in its table: CONTRIBUTING.md shows how"
    )
