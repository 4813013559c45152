"""UNets of Stable Diffusion, AnimateDiff and Stable Video Diffusion: picture tokens only, a grid for every level.

A level is named after its block: ``down_blocks.<i>``, ``mid_block``, ``up_blocks.<i>``. The size of a level
follows from the latent size and the downsamplers on the way; an up block runs at the size of the down block
that it mirrors, because Diffusers hands it that size wherever the latent size does not divide.

Frames of a video are samples of a batch, each a picture. Layers that attend over time alone, for one place at a time,
see as many tokens as there are frames: they are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

from torch import nn

from dattn.adapters.base import Adapter, Grids, Inputs, Site
from dattn.adapters.text import Prompt, lengths
from dattn.grid import TokenGrid

Size = tuple[int, int]

OVER_TIME = frozenset(
    {
        "motion_modules",
        "temp_attentions",
        "temporal_transformer_blocks",
        "transformer_in",
        "image_latents_temporal_encoder",
    }
)
FEW = "attends over time alone, a few tokens"


def blocks(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """Blocks in execution order; ``named_modules`` would put the middle block last."""
    for name in ("image_latents_temporal_encoder", "transformer_in"):
        if hasattr(model, name):
            yield name, getattr(model, name)
    yield from ((f"down_blocks.{i}", block) for i, block in enumerate(model.down_blocks))
    if model.mid_block is not None:
        yield "mid_block", model.mid_block
    yield from ((f"up_blocks.{i}", block) for i, block in enumerate(getattr(model, "up_blocks", ())))


def sites(model: Any) -> list[Site]:
    """Every ``Attention`` that has no context of its own, GLIGEN's gated layers (image and boxes) apart."""
    return _sites_that(model, _is_self_attention)


def text_sites(model: Any) -> list[Site]:
    """Every ``Attention`` that looks at the prompt."""
    return [site for site in _sites_that(model, _is_cross_attention) if not site.why]


def _sites_that(model: Any, is_wanted: Callable[[nn.Module], bool]) -> list[Site]:
    return [
        _site(f"{level}.{name}", module, level)
        for level, block in blocks(model)
        for name, module in sorted(block.named_modules(), key=_turn)
        if is_wanted(module) and ".fuser." not in name
    ]


def _site(name: str, module: nn.Module, level: str) -> Site:
    if OVER_TIME & set(name.split(".")):
        return Site(name, module, "time", FEW)
    return Site(name, module, level)


def _turn(named: tuple[str, nn.Module]) -> list[tuple[int, bool]]:
    """What sorts modules of a block as they run: number by number, and of each number space before time."""
    path = named[0].split(".")
    return [(int(number), name in OVER_TIME) for name, number in pairwise(path) if number.isdigit()]


def _is_cross_attention(module: nn.Module) -> bool:
    from diffusers.models.attention_processor import Attention

    return isinstance(module, Attention) and module.is_cross_attention and module.added_kv_proj_dim is None


def _is_self_attention(module: nn.Module) -> bool:
    from diffusers.models.attention_processor import Attention

    if not isinstance(module, Attention):
        return False
    return not module.is_cross_attention and module.added_kv_proj_dim is None


def grids(model: Any, inputs: Inputs) -> dict[str, Grids]:
    """Latents [batch, …, height, width], walked down the blocks and mirrored up again."""
    size = tuple(inputs.get(0, "sample").shape[-2:])
    entry = []
    for block in model.down_blocks:
        entry.append(size)
        for sampler in block.downsamplers or ():
            size = _halve(size, sampler)
    sizes = {f"down_blocks.{i}": at for i, at in enumerate(entry)}
    sizes |= {f"up_blocks.{i}": at for i, at in enumerate(reversed(entry))}
    sizes["mid_block"] = size
    return {"time": FEW, **{level: TokenGrid(1, *at) for level, at in sizes.items()}}


def _halve(size: Size, sampler: nn.Module) -> Size:
    """A 3 x 3 convolution of stride 2 with a border of one rounds up; average pooling rounds down."""
    up = int(bool(getattr(sampler, "use_conv", True) and getattr(sampler, "padding", 1)))
    return (size[0] + up) // 2, (size[1] + up) // 2


def prompt(model: Any, arguments: Mapping[str, Any]) -> Prompt:
    """Before what I2VGen-XL knows of its picture: 8 x 8 places, and a token for every channel of the latents."""
    beside = 8 * 8 + model.config.in_channels if arguments.get("image_latents") is not None else 0
    return Prompt(lengths(arguments, "encoder_hidden_states"), beside=beside)


ADAPTER = Adapter(
    family="unet",
    title="Stable Diffusion 1.5, 2, XL, their ControlNets, AnimateDiff, Stable Video Diffusion, ModelScope, I2VGen-XL",
    models=(
        "UNet2DConditionModel",
        "ControlNetModel",
        "UNetMotionModel",
        "UNetSpatioTemporalConditionModel",
        "UNet3DConditionModel",
        "I2VGenXLUNet",
    ),
    text="separate cross-attention",
    video=False,  # a layer sees one picture, of videos too
    sites=sites,
    grids=grids,
    text_sites=text_sites,
    prompt=prompt,
    positive_first=("InstructPix2Pix",),
)
