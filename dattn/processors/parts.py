"""Whose state serves which of the calls of attention that controls make of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Part = tuple[int, ...]
OWN: Part = ()
"""The call that the model made, which controls may pass on as it is."""


class Parts:
    """Names the calls that controls make of one, so that an operator finds in each what the same one left.

    The model's own call has one name, whoever acts. What controls make of it is named by those that act and in its
    order: with others it would be something else.

    Args:
        own: query, key, value and mask of the model's call.
        acting: the controls that act.

    Attributes:
        met: whether the model's own call was made.
    """

    def __init__(self, own: Sequence[Any], acting: Sequence[Any]) -> None:
        self._own, self._acting = own, tuple(id(control) for control in acting)
        self._made, self.met = 0, False

    def of(self, given: Sequence[Any]) -> Part:
        """The name of the next call, by its query, key, value and mask; the own one has its name once."""
        if not self.met and all(one is other for one, other in zip(given, self._own, strict=True)):
            self.met = True
            return OWN
        self._made += 1
        return (*self._acting, self._made)
