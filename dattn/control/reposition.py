"""Reposition: subjects of reference pictures, at another place of a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import ceil, isfinite

import torch
from torch import Tensor

from dattn.control.base import Call, Control, Layers, Place, Window, among, check_layers, check_window, within
from dattn.control.hiding import weighted
from dattn.control.merging import merge
from dattn.control.region import Box, check_box
from dattn.control.samples import branches
from dattn.grid import TokenGrid

Pair = tuple[Tensor, Tensor]


class Reposition(Control):
    """A subject of one prompt's picture is seen where another picture is to have it (He et al., "Improving
    Multi-Subject Consistency in Open-Domain Image Generation", 2024).

    Keys and values of the reference, cropped to its box and stretched over the box in the target (the nearest token),
    are added to what the target's queries inside that box see, as one softmax. Queries outside see none of them. The
    prompts of the references and of the targets run in one call: every prompt that is not named is a target. Guidance
    branches keep to themselves; of several pictures for each prompt the n-th sees the n-th. A box is at least one
    token, and holds in all frames. Keys keep the positions that they were given in the reference.

    Args:
        boxes: for the number of each reference's prompt its box and the box in the targets, each (left, top, right,
            bottom) in fractions of the picture.
        strength: how much an added key counts, above 0; an own one counts 1.
        window: the denoising steps in which it acts.
        layers: numbers among the self-attention or joint layers, or a predicate on their names.

    Raises:
        ValueError: no boxes, something that is no box, a strength that is not above 0; in a call, prompts that are not
            there.
    """

    def __init__(
        self,
        boxes: Mapping[int, tuple[Box, Box]],
        strength: float = 1.0,
        window: Window = 1.0,
        layers: Layers = None,
    ) -> None:
        if not boxes or not all(isinstance(i, int) and i >= 0 and len(pair) == 2 for i, pair in boxes.items()):
            raise ValueError(
                f"boxes={boxes!r}: for each reference's number its box and the target's: {{0: (box, box)}}"
            )
        self.boxes = {i: (check_box(source), check_box(target)) for i, (source, target) in boxes.items()}
        if not isinstance(strength, int | float) or not isfinite(strength) or strength <= 0:
            raise ValueError(f"strength={strength!r}: above 0; 1 counts added keys like own ones")
        self.strength = float(strength)
        self.window, self.layers = check_window("window", window), check_layers(layers)

    def acts(self, place: Place) -> bool:
        """In self-attention and joint attention."""
        return place.kind != "cross" and among(self.layers, place) and within(self.window, place.step, place.steps)

    def edit(self, call: Call) -> Tensor:
        """Attention, and in the targets' boxes that of the references with it."""
        output, lse = (tensor.clone() for tensor in call.attend_lse())
        for branch in branches(call, self.stage):
            if max(self.boxes) >= len(branch) or len(self.boxes) == len(branch):
                raise ValueError(
                    f"boxes of the references {list(self.boxes)}: {len(branch)} prompts run together; call with these "
                    "and a target"
                )
            targets = [samples for prompt, samples in enumerate(branch) if prompt not in self.boxes]
            for item, pair in self.boxes.items():
                keys, queries = (tokens.to(output.device) for tokens in _tokens(call.place, *pair))
                for target, reference in (
                    two for samples in targets for two in zip(samples, branch[item], strict=True)
                ):
                    own = output[[target]][:, :, queries], lse[[target]][:, :, queries]
                    added = weighted(_seen(call, target, queries, reference, keys), self.strength)
                    output[target][:, queries], lse[target][:, queries] = (part[0] for part in merge(own, added))
        return output


def _seen(call: Call, target: int, queries: Tensor, reference: int, keys: Tensor) -> Pair:
    """What some queries of a sample see among some keys of another."""
    key, value = (tensor[[reference]][:, :, keys] for tensor in (call.key, call.value))
    return replace(call, query=call.query[[target]][:, :, queries], key=key, value=value, mask=None).aside()


def _tokens(place: Place, reference: Box, target: Box) -> tuple[Tensor, Tensor]:
    """The keys, one for each token of the target's box, and those tokens: int64 [tokens]."""
    rows, columns = (
        _nearest(*(_covered(box[axis], box[axis + 2], size) for box in (reference, target)))
        for axis, size in ((1, place.grid.height), (0, place.grid.width))
    )
    keys, queries = (_at(place.grid, rows[side], columns[side]) + place.visual.start for side in (0, 1))
    return keys, queries


def _covered(first: float, last: float, cells: int) -> Tensor:
    """Which of so many equal cells of [0, 1] have their middle between two numbers; at least one."""
    start = min(ceil(first * cells - 0.5), cells - 1)
    return torch.arange(start, max(start + 1, ceil(last * cells - 0.5)))


def _nearest(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The cell of the source that lies where each of the target does, and the target."""
    middle = (torch.arange(len(target)) + 0.5) / len(target)
    return source[(middle * len(source)).long()], target


def _at(grid: TokenGrid, rows: Tensor, columns: Tensor) -> Tensor:
    """Tokens at rows and columns of every frame."""
    frames = torch.arange(grid.frames)[:, None, None] * grid.height
    return ((frames + rows[:, None]) * grid.width + columns).flatten()
