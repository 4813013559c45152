"""Isolation: subjects of a picture do not see each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dattn.control.base import Call, Control, Layers, Place, Window, among, check_layers, check_window, within
from dattn.control.hiding import of_rows, some
from dattn.control.parts import Where, part


class Isolation(Control):
    """Tokens of one subject do not see those of another, so that their looks do not mix (He et al., "Improving
    Multi-Subject Consistency in Open-Domain Image Generation", 2024).

    It holds in self-attention and among the picture's tokens in joint attention; text sees and is seen as ever. A token
    of several subjects sees and is seen by all of them, one of none by all. For each subject
    attention runs once more: of its queries over the keys that are left, or under a pattern of all with keys hidden.

    Args:
        masks: of each subject, two or more: a mask, a box (left, top, right, bottom) in fractions of the picture, or a
            track of boxes. A token belongs to a subject that covers half of it or more.
        window: the denoising steps in which it acts.
        layers: numbers among the self-attention or joint layers, or a predicate on their names.

    Raises:
        ValueError: fewer than two masks, or something that is no mask.
    """

    def __init__(self, masks: Sequence[Where], window: Window = 1.0, layers: Layers = None) -> None:
        self.masks = [part(f"masks[{i}]", mask) for i, mask in enumerate(masks)]
        if len(self.masks) < 2:
            raise ValueError(f"masks has {len(self.masks)}: give one for each subject, two or more")
        self.window, self.layers = check_window("window", window), check_layers(layers)

    def acts(self, place: Place) -> bool:
        """In self-attention and joint attention."""
        return place.kind != "cross" and among(self.layers, place) and within(self.window, place.step, place.steps)

    def edit(self, call: Call) -> Tensor:
        """Attention, that of each subject's queries without the keys of the others."""
        free, subjects = self.once(call, lambda: self._apart(call))
        output = call.value.new_empty(*call.query.shape[:3], call.value.shape[-1])
        if len(free):
            output[:, :, free] = of_rows(call, free)
        for queries, keys in subjects:
            output[:, :, queries] = some(call, queries, keys)
        return output

    def _apart(self, call: Call) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The queries that see all; those of every subject, and the keys that are left to them: int64 each."""
        members = torch.zeros(call.key.shape[2], len(self.masks), dtype=torch.bool)
        members[call.place.visual] = torch.stack([mask.cover(call.place.grid) >= 0.5 for mask in self.masks], 1).cpu()
        found, free = [], torch.ones(len(members), dtype=torch.bool)
        for subjects in members.unique(dim=0):
            others = members.any(1) & ~(members & subjects).any(1)
            if subjects.any() and others.any():
                both = (members == subjects).all(1), ~others
                found.append((_places(both[0], call), _places(both[1], call)))
                free &= ~both[0]
        return _places(free, call), found


def _places(chosen: Tensor, call: Call) -> Tensor:
    return chosen.nonzero().flatten().to(call.key.device)
