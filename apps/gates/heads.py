"""Gates that tell which heads need all tokens (DuoAttention, Xiao et al. 2024, arXiv 2410.10819).

    out = a · dense + (1 - a) · local        loss = ‖model(a) - model(1)‖² / ‖model(0) - model(1)‖² + penalty · mean a

with a number a in [0, 1] for every head, 1 at first. Heads whose a stays large keep dense attention, the others get the
local pattern: a recipe. The authors do not divide, so that their penalty is one for a certain model; here a head is
worth it if it has the share penalty / heads in what the local pattern loses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dattn.attention import attend
from dattn.grid import TokenGrid
from dattn.operators import PerHead, PerLayer
from dattn.patterns.dense import Dense
from dattn.spec import Call, Operator, Spec, part_of


@dataclass(eq=False)
class HeadGates:
    """The gates of a model's heads, by layer, and how they learn.

    Attributes:
        rate: learning rate.
        penalty: of the mean gate.
        fixed: what every gate is for the moment: 1 for the model itself, 0 for the local pattern alone, None for what
            is learned.
        errors: ‖model(a) - model(1)‖² / ‖model(0) - model(1)‖² of every step.
    """

    rate: float
    penalty: float
    fixed: int | None = None
    values: dict[int, Tensor] = field(default_factory=dict)
    errors: list[float] = field(default_factory=list)

    def of(self, layer: int, heads: int, device: torch.device) -> Tensor:
        """The gates of a layer, [heads]."""
        if layer not in self.values:
            self.values[layer] = nn.Parameter(torch.ones(heads, device=device))
        return self.values[layer]

    @contextmanager
    def learning(self, model: Any) -> Iterator[None]:
        """Every forward pass of ``model`` in there is also one step of training; it gives what the model itself gives.

        Gradients of the model's own parameters are not computed.
        """
        before, wanting = model.forward, [p for p in model.parameters() if p.requires_grad]
        optimizer: torch.optim.Optimizer | None = None

        def forward(*args: Any, **kwargs: Any) -> Any:
            nonlocal optimizer
            with torch.no_grad():
                given, local = (self._with(fixed, before, *args, **kwargs) for fixed in (1, 0))
            with torch.enable_grad():
                mixed = self._with(None, before, *args, **kwargs)
                error = _squared(mixed, given) / _squared(local, given).clamp_min(torch.finfo().tiny)
                (error + self.penalty * self.mean()).backward()
            optimizer = optimizer or torch.optim.AdamW(self.values.values(), lr=self.rate, weight_decay=0.0)
            self._step(optimizer)
            self.errors.append(error.item())
            return given

        model.requires_grad_(False)
        model.forward = forward
        try:
            yield
        finally:
            del model.forward
            for parameter in wanting:
                parameter.requires_grad_(True)

    def _with(self, fixed: int | None, forward: Any, *args: Any, **kwargs: Any) -> Any:
        self.fixed = fixed
        return forward(*args, **kwargs)

    def _step(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for gates in self.values.values():
                gates.clamp_(0, 1)

    def mean(self) -> Tensor:
        """Of all gates."""
        return torch.cat(list(self.values.values())).mean()

    def recipe(self, local: Spec, dense: float) -> PerLayer:
        """Dense attention for the share ``dense`` of all heads whose gates are largest, ``local`` for the others.

        Ties go to the earlier head.
        """
        every = sorted(((-g, layer, head) for layer, row in self.values.items() for head, g in enumerate(row.tolist())))
        kept = {(layer, head) for _, layer, head in every[: round(dense * len(every))]}
        layers = {
            layer: PerHead(tuple(Dense() if (layer, head) in kept else local for head in range(len(row))))
            for layer, row in sorted(self.values.items())
        }
        return PerLayer(layers)


def _squared(ours: Any, theirs: Any) -> Tensor:
    """‖ours - theirs‖² of two outputs of a model."""
    difference: Tensor = ours[0] - theirs[0]
    return difference.float().square().sum()


@dataclass(frozen=True, eq=False)
class Mixed(Operator):
    """Dense attention and a local pattern, mixed by gates.

    Args:
        local: the pattern of heads that do not need all tokens.
        gates: what mixes.
    """

    local: Spec
    gates: HeadGates

    def at(self, layer: int, layers: int, step: int, steps: int) -> Mixed:
        """With the pattern at that place."""
        return Mixed(self.local.at(layer, layers, step, steps), self.gates)

    def fit(self, grid: TokenGrid) -> tuple[Mixed, str | None]:
        """With the pattern clamped to the grid."""
        local, note = self.local.fit(grid)
        return Mixed(local, self.gates), note

    def compute(self, call: Call) -> tuple[Tensor, None]:
        """The mixed output."""
        fixed = self.gates.fixed
        if fixed is not None:
            return self._part(call, "dense" if fixed else "local"), None
        gates = self.gates.of(call.state["layer"], call.query.shape[1], call.query.device).to(call.query)
        return torch.lerp(self._part(call, "local"), self._part(call, "dense"), gates[:, None, None]), None

    def _part(self, call: Call, name: str) -> Tensor:
        pattern = Dense() if name == "dense" else self.local
        output: Tensor = attend(*call[:3], pattern, call.grid, **call.options, state=part_of(call.state, name))
        return output
