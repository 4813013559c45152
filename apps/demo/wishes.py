"""What a model is asked for where nobody says else."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..loading import Loaded

STEPS = 30
"""Of models that say nothing about it."""
FEWEST, PACE = 9, 4
"""Frames of a clip, and how many of them more models commonly take at once."""


@dataclass(frozen=True)
class Wishes:
    """Prompt, sizes and steps; whether it makes videos."""

    prompt: str
    frames: int
    height: int
    width: int
    steps: int
    video: bool

    @classmethod
    def of(cls, loaded: Loaded) -> Wishes:
        """Of a demo model: what it was trained for; of any other: usual numbers."""
        native, video = loaded.native, loaded.makes_video
        if native is not None:
            return cls(native.prompt, native.frames if video else 1, native.height, native.width, native.steps, video)
        side = 480 if video else 512
        return cls("", 81 if video else 1, side, side, STEPS, video)

    def within(self, pixels: int, multiple: int) -> Wishes:
        """The same if that many pixels may be made, else fewer frames, and then smaller sides."""
        frames, height, width = self.frames, self.height, self.width
        while frames * height * width > pixels and frames > FEWEST:
            frames = max(FEWEST, 1 + (frames - 1) // 2 // PACE * PACE)
        while frames * height * width > pixels and max(height, width) > multiple:
            height, width = (max(multiple, side // 2 // multiple * multiple) for side in (height, width))
        return replace(self, frames=frames, height=height, width=width)
