"""Cosmos 1, 2 and 2.5: video tokens only in self-attention (``attn1``), text and image in cross-attention.

Condition and padding masks are channels of the latents and change no sequence.
"""

from __future__ import annotations

from typing import Any

from dattn.adapters.base import Adapter, Inputs, in_patches, sites_in
from dattn.adapters.text import Asked, Written, cleaned, in_chat, padded_left
from dattn.grid import TokenGrid

sites = sites_in("transformer_blocks.*.attn1")
text_sites = sites_in("transformer_blocks.*.attn2")
SYSTEM = "You are a helpful assistant who will provide prompts to an image generator."


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid]:
    """Latents [batch, channels, frames, height, width], each axis divided by its patch."""
    sizes = inputs.get(0, "hidden_states").shape[2:]
    return {"": TokenGrid(*in_patches(sizes, model.config.patch_size))}


def written(pipeline: Any, prompt: str, asked: Asked) -> Written:
    """As it is; for Cosmos 2.5 in a conversation, all of which the model is given."""
    own = cleaned(pipeline, prompt, asked)
    if not type(pipeline).__name__.startswith("Cosmos2_5"):
        return Written(own)

    def render(said: str) -> str:
        turns = [
            {"role": who, "content": [{"type": "text", "text": text}]}
            for who, text in (("system", SYSTEM), ("user", said))
        ]
        return str(pipeline.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False))

    return Written(*in_chat(render, own), last=padded_left(pipeline), special=False)


ADAPTER = Adapter(
    family="cosmos",
    title="Cosmos 1, 2, 2.5",
    models=("CosmosTransformer3DModel",),
    text="separate cross-attention",
    video=True,
    sites=sites,
    grids=grids,
    text_sites=text_sites,
    written=written,
)
