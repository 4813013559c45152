"""A long video as overlapping segments that are denoised together: their plan, and the control that joins them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dattn.control import Control


@dataclass(frozen=True)
class Segment:
    """A part of a video under one prompt, or on the way from one to the next.

    Attributes:
        prompt: number of the prompt, or of the nearer one.
        toward: number of the prompt that it is on the way to or from; the same in a segment of one prompt.
        weight: share of ``toward`` in the text embedding, at most one half.
        frames: first latent frame, and last + 1.
    """

    prompt: int
    toward: int
    weight: float
    frames: tuple[int, int]


def plan(
    prompts: int, tile: int, overlap: int, transitions: int = 2, hold: int | Sequence[int] = 0
) -> tuple[Segment, ...]:
    """The segments of a video of several prompts (Cai et al., "DiTCtrl", CVPR 2025).

    Between neighbours stand ``transitions`` segments, the j-th with (j + 1) / (transitions + 1) of the next prompt.
    Each prompt has a segment of its own, and as many more as ``hold`` says.

    Args:
        prompts: how many there are.
        tile: latent frames of a segment.
        overlap: latent frames that a segment shares with the next.
        hold: segments more, for each prompt; a number is for those that are neither first nor last.

    Raises:
        ValueError: no prompts, an overlap that is no part of a tile, numbers below 0, not one for each prompt.
    """
    if prompts < 1:
        raise ValueError("prompt=[]: give one prompt or more, in their order in time")
    if not 0 < overlap < tile:
        raise ValueError(
            f"overlap={overlap}: latent frames that neighbours share, 1 to {tile - 1} where a segment has {tile}"
        )
    if transitions < 0 or (hold if isinstance(hold, int) else min(hold, default=0)) < 0:
        raise ValueError(f"transitions={transitions}, hold={hold}: numbers of segments, 0 or more")
    texts: list[tuple[int, int, float]] = []
    more = _held(prompts, hold)
    for number in range(prompts):
        texts += [(number, number, 0.0)] * (1 + more[number])
        for j in range(transitions if number < prompts - 1 else 0):
            share = (j + 1) / (transitions + 1)
            texts.append((number, number + 1, share) if share <= 0.5 else (number + 1, number, 1 - share))
    step = tile - overlap
    return tuple(Segment(*text, (i * step, i * step + tile)) for i, text in enumerate(texts))


def _held(prompts: int, hold: int | Sequence[int]) -> list[int]:
    """Segments more than one, for each prompt."""
    if isinstance(hold, int):
        return [hold if 0 < number < prompts - 1 else 0 for number in range(prompts)]
    if len(hold) != prompts:
        raise ValueError(
            f"hold={list(hold)}: {len(hold)} numbers for {prompts} prompts; give one for each, or a number"
        )
    return list(hold)


class Joined(Control):
    """Makes the samples of a call the segments of one video.

    What neighbours share begins with the same noise. After every forward pass the model's outputs are blended there,
    with weights that fall off linearly from the middle of a segment; as all of them are of the same noisy latents,
    this blends the pictures that they predict. After the last step the segments are one video, which the pipeline
    decodes. Text embeddings are mixed as the plan says.

    Args:
        segments: as ``plan`` gives them.

    Raises:
        ValueError: at the first step, other samples than segments.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = tuple(segments)

    def inputs(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """The text embeddings of segments on the way between two prompts are those of both, mixed."""
        name, mixed = "encoder_hidden_states", arguments["encoder_hidden_states"].clone()
        own = {segment.prompt: i for i, segment in enumerate(self.segments) if not segment.weight}
        rows = self.stage.rows(len(mixed))
        for i, segment in enumerate(self.segments if rows.stop > rows.start else ()):
            here, there = (arguments[name][rows.start + own[n]] for n in (segment.prompt, segment.toward))
            mixed[rows.start + i] = here.lerp(there, segment.weight)
        return {**arguments, name: mixed}

    def prepared(self, latents: Tensor) -> Tensor:
        """The same noise where segments meet."""
        if len(latents) != len(self.segments):
            raise ValueError(f"{len(latents)} samples for {len(self.segments)} segments: give a prompt for each")
        return self._cut(self._earliest(latents))

    def guided(self, output: Tensor, again: Callable[[], Tensor]) -> Tensor:
        """Outputs that agree where segments meet."""
        branches = output.unflatten(0, (-1, len(self.segments)))
        return torch.stack([self._cut(self._blended(branch)) for branch in branches]).flatten(0, 1)

    def stepped(self, latents: Tensor) -> Tensor:
        """Noise that a scheduler adds is made the same where segments meet; in the end they are one video."""
        whole = self._earliest(latents)
        return whole[None] if self.stage.step == self.stage.steps - 1 else self._cut(whole)

    @property
    def _axis(self) -> int:
        """The axis of frames in one segment's latents."""
        return 0 if self.stage.frames_first else 1

    def _empty(self, like: Tensor) -> Tensor:
        shape = list(like.shape[1:])
        shape[self._axis] = self.segments[-1].frames[1]
        return like.new_zeros(shape)

    def _part(self, whole: Tensor, segment: Segment) -> Tensor:
        first, last = segment.frames
        return whole.narrow(self._axis, first, last - first)

    def _cut(self, whole: Tensor) -> Tensor:
        """The segments of a video: [segments, …]."""
        return torch.stack([self._part(whole, segment) for segment in self.segments])

    def _earliest(self, parts: Tensor) -> Tensor:
        """One video of segments [segments, …], each over those after it."""
        whole = self._empty(parts)
        for segment, part in reversed(list(zip(self.segments, parts, strict=True))):
            self._part(whole, segment).copy_(part)
        return whole

    def _blended(self, parts: Tensor) -> Tensor:
        """One video of segments [segments, …], the weighted mean where they meet."""
        shape = [1] * (parts.ndim - 1)
        shape[self._axis] = -1
        weight = triangle(parts.shape[1 + self._axis]).to(parts.device).view(shape)
        whole, total = self._empty(parts.float()), self._empty(parts.float())
        for segment in self.segments:
            self._part(total, segment).add_(weight)
        for segment, part in zip(self.segments, parts, strict=True):
            self._part(whole, segment).add_(weight / self._part(total, segment) * part)
        return whole.to(parts)


def triangle(frames: int) -> Tensor:
    """Weights of a segment's frames, float32 [frames]: min(x, 2 - x) at x = (i + 0.5) · 2 / frames."""
    x = (torch.arange(frames) + 0.5) * 2 / frames
    return torch.minimum(x, 2 - x)
