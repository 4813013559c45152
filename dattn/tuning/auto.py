"""``"auto"`` where nothing was measured before: a look at a few patterns in the last dense step, and the cheapest that
comes near enough.

What it finds belongs to one denoising call, layer, guidance branch and sample, like every state, so the same call gives
the same result. It looks in a few rows of each layer, once in a call. A layer for which nothing comes near enough stays
dense; in a call without a dense step the preset runs everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import fmean
from typing import cast

import torch
from torch import Tensor

from dattn.attention import attend
from dattn.block_mask import MaskCache
from dattn.grid import TokenGrid
from dattn.operators.per_head import cost_of
from dattn.operators.placed import Placed
from dattn.patterns import Alike, Dense, SparseVideoGen
from dattn.schedule import Amount, resolve_amount
from dattn.spec import ORDERS, PLACED, SAID, VISITED, Call, Operator, Spec, State, part_of
from dattn.tuning.sampled import look
from dattn.tuning.watch import LEAST, SHARE

ERROR = 0.1
"""‖o - dense‖ / ‖dense‖ of a layer's output that is near enough."""
CHOICE = "choice"


def observed(preset: Spec, video: bool) -> Auto:
    """The patterns that are looked at, the preset among them."""
    by_head = (SparseVideoGen(0.25),) if video else ()
    return Auto(preset, (preset, Alike(0.15), *by_head, Alike(0.3), Alike(0.5)))


@dataclass(frozen=True)
class Auto(Operator):
    """What was chosen in the last dense step.

    Args:
        preset: where nothing was chosen.
        candidates: to choose from.
        error: relative error of a layer's output that is near enough.
    """

    preset: Spec
    candidates: tuple[Spec, ...]
    error: float = ERROR

    def at(self, layer: int, layers: int, step: int, steps: int) -> Spec:
        """Each at that place."""
        return self._each(lambda spec: spec.at(layer, layers, step, steps))

    def fit(self, grid: TokenGrid) -> tuple[Spec, str | None]:
        """Each clamped to the grid; the note is the preset's."""
        return self.fitted(grid), self.preset.fit(grid)[1]

    def fitted(self, grid: TokenGrid) -> Auto:
        """Each clamped to the grid."""
        return self._each(lambda spec: spec.fit(grid)[0])

    def _each(self, of: Callable[[Spec], Spec]) -> Auto:
        return replace(self, preset=of(self.preset), candidates=tuple(map(of, self.candidates)))

    def before(self) -> Spec:
        """What looks."""
        return Looking(self)

    def cost(self, grid: TokenGrid, head_dim: int, masks: MaskCache) -> float:
        """That of the cheapest candidate: what may be saved."""
        return min(cost_of(spec, grid, head_dim, masks) for spec in self.candidates)

    def compute(self, call: Call) -> tuple[Tensor, None]:
        """Each sample by what was chosen for it, those with the same together; of a changed batch, by the preset."""
        choice = call.state.get(CHOICE, ())
        choice = choice if len(choice) == len(call.query) else (self.preset,) * len(call.query)
        if len(set(choice)) == 1:
            state = part_of(call.state, "choice 0")
            output = attend(*call[:3], choice[0], call.grid, state=state, **call.options)
            known = state.pop(VISITED, None)
            call.state[VISITED] = known or (cost_of(choice[0], call.grid, call.query.shape[-1], state["masks"]), 0.0)
            return output, None
        outputs, visited = torch.empty_like(call.value), []
        for number, spec in enumerate(dict.fromkeys(choice)):
            rows = [row for row, own in enumerate(choice) if own == spec]
            state = part_of(call.state, f"choice {number}")
            outputs[rows] = attend(*_rows(call, rows)[:3], spec, call.grid, state=state, **_rows(call, rows).options)
            known = state.pop(VISITED, None) or (cost_of(spec, call.grid, call.query.shape[-1], state["masks"]), 0.0)
            visited += [known] * len(rows)
        call.state[VISITED] = tuple(map(fmean, zip(*visited, strict=True)))
        return outputs, None


@dataclass(frozen=True)
class Looking(Operator):
    """Dense attention that chooses for the steps after it.

    Args:
        auto: what the choice is for.
    """

    auto: Auto

    def fit(self, grid: TokenGrid) -> tuple[Spec, str | None]:
        """For that grid."""
        return Looking(self.auto.fitted(grid)), self.auto.preset.fit(grid)[1]

    def cost(self, grid: TokenGrid, head_dim: int, masks: MaskCache) -> float:
        """What may be saved afterwards: it decides whether looking is worth while."""
        return self.auto.cost(grid, head_dim, masks)

    def compute(self, call: Call) -> tuple[Tensor, None]:
        """Dense attention; the choice goes into the state."""
        output = attend(*call[:3], Dense(), call.grid, state=part_of(call.state, "dense"), **call.options)
        chosen = tuple(self._chosen(_rows(call, [row]), output[row : row + 1]) for row in range(len(output)))
        names = ", ".join(dict.fromkeys(f"{spec.name} ({error:.2f})" for spec, error in chosen))
        call.state[CHOICE] = tuple(spec for spec, _ in chosen)
        call.state[SAID] = f"auto: {names}, by the error seen in the last dense step"
        call.state[VISITED] = 1.0, 0.0
        return output, None

    def _chosen(self, call: Call, dense: Tensor) -> tuple[Spec, float]:
        """The cheapest candidate that is near enough, and its relative error; dense attention where none is."""
        masks, width = call.state["masks"], call.query.shape[-1]
        rows = max(LEAST, round(SHARE * call.grid.tokens))
        call = call._replace(state={**call.state, ORDERS: {}})
        for spec in sorted(self.auto.candidates, key=lambda spec: cost_of(spec, call.grid, width, masks)):
            seen = look(call, spec, dense, rows, torch.Generator().manual_seed(call.state.get("layer", 0)), kept=False)
            error = seen.error.sum().sqrt().item()
            if error <= self.auto.error:
                return spec, error
        return Dense(), 0.0


@dataclass(frozen=True)
class AfterDense(Placed):
    """``Auto`` with dense steps and layers of its own, for where a handle has none.

    Args:
        auto: what follows.
        dense_steps, dense_layers: as in ``dattn.apply``.
    """

    auto: Auto
    dense_steps: Amount
    dense_layers: Amount

    @property
    def first(self) -> Spec:
        """The first step is dense."""
        return Dense()

    @property
    def every(self) -> tuple[Spec, ...]:
        """What may run."""
        return Dense(), self.auto

    def at(self, layer: int, layers: int, step: int, steps: int) -> Spec:
        """Dense attention, a look in the last dense step, and what was chosen."""
        dense = resolve_amount(self.dense_steps, steps)
        if layer < resolve_amount(self.dense_layers, layers) or step < dense - 1:
            return Dense()
        if dense == 0:  # no step to look in
            return self.auto.preset.at(layer, layers, step, steps)
        placed = self.auto.at(layer, layers, step, steps)
        return Looking(cast(Auto, placed)) if step == dense - 1 < steps - 1 else placed if step >= dense else Dense()


def _rows(call: Call, rows: list[int]) -> Call:
    """Some samples of a call, with a state of their own."""
    mask = None if call.key_mask is None else call.key_mask[rows]
    state: State = {name: call.state[name] for name in PLACED if name in call.state}
    state.setdefault("masks", MaskCache(4))
    query, key, value = (tensor[rows] for tensor in call[:3])
    return call._replace(query=query, key=key, value=value, key_mask=mask, state=state)
