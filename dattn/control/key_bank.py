"""KeyBank: keys and values of one window of a video, kept for the next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from dattn.control.base import Place

Pair = tuple[Tensor, Tensor]
Moment = tuple[str, int, str]
"""A layer's name, a denoising step, a guidance branch."""


class KeyBank:
    """Keys and values of some frames, by the name of the window that they are from.

    What runs inside ``with bank.window(name, sees)`` is kept under its name and sees what was kept under ``sees``, at
    the same layer and step. A window may be a whole call of a pipeline, or a part of each step. Unlike other state of
    a control it outlives the call, until ``forget``.

    Args:
        frames: which frames of a window are kept, counted in latent frames, -1 the last.

    Raises:
        ValueError: no frames.
    """

    def __init__(self, frames: Sequence[int] = (-1,)) -> None:
        if not frames:
            raise ValueError("frames=(): say which frames of a window are kept, such as (0, -1)")
        self.frames = tuple(frames)
        self._kept: dict[str, dict[Moment, Pair]] = {}
        self._name: str | None = None
        self._sees: tuple[str, ...] = ()

    @contextmanager
    def window(self, name: str, sees: str | Sequence[str] = ()) -> Iterator[None]:
        """What runs inside is the window ``name``, and sees others that have run.

        Raises:
            ValueError: a window to see of which nothing is kept.
        """
        sees = (sees,) if isinstance(sees, str) else tuple(sees)
        unknown = [other for other in sees if other not in self._kept]
        if unknown:
            raise ValueError(f"sees={unknown}: kept are {list(self._kept)}; run those windows first")
        outer, self._name, self._sees = (self._name, self._sees), name, sees
        self._kept.setdefault(name, {})
        try:
            yield
        finally:
            self._name, self._sees = outer

    def keep(self, place: Place, branch: str, key: Tensor, value: Tensor) -> None:
        """Keep [samples, heads, tokens, head_dim] of the window that runs; nothing outside of one."""
        if self._name is not None:
            self._kept[self._name][place.name, place.step, branch] = key.detach().clone(), value.detach().clone()

    def seen(self, place: Place, branch: str) -> Pair | None:
        """Keys and values that the window that runs sees here, those of several one after the other; or None.

        Raises:
            ValueError: a window that has not run here.
        """
        if self._name is None or not self._sees:
            return None
        here = place.name, place.step, branch
        missing = [name for name in self._sees if here not in self._kept[name]]
        if missing:
            raise ValueError(
                f"window {missing[0]!r} kept nothing at {place.name}, step {place.step}: let all windows run with the "
                "same steps, layers and guidance"
            )
        keys, values = zip(*(self._kept[name][here] for name in self._sees), strict=True)
        return torch.cat(keys, 2), torch.cat(values, 2)

    def forget(self, name: str | None = None) -> None:
        """Drop what a window left, or everything."""
        for gone in list(self._kept) if name is None else [name]:
            self._kept.pop(gone, None)

    def held(self) -> int:
        """Bytes that are kept."""
        pairs = (pair for window in self._kept.values() for pair in window.values())
        return sum(tensor.nbytes for pair in pairs for tensor in pair)
