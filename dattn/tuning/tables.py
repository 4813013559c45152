"""From what was measured to what can be chosen from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from dattn.tuning.choose import NEVER, Choice, Place

Figures = Mapping[str, Any]
"""Of ``Study.observe``."""


@dataclass(frozen=True, eq=False)
class Tables:
    """The places of a model, and the time of everything that is not attention.

    Attributes:
        names: of the candidates.
        keys: (range, layer) of each place.
        places: in the same order.
        other: seconds of a run beside attention.
    """

    names: tuple[str, ...]
    keys: tuple[tuple[int, int], ...]
    places: tuple[Place, ...]
    other: float

    def by_name(self, choice: Choice) -> dict[tuple[int, int], tuple[str, ...]]:
        """(range, layer) -> the candidate of each head."""
        return {
            key: tuple(self.names[one] for one in heads) for key, heads in zip(self.keys, choice.heads, strict=True)
        }

    def loss(self, choice: Choice) -> float:
        """The loss of a choice that was made among these or others of the same candidates and layers."""
        return sum(place.loss_of(heads) for place, heads in zip(self.places, choice.heads, strict=True))


@dataclass(frozen=True, eq=False)
class Measured:
    """All that was measured of a pipeline.

    Attributes:
        names: of the candidates, dense attention first.
        stand_in: the one whose harm was measured.
        observed: of every prompt; the first was asked for the layers' harm and timed the candidates.
        lost: what the stand-in loses in each range, by measure.
    """

    names: tuple[str, ...]
    stand_in: str
    observed: Sequence[Figures]
    lost: Sequence[Mapping[str, float]]

    def tables(self, loss: str, some: Sequence[Figures] = (), scale: float = 1.0, pace: float = 1.0) -> Tables:
        """What can be chosen from.

        Args:
            loss: the measure of it.
            some: figures of the prompts whose errors count; all where none are given.
            scale: of all loss, by what a check found.
            pace: of all time, likewise.
        """
        first, some = self.observed[0], some or self.observed
        keys = [(row["range"], row["layer"]) for row in first["rows"]]
        harm, seconds = self._harm(keys, [one[loss] for one in self.lost]), self._seconds(pace)
        places = []
        for row, key in zip(first["rows"], keys, strict=True):
            error, size = self._errors(key, some), tuple(first["sizes"][str(key[1])])
            places.append(Place(error, scale * harm[key], *seconds[size], row["calls"]))
        attention = sum(place.seconds_of([0] * place.error.shape[1]) for place in places)
        dense = fmean(figures["seconds"] for figures in self.observed)
        return Tables(self.names, tuple(keys), tuple(places), max(pace * dense - attention, 0.0))

    def seen(self, key: tuple[int, int], heads: Sequence[str]) -> dict[str, Any]:
        """Of a place where head h has candidate ``heads[h]``, in the run that was watched first.

        Returns:
            Its ``size``; the layer's relative ``error`` ‖o - dense‖ / ‖dense‖; and ``kept``, the share of the
            attention's weight, a mean over the heads that have masks, or None.
        """
        first = self.observed[0]
        row = next(row for row in first["rows"] if (row["range"], row["layer"]) == key)
        others = [(name, head) for head, name in enumerate(heads) if name != self.names[0]]
        error = sum(row["error"][name][head] for name, head in others)
        kept = [row["kept"][name][head] for name, head in others if name in row["kept"]]
        kept += [1.0] * (len(heads) - len(others))
        size = first["sizes"][str(key[1])]
        return {"size": size, "error": error**0.5, "kept": fmean(kept) if kept else None}

    def _errors(self, key: tuple[int, int], some: Sequence[Figures]) -> np.ndarray:
        """[candidates, heads]: means over prompts; dense attention has none, what was not looked at is never chosen."""
        found = []
        for figures in some:
            row = next(row for row in figures["rows"] if (row["range"], row["layer"]) == key)
            heads = figures["sizes"][str(key[1])][1]
            found.append([row["error"].get(name, [NEVER] * heads) for name in self.names])
        errors = np.nan_to_num(np.array(found, float), nan=NEVER, posinf=NEVER)
        error = np.where((errors < NEVER).all(0), errors.mean(0), NEVER)
        error[0] = 0.0
        return error

    def _seconds(self, pace: float) -> dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]]:
        """Size of a layer -> seconds of a call of every candidate: at least, and more for each head.

        As dense attention took in the run: a few calls that were timed may have been luckier than most.
        """
        found = {}
        for entry in self.observed[0]["times"]:
            heads, usual = entry["size"][1], entry["in_run"] / entry["seconds"][self.names[0]][0]
            whole, one = pace * usual * np.array([entry["seconds"][name] for name in self.names]).T
            each = np.clip((whole - one) / (heads - 1), 0, whole / heads) if heads > 1 else whole
            found[tuple(entry["size"])] = whole - heads * each, each
        return found

    def _harm(self, keys: Sequence[tuple[int, int]], lost: Sequence[float]) -> dict[tuple[int, int], float]:
        """(range, layer) -> loss for a squared relative error of 1."""
        first, own = self.observed[0], self.names.index(self.stand_in)
        error = {key: float(self._errors(key, [first])[own].sum()) for key in keys}
        harm = dict.fromkeys(keys, 0.0)
        for number, loss in enumerate(lost):
            changes = [part["change"][number] for part in first["parts"]]
            every = sum(found for (r, _), found in error.items() if r == number)
            for part, change in zip(first["parts"], changes, strict=True):
                made = sum(error.get((number, layer), 0.0) for layer in part["layers"])
                share = change / sum(changes) if sum(changes) else 1 / len(changes)
                usual = loss / every if every else 0.0  # where the stand-in errs nowhere, others still may
                each = loss * share / made if made else usual
                harm |= {(number, layer): each for layer in part["layers"] if (number, layer) in harm}
        return harm
