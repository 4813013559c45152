"""HunyuanVideo 1.5: one joint sequence, video first, then a picture's tokens and two texts, whose padding is masked.

Without a picture its tokens are masked too. The mask hides padding as keys and as queries: a square.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dattn.adapters.base import Adapter, Inputs, sites_in
from dattn.adapters.text import Asked, Prompt, Prompts, Written, in_chat, lengths
from dattn.grid import TokenGrid

CONTEXTS = ((2, "encoder_hidden_states"), (5, "encoder_hidden_states_2"), (7, "image_embeds"))


sites = sites_in("transformer_blocks.*.attn")  # the refiner sees text alone


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid]:
    """Latents [batch, channels, frames, height, width], each axis divided by its patch."""
    frames, height, width = inputs.get(0, "hidden_states").shape[2:]
    text = sum(inputs.get(*context).shape[1] for context in CONTEXTS)
    patch = model.config.patch_size
    return {"": TokenGrid(frames // model.config.patch_size_t, height // patch, width // patch, text=text)}


def prompt(model: Any, arguments: Mapping[str, Any]) -> Prompts:
    """Behind a picture's tokens, if there is one, and as many of glyphs as are no padding."""
    pictures = arguments["image_embeds"]
    seen = pictures.shape[1] if bool(pictures.any()) else 0
    counts = lengths(arguments, "encoder_hidden_states")
    glyphs = arguments["encoder_attention_mask_2"].bool().sum(1).tolist()
    return tuple(Prompt(counts, skip=seen + count) for count in glyphs)


def written(pipeline: Any, prompt: str, asked: Asked) -> Written:
    """In a conversation, of whose beginning the model is not given the tokens."""

    def render(said: str) -> str:
        turns = [{"role": "system", "content": pipeline.system_message}, {"role": "user", "content": said or " "}]
        return str(pipeline.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    dropped = pipeline.prompt_template_encode_start_idx
    return Written(*in_chat(render, prompt), dropped=dropped, special=False)


ADAPTER = Adapter(
    family="hunyuan_video15",
    title="HunyuanVideo 1.5",
    models=("HunyuanVideo15Transformer3DModel",),
    text="joint, text last, padding masked",
    video=True,
    sites=sites,
    grids=grids,
    prompt=prompt,
    written=written,
    pairs=True,
)
