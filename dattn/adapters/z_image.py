"""Z-Image: one joint sequence, the picture first, then its caption, each padded to a multiple of 32.

The picture's padding is always to be seen, and counts as text; that up to the longest sample of a batch is masked by
the model. The noise refiner sees the picture without the caption. In the omni model captions come first, then pictures
that are given, then the picture being made, then features of the given ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from dattn.adapters.base import Adapter, Inputs, Site
from dattn.adapters.text import Asked, Prompt, Prompts, Written, in_chat, in_template, untold
from dattn.grid import TokenGrid

Sample = tuple[int, tuple[int, ...], int]
"""Tokens before a picture, its size, tokens after it."""
TEXT, FEATURES = "it sees text alone", "it sees features of given pictures alone"


def sites(model: Any) -> list[Site]:
    """``attention`` of ``noise_refiner``, ``context_refiner``, ``siglip_refiner`` if there is one, and ``layers``."""
    parts = (
        ("noise_refiner", "noise_refiner", ""),
        ("context_refiner", "text", TEXT),
        ("siglip_refiner", "features", FEATURES),
        ("layers", "", ""),
    )
    return [
        Site(f"{part}.{i}.attention", block.attention, level, why)
        for part, level, why in parts
        for i, block in enumerate(getattr(model, part) or ())
    ]


def grids(model: Any, inputs: Inputs) -> dict[str, tuple[TokenGrid, ...] | str]:
    """From lists of latents [channels, frames, height, width] and captions; in the omni model from lists of lists."""
    latents, captions = inputs.get(0, "x"), inputs.get(2, "cap_feats")
    features = inputs.get(5, "siglip_feats") or [None] * len(latents)
    patch, frames = inputs.get(7, "patch_size") or 2, inputs.get(8, "f_patch_size") or 1
    alone: list[Sample] = []
    joint: list[Sample] = []
    for pictures, texts, given in zip(latents, captions, features, strict=True):
        *others, size = [_size(picture, (frames, patch, patch)) for picture in _listed(pictures)]
        before, after = sum(_padded(prod(other)) for other in others), -prod(size) % 32
        text = sum(_padded(len(item)) for item in _listed(texts))
        seen = sum(_padded(0 if item is None else item[..., 0].numel()) for item in given or ())
        alone.append((before, size, after))
        omni = isinstance(pictures, list)
        joint.append((text + before, size, after + seen) if omni else (before, size, after + text))
    return {"text": TEXT, "features": FEATURES, "noise_refiner": _batched(alone), "": _batched(joint)}


def _listed(sample: Any) -> list[Any]:
    return sample if isinstance(sample, list) else [sample]


def _size(picture: Any, patches: tuple[int, int, int]) -> tuple[int, int, int]:
    """In tokens; of no picture 0."""
    if picture is None:
        return 0, 0, 0
    frames, height, width = (n // p for n, p in zip(picture.shape[1:], patches, strict=True))
    return frames, height, width


def _padded(count: int) -> int:
    """Up to a multiple of 32, which is also what stands for nothing."""
    return max(count + -count % 32, 32)


def _batched(samples: list[Sample]) -> tuple[TokenGrid, ...]:
    """All as long as the longest."""
    longest = max(before + prod(size) + after for before, size, after in samples)
    return tuple(
        TokenGrid(frames, height, width, text=(before, longest - before - frames * height * width))
        for before, (frames, height, width), _ in samples
    )


def prompt(model: Any, arguments: Mapping[str, Any]) -> Prompts:
    """Behind the picture's padding; captions of the omni model are the first."""
    captions, latents = arguments["cap_feats"], arguments["x"]
    if isinstance(latents[0], list):
        return tuple(Prompt((sum(_padded(len(item)) for item in texts),)) for texts in captions)
    patch, frames = arguments.get("patch_size") or 2, arguments.get("f_patch_size") or 1
    skips = [-prod(_size(picture, (frames, patch, patch))) % 32 for picture in latents]
    longest = max(map(len, captions))
    return tuple(Prompt((longest,), skip=skip) for skip in skips)


def written(pipeline: Any, prompt: str, asked: Asked) -> Written:
    """In a conversation, all of which the model is given."""
    pictures = asked.get("num_condition_images")
    if pictures:
        raise untold(pipeline, "puts pictures between the prompt's tokens")
    if pictures is not None:
        return in_template("<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", prompt)

    def render(said: str) -> str:
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": True}
        return str(pipeline.tokenizer.apply_chat_template([{"role": "user", "content": said}], **options))

    return Written(*in_chat(render, prompt))


ADAPTER = Adapter(
    family="z_image",
    title="Z-Image",
    models=("ZImageTransformer2DModel",),
    text="joint, text last (omni: text first)",
    video=False,
    sites=sites,
    grids=grids,
    prompt=prompt,
    written=written,
    positive_first=("ZImage",),
)
