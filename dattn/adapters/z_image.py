"""Z-Image: one joint sequence, the picture first, then its caption, each padded to a multiple of 32.

The picture's padding is always to be seen, and counts as text; that up to the longest sample of a batch is masked by
the model. The noise refiner sees the picture without the caption. In the omni model captions come first, then pictures
that are given, then the picture being made, then features of the given ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from dattn.adapters.base import Adapter, Inputs, Site
from dattn.grid import TokenGrid

Sample = tuple[int, tuple[int, int, int], int]
"""Tokens before a picture, its size, tokens after it."""


def sites(model: Any) -> list[Site]:
    """``attention`` of ``noise_refiner``, ``context_refiner``, ``siglip_refiner`` if there is one, and ``layers``."""
    parts = (
        ("noise_refiner", "noise_refiner", ""),
        ("context_refiner", "", "it sees text alone"),
        ("siglip_refiner", "", "it sees features of given pictures alone"),
        ("layers", "", ""),
    )
    return [
        Site(f"{part}.{i}.attention", block.attention, level, why)
        for part, level, why in parts
        for i, block in enumerate(getattr(model, part) or ())
    ]


def grids(model: Any, inputs: Inputs) -> dict[str, tuple[TokenGrid, ...]]:
    """From lists of latents [channels, frames, height, width] and captions; in the omni model from lists of lists."""
    patch, frames = inputs.get(7, "patch_size") or 2, inputs.get(8, "f_patch_size") or 1
    samples = [_pictures(sample, (frames, patch, patch)) for sample in inputs.get(0, "x")]
    captions = [_padded(map(len, _listed(sample))) for sample in inputs.get(2, "cap_feats")]
    features = inputs.get(5, "siglip_feats") or [None] * len(samples)
    joint: list[Sample] = []
    for sample, (before, size, after), text, given in zip(inputs.get(0, "x"), samples, captions, features, strict=True):
        if isinstance(sample, list):
            seen = _padded(0 if item is None else item[..., 0].numel() for item in given or ())
            joint.append((text + before, size, after + seen))
        else:
            joint.append((before, size, after + text))
    return {"noise_refiner": _batched(samples), "": _batched(joint)}


def _listed(sample: Any) -> list[Any]:
    return sample if isinstance(sample, list) else [sample]


def _pictures(sample: Tensor | list[Tensor | None], patches: tuple[int, int, int]) -> Sample:
    """The last picture is the one being made."""
    sizes = [
        None if picture is None else tuple(n // patch for n, patch in zip(picture.shape[1:], patches, strict=True))
        for picture in _listed(sample)
    ]
    counts = [0 if size is None else size[0] * size[1] * size[2] for size in sizes]
    return _padded(counts[:-1]), sizes[-1], -counts[-1] % 32


def _padded(counts: Iterable[int]) -> int:
    """Each up to a multiple of 32, which is also what stands for nothing."""
    return sum(max(count + -count % 32, 32) for count in counts)


def _batched(samples: list[Sample]) -> tuple[TokenGrid, ...]:
    """All as long as the longest."""
    tokens = [before + size[0] * size[1] * size[2] + after for before, size, after in samples]
    return tuple(
        TokenGrid(*size, text=(before, after + max(tokens) - own))
        for (before, size, after), own in zip(samples, tokens, strict=True)
    )


ADAPTER = Adapter(
    family="z_image",
    title="Z-Image",
    models=("ZImageTransformer2DModel",),
    text="joint, text last (omni: text first)",
    video=False,
    sites=sites,
    grids=grids,
)
