"""Flux.2: Flux.1's sequence, with a fourth column of ``img_ids``; reference pictures come last and are kept.

Klein KV puts reference pictures first in one step, where they see only themselves, and later steps look at what it kept
of them: those calls are left alone.
"""

from __future__ import annotations

from typing import Any

from dattn.adapters.base import Adapter, Inputs, Positions
from dattn.adapters.flux import positions, sites
from dattn.adapters.text import Asked, Written, in_chat, padded_left


def grids(model: Any, inputs: Inputs) -> dict[str, Positions | str]:
    """From ``img_ids`` [tokens, 4], which pipelines give a batch."""
    if inputs.get(9, "kv_cache_mode") is not None:
        return {"": "keys of reference pictures are kept from step to step, so this is not self-attention"}
    return {"": positions(inputs, 3)}


def written(pipeline: Any, prompt: str, asked: Asked) -> Written:
    """In a conversation, all of which the model is given; Klein's has no system message."""
    system = getattr(pipeline, "system_message", None)

    def render(said: str) -> str:
        if system is None:
            turns: list[Any] = [{"role": "user", "content": said}]
            options = {"add_generation_prompt": True, "enable_thinking": False}
        else:
            spoken = (("system", system), ("user", said))
            turns = [{"role": who, "content": [{"type": "text", "text": text}]} for who, text in spoken]
            options = {"add_generation_prompt": False}
        return str(pipeline.tokenizer.apply_chat_template(turns, tokenize=False, **options))

    return Written(*in_chat(render, prompt), last=padded_left(pipeline), special=system is None)


ADAPTER = Adapter(
    family="flux2",
    title="Flux.2, Flux.2 Klein",
    models=("Flux2Transformer2DModel",),
    text="joint, text first",
    video=False,
    sites=sites,
    grids=grids,
    written=written,
)
