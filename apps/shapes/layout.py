"""What lies where in a picture, as a second thing for the image models to learn.

A denoiser's own loss says little about which object is which: a blue circle and a blue square differ in few pixels,
and until the shape is right there is no reason to read it in the caption. So in training the hidden states of one
block also have to name, through a linear readout that is thrown away, the object at every place of the clean picture
(representation alignment, Yu et al. 2024, with the world's own labels in place of an encoder's features).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from .captions import COLORS, SHAPES
from .world import Scene, coverage

SIDE = 16
"""Places along each side of a picture."""
CLASSES = 1 + len(COLORS) * len(SHAPES)
"""Nothing, or an object of a colour and a shape."""


def layout(scene: Scene, side: int = SIDE) -> np.ndarray:
    """Which object covers most of each place: uint8 ``[side, side]``, 0 for none."""
    places = np.zeros((side, side), np.uint8)
    for o in scene.objects:
        cover = coverage(o.shape, o.centers(1, side, side), o.radius * side, side, side)[0]
        places[cover > 0.5] = 1 + COLORS.index(o.color) * len(SHAPES) + SHAPES.index(o.shape)
    return places


def layouts(scenes: Sequence[Scene]) -> torch.Tensor:
    """uint8 ``[scenes, side, side]``."""
    return torch.from_numpy(np.stack([layout(scene) for scene in scenes]))


class Readout(nn.Module):
    """Reads the layout out of what a block returns.

    Args:
        block: the module to listen to.
        width: channels of its hidden states.
        picture: from what the block returns to the hidden states of the picture, ``[batch, places, width]``.
    """

    def __init__(self, block: nn.Module, width: int, picture: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(width, CLASSES)
        self.heard: torch.Tensor | None = None

        def listen(block: nn.Module, given: object, returned: object) -> None:
            self.heard = picture(returned)

        block.register_forward_hook(listen)

    def loss(self, places: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of the last forward pass with ``places``, uint8 ``[batch, side, side]``."""
        assert self.heard is not None, "no forward pass yet"
        told, self.heard = self.linear(self.heard.float()), None
        return nn.functional.cross_entropy(told.flatten(0, 1), places.flatten().long())
