"""HiDream: one joint sequence, the picture first, then text.

A picture that is not square is padded to the largest one, with tokens that the model does not hide: they count as text.
"""

from __future__ import annotations

from typing import Any

from dattn.adapters.base import Adapter, Inputs, in_patches, sites_in
from dattn.grid import TokenGrid

sites = sites_in("double_stream_blocks.*.block.attn1", "single_stream_blocks.*.block.attn1")


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid | str]:
    """Latents [batch, channels, height, width]; of text T5's, then the same layer of Llama's twice."""
    latents = inputs.get(0, "hidden_states")
    if latents.ndim == 3:
        return {"": "its latents were cut into patches before, of sizes that are in a tensor"}
    patch = model.config.patch_size
    height, width = in_patches(latents.shape[2:], patch)
    padding = 0 if latents.shape[2] == latents.shape[3] else model.max_seq - height * width
    llama = inputs.get(3, "encoder_hidden_states_llama3")[0]
    text = inputs.get(2, "encoder_hidden_states_t5").shape[1] + 2 * llama.shape[1]
    return {"": TokenGrid(1, height, width, text=padding + text)}


ADAPTER = Adapter(
    family="hidream",
    title="HiDream-I1",
    models=("HiDreamImageTransformer2DModel",),
    text="joint, text last",
    video=False,
    sites=sites,
    grids=grids,
)
