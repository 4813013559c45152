"""What a model is asked for where nobody says else."""

from __future__ import annotations

from dataclasses import dataclass

from ..loading import Loaded

STEPS = 30
"""Of models that say nothing about it."""


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
