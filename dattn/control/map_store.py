"""Word maps as pictures: how much every place of a picture looks at words, on average, at one size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dattn.control.base import Call, Control, Layers, Place, among
from dattn.control.samples import frames_apart
from dattn.control.stage import Stage
from dattn.control.words import Phrase

Size = tuple[int, int, int]
TOKENS = 16**2
"""Of a frame, in the layers whose maps the methods' authors found to tell words apart."""


def word_maps(call: Call, control: Control, phrases: list[list[Phrase]], total: bool = False) -> Tensor:
    """Maps of the samples that follow a prompt.

    Args:
        control: whose call it is.
        phrases: of every prompt; one list serves all. Where a prompt has fewer than others, the maps that it lacks
            are zeros.
        total: the sum over the tokens of a phrase in place of their mean.

    Returns:
        [samples, heads, phrases, frames, height, width]: probabilities, differentiable. Frames that are samples of
        the batch become frames of one.

    Raises:
        ValueError: one of several samples, of a model that attends to each by itself.
    """
    stage, place = control.stage, call.place
    if stage.sample is not None and stage.samples > 1:
        raise ValueError("this model attends to each sample by itself: for maps of words call the pipeline for one")
    tokens, choice = control.once(call, lambda: _choice(call, stage, phrases, total), repr(phrases), total)
    looks = call.conditional().columns(tokens)
    looks = looks[:, :, place.visual].unflatten(2, place.grid.shape)
    maps = torch.einsum("shfyxt,spt->shpfyx", looks, choice)
    apart = frames_apart(call, stage)
    return maps if apart == 1 else maps.unflatten(0, (-1, apart)).movedim(1, -4).flatten(-4, -3)


def _choice(call: Call, stage: Stage, phrases: list[list[Phrase]], total: bool) -> tuple[Tensor, Tensor]:
    """The keys that are looked at, int64 [tokens], and how they count for phrases: [samples, phrases, tokens]."""
    text, pairs = call.place.text, stage.prompt_of(call.rows)
    keys = [[stage.keys(phrase, prompt, text) for phrase in phrases[prompt % len(phrases)]] for _, prompt in pairs]
    tokens = sorted({key for sample in keys for phrase in sample for key in phrase})
    choice = torch.zeros(len(keys), max(map(len, keys)), len(tokens), dtype=call.value.dtype)
    for sample, of_sample in enumerate(keys):
        for phrase, found in enumerate(of_sample):
            choice[sample, phrase, [tokens.index(key) for key in found]] = 1 if total else 1 / len(found)
    return torch.tensor(tokens, device=call.key.device), choice.to(call.value.device)


def resize(maps: Tensor, size: Size, mode: str = "bicubic") -> Tensor:
    """``[..., frames, height, width]`` at another size, frame by frame; frames are repeated or left out."""
    frames, height, width = maps.shape[-3:]
    if (height, width) != size[1:]:
        options = {} if mode == "nearest" else {"align_corners": False}
        flat = maps.reshape(-1, 1, height, width)
        flat = F.interpolate(flat, size=size[1:], mode=mode, **options)
        maps = flat.reshape(*maps.shape[:-2], *size[1:])
    if frames != size[0]:
        nearest = (torch.arange(size[0], device=maps.device) * frames) // size[0]
        maps = maps.index_select(-3, nearest)
    return maps


class MapStore:
    """A running mean of maps at one size, in memory that does not grow with layers or steps."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, maps: Tensor) -> None:
        """Take in ``[samples, phrases, frames, height, width]`` of any size; values are kept at 0 or above."""
        maps = resize(maps.float(), self.size).clamp(min=0)
        self._sum = maps if self._sum is None else self._sum + maps
        self._count += 1

    @property
    def mean(self) -> Tensor:
        """``[samples, phrases, frames, height, width]``, float32.

        Raises:
            RuntimeError: nothing has been taken in.
        """
        if self._sum is None:
            raise RuntimeError("no maps yet: call the pipeline first, with at least one of the chosen layers and steps")
        return self._sum / self._count


def on_latents(maps: Tensor, latents: Tensor, frames_first: bool = False, mode: str = "nearest") -> Tensor:
    """Maps ``[samples, frames, height, width]`` in a shape that multiplies latents, whichever way those are laid out.

    Videos are ``[samples, channels, frames, height, width]``, or with ``frames_first`` frames before channels.

    Raises:
        ValueError: latents of a layout that is not known.
    """
    if latents.ndim == 3 and latents.shape[1] == maps[0].numel():  # packed: tokens, channels
        return maps.flatten(1)[..., None]
    if latents.ndim == 4:
        return resize(maps, (1, *latents.shape[2:]), mode)
    if latents.ndim == 5:
        time = 1 if frames_first else 2
        return resize(maps, (latents.shape[time], *latents.shape[3:]), mode).unsqueeze(3 - time)
    raise ValueError(f"latents of {tuple(latents.shape)}: maps of {tuple(maps.shape)} cannot be laid over them")


def tells_words(layers: Layers, stage: Stage, place: Place) -> bool:
    """Whether a place sees text and is chosen; with None, whether it is of the level that is nearest to ``TOKENS``."""
    if place.kind == "self" or layers is not None:
        return place.kind != "self" and among(layers, place)
    levels = {grid.visual for grid in stage.levels} or {place.grid.visual}
    return place.grid.visual == min(levels, key=lambda visual: abs(visual - TOKENS * place.grid.frames))
