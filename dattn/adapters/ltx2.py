"""LTX-2: video tokens only in the video's self-attention (``attn1``); text and sound in cross-attention.

Given frames and reference videos come behind the video. Sound has self-attention of its own, without a grid.
"""

from __future__ import annotations

from typing import Any

from dattn.adapters.base import Adapter, Grids, Inputs, Positions, Site, sites_in
from dattn.adapters.text import Asked, Written, padded_left
from dattn.grid import TokenGrid

SOUND = "it attends over sound, which has no frames, rows and columns"


def sites(model: Any) -> list[Site]:
    """``transformer_blocks.<i>.attn1`` for video and ``audio_attn1`` for sound, block after block."""
    return [
        Site(f"transformer_blocks.{i}.{name}", getattr(block, name), why=why)
        for i, block in enumerate(model.transformer_blocks)
        for name, why in (("attn1", ""), ("audio_attn1", SOUND))
    ]


text_sites = sites_in("transformer_blocks.*.attn2")  # the video's; sound has others


def grids(model: Any, inputs: Inputs) -> dict[str, Grids]:
    """From the sizes of the latents; where a pipeline passes none, from ``video_coords`` [batch, 3, tokens, 2]."""
    if inputs.get(22, "video_self_attention_mask") is not None:
        return {"": "weights between video and references were passed as a mask, which a pattern cannot honour"}
    sizes = [inputs.get(10 + i, name) for i, name in enumerate(("num_frames", "height", "width"))]
    if None in sizes:
        return {"": Positions(inputs.get(15, "video_coords")[0, :, :, 0].T, 0, video=True)}
    patches = (model.config.patch_size_t, model.config.patch_size, model.config.patch_size)
    grid = TokenGrid(*(-(-size // patch) for size, patch in zip(sizes, patches, strict=True)))
    given = inputs.get(0, "hidden_states").shape[1] - grid.visual
    return {"": TokenGrid(*grid.shape, text=given)}


def written(pipeline: Any, prompt: str, asked: Asked) -> Written:
    """As it is; where the pipeline's connectors replace padding by registers, they put it behind."""
    registers = pipeline.connectors.config.video_connector_num_learnable_registers
    return Written(prompt.strip(), last=registers is None and padded_left(pipeline))


ADAPTER = Adapter(
    family="ltx2",
    title="LTX-2",
    models=("LTX2VideoTransformer3DModel",),
    text="separate cross-attention",
    video=True,
    sites=sites,
    grids=grids,
    text_sites=text_sites,
    written=written,
    one_stream=True,
)
