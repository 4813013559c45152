"""A part of a picture or video with a prompt of its own, and the share of each token that lies in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from dattn.grid import TokenGrid

Box: TypeAlias = Sequence[float]
"""(left, top, right, bottom), fractions of the picture from its upper left corner."""
Boxes: TypeAlias = Box | Sequence[Box] | Mapping[int, Box]
"""A box, or a track: one for every frame, or some frames' boxes between which the others are interpolated."""
NEXT_TO_NOTHING = 1e-6
"""Shares of a token so close to 0 or 1 are rounding."""


@dataclass(frozen=True, eq=False)
class Region:
    """A prompt for a part of the picture.

    Attributes:
        prompt: what is to be there.
        box: (left, top, right, bottom) as fractions of the picture; or a track, which is stretched over the clip
            however long it is: a list with a box for every frame, or ``{frame: box}``, whose last frame is the clip's.
        mask: [height, width] or [frames, height, width] of any size, bool or in [0, 1]; stretched over the picture.
        negative: what is not to be there; None leaves that to the pipeline's own negative prompt.

    Raises:
        ValueError: box and mask both or neither, a box outside of the picture or without area, a mask of another kind
            or an empty one.
    """

    prompt: str
    box: Boxes | None = None
    mask: Tensor | None = None
    negative: str | None = None

    def __post_init__(self) -> None:
        if (self.box is None) == (self.mask is None):
            raise ValueError(f"region {self.prompt!r}: give it a box or a mask, one of them")
        self._painted() if self.box is None else track_of(self.box)

    def cover(self, grid: TokenGrid) -> Tensor:
        """The share of every visual token that lies in it, by area: float64 [visual].

        Raises:
            ValueError: a track or a mask of several frames where the model sees one.
        """
        cover = self._painted() if self.box is None else covered(track_of(self.box), grid)
        if len(cover) > 1 and grid.frames == 1:
            raise ValueError(
                f"region {self.prompt!r} moves over {len(cover)} frames, but attention sees one picture here: give one "
                "box or one mask"
            )
        cover = averaged(cover, grid.shape).double().flatten()
        cover = cover.masked_fill(cover < NEXT_TO_NOTHING, 0)
        return cover.masked_fill(cover > 1 - NEXT_TO_NOTHING, 1)

    def _painted(self) -> Tensor:
        """The mask as [frames, height, width], of a type to compute with."""
        mask = self.mask
        if not isinstance(mask, Tensor) or mask.ndim not in (2, 3) or not mask.numel():
            shape = tuple(mask.shape) if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
            raise ValueError(f"region {self.prompt!r}: mask of {shape}; give a tensor [height, width] or [frames, …]")
        low, high = mask.min().item(), mask.max().item()
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"region {self.prompt!r}: mask with values from {low} to {high}; they are shares in [0, 1]"
            )
        if high == 0:
            raise ValueError(f"region {self.prompt!r}: an empty mask; leave out a region that is nowhere")
        return mask.detach().reshape(-1, *mask.shape[-2:]).to(torch.promote_types(mask.dtype, torch.float32))


def check_box(box: Any) -> Box:
    """A box that is not empty.

    Raises:
        ValueError: anything else.
    """
    numbers = isinstance(box, Sequence) and len(box) == 4 and all(isinstance(x, int | float) for x in box)
    if not numbers or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
        raise ValueError(
            f"box={box!r}: (left, top, right, bottom) in fractions of the picture, such as (0, 0, 0.5, 1); a list of "
            "those is a track, {frame: box} one with boxes between them"
        )
    return [float(x) for x in box]


def track_of(box: Any) -> Tensor:
    """Boxes as float64 [frames, 4]; one box is one frame.

    Raises:
        ValueError: no box, no frame, or a frame that is no number.
    """
    if isinstance(box, Mapping):
        return _between(box)
    boxes = box if isinstance(box, Sequence) and box and isinstance(box[0], Sequence) else [box]
    return torch.tensor([check_box(one) for one in boxes], dtype=torch.float64)


def _between(boxes: Mapping[int, Box]) -> Tensor:
    """The boxes of all frames up to the last of some, interpolated; the first one's before it."""
    frames = sorted(boxes)
    if not frames or not all(isinstance(frame, int) and frame >= 0 for frame in frames):
        raise ValueError(f"box={dict(boxes)!r}: {{frame: box}} names one frame or more, counted from 0")
    table = torch.tensor([check_box(boxes[frame]) for frame in frames], dtype=torch.float64)
    times, every = torch.tensor(frames), torch.arange(frames[-1] + 1)
    after = torch.searchsorted(times, every)
    before = (after - 1).clamp(min=0)
    share = (every - times[before]) / (times[after] - times[before]).clamp(min=1)
    return torch.lerp(table[before], table[after], share.clamp(min=0)[:, None].double())


def covered(track: Tensor, grid: TokenGrid) -> Tensor:
    """The share of every cell of a picture that boxes [frames, 4] cover: float64 [frames, height, width]."""
    left, top, right, bottom = track.unbind(1)
    return overlap(top, bottom, grid.height)[:, :, None] * overlap(left, right, grid.width)[:, None]


def averaged(cover: Tensor, shape: Sequence[int]) -> Tensor:
    """A tensor stretched over another shape, of which every cell is the mean of what lies under it."""
    for axis, size in enumerate(shape):
        old = cover.shape[axis]
        if old != size:
            edges = torch.arange(old + 1, dtype=torch.float64, device=cover.device) / old
            weights = overlap(edges[:-1], edges[1:], size).to(cover)
            cover = torch.tensordot(weights, cover, ([0], [axis])).movedim(0, axis)
    return cover


def overlap(first: Tensor, last: Tensor, cells: int) -> Tensor:
    """The share of each of so many equal cells of [0, 1] that stretches [n] cover: float64 [n, cells]."""
    edges = torch.arange(cells + 1, dtype=torch.float64, device=first.device) / cells
    common = torch.minimum(last[:, None], edges[1:]) - torch.maximum(first[:, None], edges[:-1])
    return common.clamp(min=0) * cells
