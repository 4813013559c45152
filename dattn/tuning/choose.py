"""Which candidate where: the least time for a bound on the loss, or the least loss for a bound on the time.

Time and loss are sums over places, a place being a layer in a range of steps. So for every price λ of loss each place
finds its own best,

    min  seconds + λ · loss,

and the choices for falling prices lie on the lower hull of all that can be chosen: less and less time, more and more
loss. A place takes one candidate for all its heads or shares them between two, so that there are few launches; all
pairs are tried. The prices are a fixed list, so equal figures give equal choices, and a looser bound never more time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement, product

import numpy as np

NEVER = 1e9
"""Error of a candidate that cannot be chosen."""
PRICES = 400
"""Prices that are tried, from one at which any loss is too much to one at which none is."""


@dataclass(frozen=True, eq=False)
class Place:
    """A layer in a range of steps.

    Attributes:
        error: float [candidates, heads]: each head's share of the squared relative error of the layer's output.
        harm: loss of the result for a squared relative error of 1 here.
        fixed: float [candidates]: seconds of a call, however few its heads.
        each: float [candidates]: seconds more for every head.
        calls: of attention, in the range.
    """

    error: np.ndarray
    harm: float
    fixed: np.ndarray
    each: np.ndarray
    calls: int

    def loss_of(self, heads: Sequence[int]) -> float:
        """The loss where head h has candidate ``heads[h]``."""
        return self.harm * float(sum(self.error[one, head] for head, one in enumerate(heads)))

    def seconds_of(self, heads: Sequence[int]) -> float:
        """The time in all calls of the range."""
        return self.calls * float(sum(self.fixed[one] for one in set(heads)) + sum(self.each[one] for one in heads))

    def best(self, price: float) -> tuple[int, ...]:
        """The candidate of each head, where a unit of loss costs ``price`` seconds; of equal ones the first pair."""
        loss = np.where(self.error < NEVER, self.harm * self.error, np.inf)
        each = self.calls * self.each[:, None] + price * loss  # [candidates, heads]
        first, second = self._pairs
        launches = self.calls * np.where(first == second, self.fixed[first], self.fixed[first] + self.fixed[second])
        total = np.minimum(each[first], each[second]).sum(1) + launches
        one, other = first[total.argmin()], second[total.argmin()]
        return tuple(np.where(each[one] <= each[other], one, other).tolist())

    @cached_property
    def _pairs(self) -> tuple[np.ndarray, np.ndarray]:
        pairs = np.array(list(combinations_with_replacement(range(len(self.fixed)), 2)))
        return pairs[:, 0], pairs[:, 1]


@dataclass(frozen=True)
class Choice:
    """The candidate of every head in every place, and what is expected of them.

    Attributes:
        heads: for each place, the candidate of each head.
        loss: of the result, against dense attention.
        seconds: of all attention.
    """

    heads: tuple[tuple[int, ...], ...]
    loss: float
    seconds: float


def choices(places: Sequence[Place]) -> list[Choice]:
    """What the prices lead to, from no loss on, each faster and worse than the one before."""
    found: list[Choice] = []
    for price in _prices(places):
        one = _choice(places, [place.best(price) for place in places])
        if not found or one.seconds < found[-1].seconds:
            found.append(one)
    return found


def uniform(places: Sequence[Place], ranges: Sequence[int]) -> list[Choice]:
    """One candidate in all places of a range of steps and of the later ones, dense attention before: each there is.

    Args:
        ranges: that of each place.
    """
    found = []
    for begin, one in product(sorted(set(ranges)), range(1, len(places[0].fixed))):
        serves = [n >= begin and bool((p.error[one] < NEVER).all()) for p, n in zip(places, ranges, strict=True)]
        heads = [(one if here else 0,) * p.error.shape[1] for p, here in zip(places, serves, strict=True)]
        found.append(_choice(places, heads))
    return found


def efficient(found: Sequence[Choice]) -> list[Choice]:
    """Those than which none loses less and is as fast, from the least loss on, each faster than the one before."""
    kept: list[Choice] = []
    for one in sorted(found, key=lambda one: (one.loss, one.seconds)):
        if not kept or one.seconds < kept[-1].seconds:
            kept.append(one)
    return kept


def least_time(found: Sequence[Choice], loss: float) -> Choice:
    """The fastest choice whose loss is not above ``loss``; the one of least loss where there is none."""
    allowed = [one for one in found if one.loss <= loss]
    return min(allowed, key=lambda one: one.seconds) if allowed else min(found, key=lambda one: one.loss)


def least_loss(found: Sequence[Choice], seconds: float) -> Choice:
    """The best choice that takes at most ``seconds``; the fastest where none does."""
    allowed = [one for one in found if one.seconds <= seconds]
    return min(allowed, key=lambda one: one.loss) if allowed else min(found, key=lambda one: one.seconds)


def _choice(places: Sequence[Place], heads: Sequence[tuple[int, ...]]) -> Choice:
    pairs = list(zip(places, heads, strict=True))
    return Choice(tuple(heads), sum(p.loss_of(h) for p, h in pairs), sum(p.seconds_of(h) for p, h in pairs))


def _prices(places: Sequence[Place]) -> np.ndarray:
    """Seconds for a unit of loss, falling; the first makes the smallest error dearer than all time there is."""
    seconds = sum(place.calls * float((place.fixed + place.each * place.error.shape[1]).max()) for place in places)
    losses = np.concatenate([place.harm * place.error[place.error < NEVER] for place in places])
    losses = losses[losses > 0]
    if not len(losses) or seconds <= 0:
        return np.ones(1)
    return seconds * np.geomspace(2 / losses.min(), 1e-6 / losses.sum(), PRICES)
