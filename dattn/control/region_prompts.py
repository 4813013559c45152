"""Prompts beside the one that a pipeline was asked for, as further text tokens of its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dattn.control.stage import Stage
from dattn.tapped import untapped

MODELS = (
    "UNet2DConditionModel",
    "WanTransformer3DModel",
    "PixArtTransformer2DModel",
    "LTXVideoTransformer3DModel",
    "FluxTransformer2DModel",
    "SD3Transformer2DModel",
    "CogVideoXTransformer3DModel",
)
"""Models to which a text token has no position, so that it may stand anywhere among any number of others."""
Encoded = tuple[Tensor, Tensor | None]
"""Embeddings [prompts, tokens, width], and 0 for padding in [prompts, tokens] where the pipeline tells."""


def check_model(pipeline: Any, arguments: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` unless the pipeline's model takes further text tokens, and nothing is in their way."""
    model = getattr(pipeline, "transformer", None) or getattr(pipeline, "unet", None)
    kinds = {cls.__name__ for cls in type(model).__mro__}
    if not kinds.intersection(MODELS):
        raise ValueError(
            f"Regions on {type(model).__name__}: its text tokens have positions of their own, or nobody has looked; "
            f"models that take prompts for regions: {', '.join(MODELS)}. Apply to the pipeline, not to a bare model"
        )
    if hasattr(getattr(model, "patch_embed", None), "pos_embedding") and "CogVideoXTransformer3DModel" in kinds:
        raise ValueError(
            "Regions on this CogVideoX: its position embedding is for a fixed number of text tokens; use a model with "
            "rotary embedding, such as CogVideoX-5b"
        )
    beside = [name for name in ("encoder_hidden_states_image", "video_coords") if arguments.get(name) is not None]
    if beside:
        raise ValueError(f"Regions beside {beside[0]}=: this model tells pictures that are given by a count of tokens")


def encode(stage: Stage, prompts: Sequence[str]) -> Encoded:
    """Prompts as the pipeline encoded its own in this call.

    Raises:
        ValueError: it has encoded none, or not in a way that is known.
    """
    if not stage.encoding:
        raise ValueError("Regions: the pipeline has encoded no prompt in this call; apply to a pipeline, and call that")
    arguments = {name: _anew(name, value) for name, value in stage.encoding.items()}
    unheard = untapped(stage.pipeline.encode_prompt)  # the call's own prompts stay what controls look for words in
    first, *others = unheard(**arguments | {"prompt": list(prompts)})
    if not isinstance(first, Tensor) or first.ndim != 3 or len(first) != len(prompts):
        raise ValueError(f"Regions: {type(stage.pipeline).__name__}.encode_prompt gives no embedding for each prompt")
    shape = first.shape[:2]
    return first, next((mask for mask in others if isinstance(mask, Tensor) and mask.shape == shape), None)


def _anew(name: str, value: Any) -> Any:
    """An argument of ``encode_prompt`` for another prompt, one picture and no guidance."""
    if name.startswith("num_"):
        return 1
    if name == "do_classifier_free_guidance":
        return False
    return None if "prompt" in name else value


def extended(arguments: Mapping[str, Any], rows: slice, follow: Encoded, avoid: Encoded) -> dict[str, Any]:
    """A model's arguments with all prompts of ``follow`` behind the text of some samples, ``avoid`` of the others."""
    text = arguments["encoder_hidden_states"]
    changed = {"encoder_hidden_states": torch.cat([text, _per_sample(text, rows, follow[0], avoid[0])], 1)}
    mask = arguments.get("encoder_attention_mask")
    if mask is not None:
        masks = [pad if pad is not None else torch.ones(tokens.shape[:2]) for tokens, pad in (follow, avoid)]
        changed["encoder_attention_mask"] = torch.cat([mask, _per_sample(mask, rows, *masks)], 1)
    ids = arguments.get("txt_ids")
    if ids is not None:  # all zero
        more = changed["encoder_hidden_states"].shape[1] - text.shape[1]
        changed["txt_ids"] = torch.cat([ids, ids.new_zeros(*ids.shape[:-2], more, ids.shape[-1])], -2)
    return {**arguments, **changed}


def _per_sample(like: Tensor, rows: slice, follow: Tensor, avoid: Tensor) -> Tensor:
    """All prompts one after the other, for every sample: [batch, prompts * tokens, …]."""
    one, other = (tensor.to(like).flatten(0, 1) for tensor in (follow, avoid))
    return torch.stack([one if i in range(len(like))[rows] else other for i in range(len(like))])
