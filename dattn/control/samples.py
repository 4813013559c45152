"""Which samples of a batch belong to which prompt."""

from __future__ import annotations

from dattn.control.base import Call
from dattn.control.stage import Stage

Branch = list[list[int]]
"""The samples of a guidance branch, prompt by prompt."""


def frames_apart(call: Call, stage: Stage) -> int:
    """How many samples a picture or video is: its frames where these are samples, otherwise 1."""
    return max(1, len(call.query) // (stage.batch or len(call.query)))


def branches(call: Call, stage: Stage) -> list[Branch]:
    """The samples of a call by guidance branch and prompt; of one prompt for all, by picture.

    Raises:
        ValueError: a call for one of several samples.
    """
    if stage.sample is not None and stage.samples > 1:
        raise ValueError("this model attends to each sample by itself, so that none sees another")
    batch, prompts, apart = len(call.query), len(stage.prompts), frames_apart(call, stage)
    size = stage.samples * apart
    if not size or batch % size:
        size = call.rows.stop - call.rows.start or batch
    each = size // prompts if prompts > 1 else apart
    starts = range(0, batch, size)
    return [[list(range(first, first + each)) for first in range(start, start + size, each)] for start in starts]
