"""The tokens of what models make: counted by the model itself once for each size, else told from another size."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

import dattn
from dattn.grid import TokenGrid

from ..loading import Loaded
from ..running import Request, run_to_the_grid

MOST = 512
"""Sizes that are remembered; the oldest go first."""
Key = tuple[str, int | None, int | None, int | None]


@dataclass(frozen=True)
class Counted:
    """Tokens of a request.

    Attributes:
        request: whose they are.
        grid: the largest that a layer sees.
        layers: how many layers see any.
    """

    request: Request
    grid: TokenGrid
    layers: int


class Grids:
    """What was counted, by model and size."""

    def __init__(self) -> None:
        self._known: dict[Key, Counted] = {}
        self._lock = threading.Lock()

    def known(self, name: str, request: Request) -> Counted | None:
        """What was counted for this size; None where it was not yet."""
        return self._known.get(_key(name, request))

    def count(self, name: str, loaded: Loaded, request: Request) -> Counted:
        """Ask the model, which nobody else may use meanwhile, unless it is known."""
        found = self.known(name, request)
        if found is not None:
            return found
        with dattn.apply(loaded.pipe, dattn.Dense(), dense_steps=0, dense_layers=0) as handle:
            run_to_the_grid(loaded, request)
            grids = [layer.grid for layer in handle.layers if layer.grid]
        found = Counted(request, max(grids, key=lambda grid: grid.tokens), len(grids))
        with self._lock:
            self._known[_key(name, request)] = found
            if len(self._known) > MOST:
                del self._known[next(iter(self._known))]
        return found

    def told(self, name: str, request: Request) -> TokenGrid | None:
        """The grid as it must be by that of another size, since sides are proportional; None where none is known."""
        with self._lock:
            other = next((found for key, found in self._known.items() if key[0] == name), None)
        if other is None:
            return None
        was, grid = other.request, other.grid
        frames = 1 + _scaled(grid.frames - 1, (request.frames or 1) - 1, (was.frames or 1) - 1)
        sides = (_scaled(grid.height, request.height, was.height), _scaled(grid.width, request.width, was.width))
        return replace(grid, frames=frames, height=max(1, sides[0]), width=max(1, sides[1]))


def _key(name: str, request: Request) -> Key:
    return name, request.frames, request.height, request.width


def _scaled(tokens: int, to: int | None, of: int | None) -> int:
    return tokens if to is None or not of else round(tokens * to / of)
