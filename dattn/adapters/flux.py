"""Flux.1 and its kin: one joint sequence, text first, then the picture; reference pictures come last and are kept.

The picture's height and width are in ``img_ids`` alone: rows of (picture, row, column).
"""

from __future__ import annotations

import re
from typing import Any

from dattn.adapters.base import Adapter, Inputs, Positions, sites_in
from dattn.adapters.text import Asked, Written, in_chat, padded_left, untold

PLACES = {
    "FluxTransformer2DModel": 4,
    "BriaTransformer2DModel": 4,
    "BriaFiboTransformer2DModel": 5,
    "LongCatImageTransformer2DModel": 3,
    "OvisImageTransformer2DModel": 3,
}
"""Where each model takes ``img_ids``."""


sites = sites_in("transformer_blocks.*.attn", "single_transformer_blocks.*.attn")


def grids(model: Any, inputs: Inputs) -> dict[str, Positions]:
    """From ``img_ids``."""
    place = next(PLACES[cls.__name__] for cls in type(model).__mro__ if cls.__name__ in PLACES)
    return {"": positions(inputs, place)}


def positions(inputs: Inputs, place: int) -> Positions:
    """From ``img_ids`` [tokens, 3 or more], the argument at ``place``, which some pipelines give a batch."""
    text = inputs.get(1, "encoder_hidden_states").shape[1]
    ids = inputs.get(place, "img_ids")
    return Positions(ids[0] if ids.ndim == 3 else ids, text)


def written(pipeline: Any, prompt: str, asked: Asked) -> Written:
    """As it is; for Ovis-Image in a conversation whose beginning is dropped, for LongCat-Image without its template."""
    if hasattr(pipeline, "user_prompt_begin_id"):  # Ovis-Image
        own = in_chat(lambda said: str(pipeline._get_messages(said)[0]), prompt)
        return Written(*own, dropped=pipeline.user_prompt_begin_id, special=False)
    if not hasattr(pipeline, "prompt_template_encode_prefix"):
        return Written(prompt)
    if "image" in asked:
        raise untold(pipeline, "puts a picture before the prompt")
    if re.search(r"(?<![a-zA-Z])['\"‘“]|['\"’”](?![a-zA-Z])", prompt):
        raise untold(pipeline, "writes what is quoted letter by letter")
    return Written(prompt, last=padded_left(pipeline), special=False)


ADAPTER = Adapter(
    family="flux",
    title="Flux.1, Bria 3.2, Bria FIBO, LongCat-Image, Ovis-Image",
    models=tuple(PLACES),
    text="joint, text first",
    video=False,
    sites=sites,
    grids=grids,
    tokenizers=("tokenizer_2",),
    written=written,
)
