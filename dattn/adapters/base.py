"""What one small file per model family says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dattn.adapters import text as texts
from dattn.adapters.text import Asked, Prompts, Written
from dattn.grid import TokenGrid


@dataclass(frozen=True)
class Positions:
    """A grid that only a table of positions tells.

    Of pictures, the one being made comes first and others come after it. Of frames, the video is the longest stretch
    of them in order of time, and those around it are given ones.

    The table's numbers are not something that a compiler can trace, so ``grid`` runs outside of a graph.

    Attributes:
        ids: [tokens, 3 or more]; picture or time, row and column of every token of a picture.
        text: how many text tokens come before them.
        video: whether these are frames.
    """

    ids: Tensor
    text: int
    video: bool = False

    def grid(self) -> TokenGrid:
        """The size of what is made; what is around it counts as text."""
        return self._of_frames() if self.video else self._of_pictures()

    def _of_pictures(self) -> TokenGrid:
        ids = self.ids
        own = int((ids[:, 0] == ids[0, 0]).sum())
        width = int((ids[:own, 1] == ids[0, 1]).sum())  # counted, not read: bfloat16 has no numbers like 257
        return TokenGrid(1, own // width, width, text=(self.text, len(ids) - own))

    def _of_frames(self) -> TokenGrid:
        times, sizes = torch.unique_consecutive(self.ids[:, 0], return_counts=True)
        start, end = _longest_clip(times.tolist(), sizes.tolist())
        size, before = int(sizes[start]), int(sizes[:start].sum())
        own = self.ids[before : before + size]
        width = int((own[:, 1] == own[0, 1]).sum())
        after = len(self.ids) - before - (end - start) * size
        return TokenGrid(end - start, size // width, width, text=(self.text + before, after))


def _longest_clip(times: list[float], sizes: list[int]) -> tuple[int, int]:
    """Where the longest stretch of frames starts and ends that are equally large and in order of time."""
    frames = list(zip(times, sizes, strict=True))
    joined = [size == other and time < later for (time, size), (later, other) in pairwise(frames)]
    cuts = [0, *(i + 1 for i, join in enumerate(joined) if not join), len(frames)]
    return max(pairwise(cuts), key=lambda clip: sum(sizes[slice(*clip)]))


Grids = TokenGrid | tuple[TokenGrid, ...] | Positions | str
"""The grid of a call; one for every sample where they differ; what tells it; or why the call is left alone."""


@dataclass(frozen=True)
class Site:
    """A self-attention module.

    Attributes:
        name: in the model.
        module: what holds the processor.
        level: whose grid it sees.
        why: why no pattern can run in it; ``""`` where one can.
    """

    name: str
    module: Any
    level: str = ""
    why: str = ""


def sites_in(*paths: str, why: str = "", level: str = "") -> Callable[[Any], list[Site]]:
    """What lists the modules behind each path in turn; ``*`` counts through a list, as in ``"blocks.*.attn1"``."""

    def sites(model: Any) -> list[Site]:
        found = []
        for path in paths:
            blocks, within = path.split(".*.")
            listed = enumerate(model.get_submodule(blocks))
            found += [Site(f"{blocks}.{i}.{within}", block.get_submodule(within), level, why) for i, block in listed]
        return found

    return sites


def in_patches(lengths: Sequence[Any], patch: int | Sequence[int]) -> tuple[Any, ...]:
    """Lengths divided by the patch, or each by its own, rounded down."""
    each = [patch] * len(lengths) if isinstance(patch, int) else patch
    return tuple(length // size for length, size in zip(lengths, each, strict=True))


@dataclass(frozen=True)
class Inputs:
    """The arguments of one forward call of the top-level model."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def get(self, position: int, name: str) -> Any:
        """The argument called ``name``, at ``position`` when it was passed without its name; None if it was not."""
        if name in self.kwargs:
            return self.kwargs[name]
        return self.args[position] if position < len(self.args) else None


@dataclass(frozen=True)
class Adapter:
    """How one model family is read.

    Attributes:
        family: short name, the key of its presets.
        title: what people call it.
        models: class names of the top-level models; subclasses count.
        text: where text tokens sit in self-attention, in plain words for the table of models.
        video: whether it makes videos; a preset of no family in particular goes by that.
        sites: the model's self-attention modules in execution order.
        grids: from the model and the inputs of one call to the grid of every level. The count of text
            behind, or before where none is behind, need not be exact: a call's own length corrects it.
        pairs: whether the model multiplies what it says of every token, such as 0 for padding, with itself into a mask
            [batch, 1, tokens, tokens].
        one_stream: whether context parallelism cuts what counts as text here together with the picture.
        text_sites: the modules in which the picture looks at the prompt alone, in execution order; none where both
            share one sequence.
        tokenizers: the pipeline's attributes whose tokens the model sees, one after the other; those before the last
            fill their whole length. A pipeline without any of them has just ``tokenizer``.
        prompt: from the model and the arguments of one call, by name, to where the prompt is.
        written: from the pipeline, a prompt, and what ``encode_prompt`` was called with, to what is tokenized; raises
            ``ValueError`` where the words' tokens cannot be told.
        positive_first: parts of names of pipelines that put the samples that follow the prompt before the others.
        frames_first: whether the latents of a video are [batch, frames, channels, height, width].
    """

    family: str
    title: str
    models: tuple[str, ...]
    text: str
    video: bool
    sites: Callable[[Any], list[Site]]
    grids: Callable[[Any, Inputs], Mapping[str, Grids]]
    pairs: bool = False
    one_stream: bool = False
    text_sites: Callable[[Any], list[Site]] = lambda model: []
    tokenizers: tuple[str, ...] = ("tokenizer",)
    prompt: Callable[[Any, Mapping[str, Any]], Prompts] = texts.prompt
    written: Callable[[Any, str, Asked], Written] = texts.written
    positive_first: tuple[str, ...] = ()
    frames_first: bool = False
