"""Stable Diffusion 1.5, 2 and XL UNets: image tokens only, and every level has a grid of its own.

A level is named after its block: ``down_blocks.<i>``, ``mid_block``, ``up_blocks.<i>``. The size of a level
follows from the latent size and the downsamplers on the way; an up block runs at the size of the down block
that it mirrors, because Diffusers hands it that size wherever the latent size does not divide.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from dattn.adapters.base import Adapter, Inputs, Site
from dattn.grid import TokenGrid

Size = tuple[int, int]


def blocks(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """Blocks in execution order; ``named_modules`` would put the middle block last."""
    yield from ((f"down_blocks.{i}", block) for i, block in enumerate(model.down_blocks))
    if model.mid_block is not None:
        yield "mid_block", model.mid_block
    yield from ((f"up_blocks.{i}", block) for i, block in enumerate(model.up_blocks))


def sites(model: Any) -> list[Site]:
    """Every ``Attention`` that has no context of its own, GLIGEN's gated layers (image and boxes) apart."""
    return [
        Site(f"{level}.{name}", module, level)
        for level, block in blocks(model)
        for name, module in block.named_modules()
        if _is_self_attention(module) and ".fuser." not in name
    ]


def _is_self_attention(module: nn.Module) -> bool:
    from diffusers.models.attention_processor import Attention

    if not isinstance(module, Attention):
        return False
    return not module.is_cross_attention and module.added_kv_proj_dim is None


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid]:
    """Latents [batch, channels, height, width], walked down the blocks and mirrored up again."""
    size = tuple(inputs.get(0, "sample").shape[2:])
    entry = []
    for block in model.down_blocks:
        entry.append(size)
        for sampler in block.downsamplers or ():
            size = _halve(size, sampler)
    sizes = {f"down_blocks.{i}": at for i, at in enumerate(entry)}
    sizes |= {f"up_blocks.{i}": at for i, at in enumerate(reversed(entry))}
    sizes["mid_block"] = size
    return {level: TokenGrid(1, *at) for level, at in sizes.items()}


def _halve(size: Size, sampler: nn.Module) -> Size:
    """A 3 x 3 convolution of stride 2 with a border of one rounds up; average pooling rounds down."""
    up = int(bool(getattr(sampler, "use_conv", True) and getattr(sampler, "padding", 1)))
    return (size[0] + up) // 2, (size[1] + up) // 2


ADAPTER = Adapter(
    family="unet",
    title="Stable Diffusion 1.5, 2, XL",
    models=("UNet2DConditionModel",),
    text="separate cross-attention",
    sites=sites,
    grids=grids,
)
