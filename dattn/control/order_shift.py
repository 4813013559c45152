"""OrderShift: what happens late in a video happens early, and the other way round."""

from __future__ import annotations

from torch import Tensor

from dattn.control.base import Call, Control, Layers, Place, Window, among, check_layers, check_window, within
from dattn.control.samples import frames_apart


class OrderShift(Control):
    """Queries, keys and values change places along time, around the end of the video (Chen et al., "MotionCLR", 2024).

    With a share of one half, the halves of the video are swapped. All three are shifted alike, so the output is what
    attention gives anyway, shifted by that many frames: o'_t = o_(t - s mod frames), at every place of a frame.

    Args:
        share: of the frames by which things move on; 0 and 1 change nothing.
        window: the denoising steps in which it acts; the paper has the first 4 of 10.
        layers: numbers among the self-attention or joint layers, or a predicate on their names.

    Raises:
        ValueError: a share outside [0, 1]; in a call, pictures of one frame.
    """

    def __init__(self, share: float = 0.5, window: Window = 0.4, layers: Layers = None) -> None:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise ValueError(f"share={share!r}: the part of the frames by which things move on, 0 to 1")
        self.share, self.window, self.layers = float(share), check_window("window", window), check_layers(layers)

    def acts(self, place: Place) -> bool:
        """In self-attention and joint attention."""
        return place.kind != "cross" and among(self.layers, place) and within(self.window, place.step, place.steps)

    def edit(self, call: Call) -> Tensor:
        """The output, its frames shifted; text stays."""
        apart = frames_apart(call, self.stage)
        if apart == call.place.grid.frames == 1:
            raise ValueError(f"OrderShift moves things along time, but {call.place.name} has one frame: give it videos")
        output = call.attend()
        if apart > 1:  # frames that are samples of the batch
            return output.unflatten(0, (-1, apart)).roll(round(self.share * apart), 1).flatten(0, 1)
        frames, visual = call.place.grid.frames, call.place.visual
        shifted = output.clone()
        by_frame = output[:, :, visual].unflatten(2, (frames, -1))
        shifted[:, :, visual] = by_frame.roll(round(self.share * frames), 2).flatten(2, 3)
        return shifted
