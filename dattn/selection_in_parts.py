"""The best of very many scores, which come in parts and are never held all together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from dattn.selection import Select, Threshold, TopK, TopP

BINS = 1 << 16
Parts = Callable[[], Iterable[Tensor]]
"""Gives the scores in [0, 1], [n] at a time: the same ones, whenever it is called."""


def best_in_parts(parts: Parts, select: Select) -> Iterator[Tensor]:
    """bool like each part: what ``select`` chooses of all parts together.

    Of ``TopK`` and ``TopP`` a histogram says between which scores the last one lies that is kept, and these alone are
    sorted: few, unless nearly all scores are equal. Other ways to choose see all scores at once.
    """
    if isinstance(select, Threshold):
        yield from map(select.chosen, parts())
        return
    if not isinstance(select, TopK | TopP):
        scores = list(parts())
        yield from select.chosen(torch.cat(scores)).split([len(part) for part in scores])
        return
    least, number = _last(parts, select)
    spare: int | Tensor = number
    for part in parts():
        ties = part == least
        yield (part > least) | (ties & (ties.cumsum(0) <= spare))
        spare = spare - ties.sum()


def _last(parts: Parts, select: TopK | TopP) -> tuple[float, int]:
    """The least score that is kept, and how many that are equal to it are."""
    counts, sums = torch.zeros(BINS, dtype=torch.int64), torch.zeros(BINS, dtype=torch.float64)
    for part in parts():
        bins = _bins(part)
        counts += bins.bincount(minlength=BINS).cpu()
        sums += bins.bincount(part.double(), minlength=BINS).cpu()
    total = float(sums.sum())
    if isinstance(select, TopP) and (select.share == 1 or total == 0):
        return 0.0, int(total == 0)  # all above 0, or the first
    measure = counts if isinstance(select, TopK) else sums
    wanted = _count(select, int(counts.sum())) if isinstance(select, TopK) else select.share * total
    held = measure.flip(0).cumsum(0)  # from the largest scores on
    place = min(int((held < wanted).sum()), BINS - 1)
    better = float(held[place] - measure.flip(0)[place])
    values = torch.cat([part[_bins(part) == BINS - 1 - place] for part in parts()]).sort(descending=True).values
    if isinstance(select, TopK):
        kept = int(wanted - better)
    else:
        before = values.double().cumsum(0) - values + better
        kept = int(((before < wanted) & (values > 0)).sum())
    least = values[max(kept, 1) - 1]
    return float(least), max(kept, 1) - int((values > least).sum())


def _bins(part: Tensor) -> Tensor:
    return (part.nan_to_num(1).clamp(0, 1).double() * (BINS - 1)).long()


def _count(select: TopK, among: int) -> int:
    count = select.amount if isinstance(select.amount, int) else math.ceil(select.amount * among - 1e-9)
    return min(count, among)
