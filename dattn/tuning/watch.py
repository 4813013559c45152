"""Dense attention that takes notes: how near each candidate would have come, head by head, and how long it takes.

It stands in every layer of a pipeline. In one layer of each size it times the candidates, whole; in one step of each
range it looks at those that are faster than dense attention, in a few query rows. In a forward pass that is made again
it lets some layers be sparse, so that the harm of their error can be seen in what the model gives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dattn.attention import attend
from dattn.patterns import Dense
from dattn.schedule import resolve_amount
from dattn.spec import ORDERS, PLACED, Call, Operator, Spec
from dattn.tuning.sampled import look

SHARE, LEAST = 0.01, 256
"""Query rows that are looked at: this share of all, and at least so many."""
REPEATS = 2


class Size(NamedTuple):
    """What the time of a call depends on."""

    tokens: int
    heads: int
    head_dim: int


@dataclass
class Notes:
    """What was seen in a run.

    Attributes:
        error: (layer, range) -> candidate -> of each head, in the first call of the step: share of the squared relative
            error. Of the stand-in, and of what is faster than dense attention.
        kept: the same for the share of the attention's weight, of masks.
        seconds: size -> candidate -> (of all heads, of one head); the first, twice, where it is slower than dense.
        dense: size -> seconds of every call of dense attention.
        sizes: layer -> size.
        calls: (layer, range) -> calls of attention.
        spent: seconds that all this took.
    """

    error: dict[tuple[int, int], dict[str, Tensor]] = field(default_factory=dict)
    kept: dict[tuple[int, int], dict[str, Tensor]] = field(default_factory=dict)
    seconds: dict[Size, dict[str, tuple[float, float]]] = field(default_factory=dict)
    dense: dict[Size, list[float]] = field(default_factory=dict)
    sizes: dict[int, Size] = field(default_factory=dict)
    calls: dict[tuple[int, int], int] = field(default_factory=dict)
    spent: float = 0.0


@dataclass(eq=False)
class Watching:
    """What the watch of every layer shares.

    Attributes:
        specs: candidates by name, dense attention first.
        ranges: where each range of steps begins, as shares of all.
        seed: of the rows that are looked at.
        stand_in: a candidate.
        sparse: layers that the stand-in serves at this moment.
        sparse_range: range of steps in which it serves all of them.
        noting: whether notes are taken.
    """

    specs: Mapping[str, Spec]
    ranges: Sequence[float]
    seed: int = 0
    stand_in: str = ""
    sparse: frozenset[int] = frozenset()
    sparse_range: int | None = None
    noting: bool = True
    notes: Notes = field(default_factory=Notes)

    def range_of(self, step: int, steps: int) -> int:
        """The range that a step is in."""
        return max(r for r, begin in enumerate(starts(self.ranges, steps)) if begin <= step)

    def looks(self, step: int, steps: int) -> bool:
        """Whether candidates are looked at in a step: the one in the middle of its range."""
        begins = [*starts(self.ranges, steps), steps]
        own = self.range_of(step, steps)
        return step == (begins[own] + begins[own + 1]) // 2


def starts(ranges: Sequence[float], steps: int) -> list[int]:
    """The step at which each range begins; where there are few steps, several may begin at once."""
    return [resolve_amount(float(share), steps) for share in ranges]


@dataclass(frozen=True, eq=False)
class Watch(Operator):
    """Dense attention that takes notes.

    Args:
        watching: what all layers share.
        place: step, and of how many.
    """

    watching: Watching
    place: tuple[int, int] = (0, 1)

    def at(self, layer: int, layers: int, step: int, steps: int) -> Spec:
        """At that step."""
        return replace(self, place=(step, steps))

    def compute(self, call: Call) -> tuple[Tensor, None]:
        """Dense attention, or the stand-in's where the layer is to be sparse."""
        own = self.watching
        if call.state["layer"] in own.sparse or own.range_of(*self.place) == own.sparse_range:
            spec = _placed(own.specs[own.stand_in], call, self.place)
            return attend(*call[:3], spec, call.grid, state=_apart(call), **call.options), None
        began = _now(call.query)
        output = attend(*call[:3], Dense(), call.grid, state=_apart(call), **call.options)
        if own.noting and not own.sparse:
            ended = _now(output)
            self._note(call, output, ended - began)
            own.notes.spent += _now(output) - ended
        return output, None

    def _note(self, call: Call, output: Tensor, seconds: float) -> None:
        own, notes, layer = self.watching, self.watching.notes, call.state["layer"]
        size = Size(call.grid.tokens, call.query.shape[1], call.query.shape[-1])
        notes.dense.setdefault(size, []).append(seconds)
        where = layer, own.range_of(*self.place)
        notes.calls[where] = notes.calls.get(where, 0) + 1
        if where in notes.error or not own.looks(*self.place):
            return
        notes.sizes[layer] = size
        if size not in notes.seconds:
            notes.seconds[size] = self._times(call)
        rows = max(LEAST, round(SHARE * call.grid.tokens))
        dense, *others = own.specs
        orders: dict[Any, Any] = {}
        times = {name: whole for name, (whole, _) in notes.seconds[size].items()}
        for name in [name for name in others if times[name] < times[dense] or name == own.stand_in]:
            generator = torch.Generator().manual_seed(hash((own.seed, *where)) % 2**31)
            apart = call._replace(state=_apart(call) | {ORDERS: orders})
            seen = look(apart, _placed(own.specs[name], call, self.place), output, rows, generator)
            notes.error.setdefault(where, {})[name] = seen.error
            if seen.kept is not None:
                notes.kept.setdefault(where, {})[name] = seen.kept

    def _times(self, call: Call) -> dict[str, tuple[float, float]]:
        """Seconds of a call by candidate, choosing included: with all heads, and with one."""
        one = call._replace(query=call.query[:, :1], key=call.key[:, :1], value=call.value[:, :1])
        times: dict[str, tuple[float, float]] = {}
        for name, spec in self.watching.specs.items():
            placed = _placed(spec, call, self.place)
            dense, _ = next(iter(times.values()), (math.inf, 0.0))
            whole = _seconds(call, placed, dense)
            times[name] = whole, _seconds(one, placed) if whole < dense else whole
        return times


def _placed(spec: Spec, call: Call, place: tuple[int, int]) -> Spec:
    return spec.at(call.state["layer"], call.state["layers"], *place).fit(call.grid)[0]


def _apart(call: Call) -> dict[str, Any]:
    """A state like a handle's that keeps nothing but masks."""
    return {name: call.state[name] for name in PLACED if name in call.state}


def _seconds(call: Call, spec: Spec, limit: float = math.inf) -> float:
    """The fastest of a few calls after one that warms up; of fewer where it is twice above a limit."""
    times: list[float] = []
    while len(times) <= REPEATS and (len(times) < 2 or times[-1] < 2 * limit):
        began = _now(call.query)
        attend(*call[:3], spec, call.grid, state=_apart(call), **call.options)
        times.append(_now(call.query) - began)
    return min(times[1:])


def _now(tensor: Tensor) -> float:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
    return perf_counter()
