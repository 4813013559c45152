"""HiDream: one joint sequence, the picture first, then text.

A picture that is not square is padded to the largest one, with tokens that the model does not hide: they count as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from dattn.adapters.base import Adapter, Inputs, in_patches, sites_in
from dattn.adapters.text import Prompt
from dattn.grid import TokenGrid

sites = sites_in("double_stream_blocks.*.block.attn1", "single_stream_blocks.*.block.attn1")


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid | str]:
    """Latents [batch, channels, height, width]; of text T5's, then the same layer of Llama's twice."""
    latents = inputs.get(0, "hidden_states")
    if latents.ndim == 3:
        return {"": "its latents were cut into patches before, of sizes that are in a tensor"}
    height, width = in_patches(latents.shape[2:], model.config.patch_size)
    llama = inputs.get(3, "encoder_hidden_states_llama3")[0]
    text = inputs.get(2, "encoder_hidden_states_t5").shape[1] + 2 * llama.shape[1]
    return {"": TokenGrid(1, height, width, text=_padding(model, latents) + text)}


def prompt(model: Any, arguments: Mapping[str, Any]) -> Prompt:
    """T5's tokens, then Llama's twice, behind the picture's padding."""
    t5, llama = arguments["encoder_hidden_states_t5"].shape[1], arguments["encoder_hidden_states_llama3"][0].shape[1]
    return Prompt((t5, llama, llama), skip=_padding(model, arguments["hidden_states"]))


def _padding(model: Any, latents: Any) -> int:
    """Tokens of padding behind a picture; none where it is square, or was cut into patches before."""
    if latents.ndim == 3 or latents.shape[2] == latents.shape[3]:
        return 0
    return int(model.max_seq - prod(in_patches(latents.shape[2:], model.config.patch_size)))


ADAPTER = Adapter(
    family="hidream",
    title="HiDream-I1",
    models=("HiDreamImageTransformer2DModel",),
    text="joint, text last",
    video=False,
    sites=sites,
    grids=grids,
    tokenizers=("tokenizer_3", "tokenizer_4", "tokenizer_4"),
    prompt=prompt,
)
