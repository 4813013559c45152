"""FramePack: one joint sequence of history, the section being made, a picture's tokens and text.

History comes in three sizes, the oldest first and smallest, and counts as text before. Of a single sample the model
cuts the text's padding off; of several it masks it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dattn.adapters import hunyuan_video
from dattn.adapters.base import Adapter, Inputs
from dattn.adapters.text import Prompt, lengths
from dattn.grid import TokenGrid

HISTORY = (
    (8, "latents_clean", (1, 2, 2)),
    (10, "latents_history_2x", (2, 4, 4)),
    (12, "latents_history_4x", (4, 8, 8)),
)
"""Arguments, and the patches that they are padded to."""


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid]:
    """Latents [batch, channels, frames, height, width], each axis divided by its patch."""
    frames, height, width = inputs.get(0, "hidden_states").shape[2:]
    patch = model.config.patch_size
    history = sum(_patches(inputs.get(position, name), size) for position, name, size in HISTORY)
    text = inputs.get(5, "image_embeds").shape[1] + inputs.get(2, "encoder_hidden_states").shape[1]
    shape = frames // model.config.patch_size_t, height // patch, width // patch
    return {"": TokenGrid(*shape, text=(history, text))}


def _patches(latents: Any, patch: tuple[int, int, int]) -> int:
    frames, height, width = (-(-size // part) for size, part in zip(latents.shape[2:], patch, strict=True))
    return frames * height * width


def prompt(model: Any, arguments: Mapping[str, Any]) -> Prompt:
    """Behind the tokens of a picture."""
    counts = lengths(arguments, "encoder_hidden_states")
    return Prompt(counts, behind=True, skip=arguments["image_embeds"].shape[1])


ADAPTER = Adapter(
    family="framepack",
    title="FramePack",
    models=("HunyuanVideoFramepackTransformer3DModel",),
    text="joint, history first, text last, padding masked",
    video=True,
    sites=hunyuan_video.sites,
    grids=grids,
    prompt=prompt,
    written=hunyuan_video.written,
)
