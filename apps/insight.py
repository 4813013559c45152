"""What dense attention looks at inside a model, noted in a few rows of every head while a pipeline runs.

In some steps every layer notes, of about one row in a hundred and never of all pairs: where one token looks, how much
frames look at each other, how weight falls with distance, how few keys hold most of it, and how much of it patterns
would keep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dattn.attention import attend, masks_in
from dattn.grid import TokenGrid
from dattn.operators.per_head import cost_of
from dattn.patterns import Dense, Dynamic
from dattn.spec import Call, Operator, Spec
from dattn.tuning.sampled import look

SHARE, FEWEST = 0.01, 64
"""Rows that are looked at: of all, and at least."""
ENOUGH = 0.95
"""Of the weight; see ``Seen.needed``."""
DENSITIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75)
"""At which ``Seen.best`` is known."""


@dataclass(frozen=True)
class Seen:
    """Of one layer in one step. Weights are those of dense attention, each row's sum is 1.

    Attributes:
        grid: of the layer.
        place: (frame, row, column) of the token whose look is in ``space``.
        space: [heads, frames, height, width], its weights.
        time: [heads, frames, frames], a frame's weight on each frame, of what it has on pictures.
        decay: [heads, distances], weight of a key by its distance in frames, in a picture in tokens; 1 is the mean.
        text: [heads], weight on text tokens.
        needed: [heads], the smallest share of keys that holds ``ENOUGH`` of the weight.
        best: [heads, densities], the most weight that such a share of keys can hold.
        kept: by pattern, for each of its settings the density, and the weight that it keeps, [heads].
    """

    grid: TokenGrid
    place: tuple[int, int, int]
    space: np.ndarray
    time: np.ndarray
    decay: np.ndarray
    text: np.ndarray
    needed: np.ndarray
    best: np.ndarray
    kept: dict[str, list[tuple[float, np.ndarray]]]


@dataclass(frozen=True, eq=False)
class Insight(Operator):
    """Dense attention that notes what it looks at.

    Args:
        steps: those in which it notes, of ``of`` in all.
        across, down: of the token whose look is noted, as shares of the picture; it is in the middle frame.
        patterns: settings by name whose kept weight is wanted.

    Attributes:
        seen: by step and layer; of several guidance branches, the last sample of the first.
    """

    steps: Sequence[int]
    of: int
    across: float = 0.5
    down: float = 0.5
    patterns: Mapping[str, Sequence[Spec]] = field(default_factory=dict)
    seen: dict[tuple[int, int], Seen] = field(default_factory=dict)

    def compute(self, call: Call) -> tuple[Tensor, None]:
        """Output of dense attention."""
        output = attend(*call[:3], Dense(), call.grid, **call.options, state={"masks": masks_in(call.state)})
        key = call.state["step"], call.state["layer"]
        if key[0] in self.steps and key not in self.seen:
            mask = call.key_mask
            last = call._replace(
                query=call.query[-1:], key=call.key[-1:], value=call.value[-1:],
                key_mask=None if mask is None else mask[-1:],
            )  # fmt: skip
            self.seen[key] = self._note(last, output[-1:])
        return output, None

    def _note(self, call: Call, output: Tensor) -> Seen:
        grid = call.grid
        place = grid.frames // 2, _at(self.down, grid.height), _at(self.across, grid.width)
        generator = torch.Generator().manual_seed(0)
        rows = _rows(grid, generator)
        heads = [_of_head(call, head, rows, place) for head in range(call.query.shape[1])]
        parts = {name: np.stack([one[name] for one in heads]) for name in heads[0]}
        return Seen(grid, place, **parts, kept=self._kept(call, output))

    def _kept(self, call: Call, output: Tensor) -> dict[str, list[tuple[float, np.ndarray]]]:
        """What patterns keep; those that do not fit the grid are left out."""
        step, layer, layers = (call.state[name] for name in ("step", "layer", "layers"))
        wanted = max(FEWEST, ceil(SHARE * call.grid.tokens))
        found: dict[str, list[tuple[float, np.ndarray]]] = {}
        for name, settings in self.patterns.items():
            for spec in settings:
                own = call._replace(state={key: call.state[key] for key in ("masks", "step", "layer", "layers")})
                try:
                    fitted: Any = spec.at(layer, layers, step, self.of).fit(call.grid)[0]
                    kept = look(own, fitted, output, wanted, torch.Generator().manual_seed(0)).kept
                    density = _density(fitted, own)
                except ValueError:
                    continue
                if kept is not None:
                    found.setdefault(name, []).append((density, kept.numpy().clip(0, 1)))
        return found


def _density(spec: Any, call: Call) -> float:
    """The share of pairs that a pattern computes here, pooled keys among them."""
    if isinstance(spec, Dynamic):
        mask = spec.mask_for(call.query, call.key, call.grid, dict(call.state))
        return mask.density + mask.tail_share
    return float(cost_of(spec, call.grid, call.query.shape[-1], masks_in(call.state)))


def _at(share: float, cells: int) -> int:
    return min(cells - 1, int(share * cells))


def _rows(grid: TokenGrid, generator: torch.Generator) -> Tensor:
    """Places of tokens within their frame, as many for each: int64 [frames, rows]."""
    area = grid.height * grid.width
    count = min(area, ceil(max(FEWEST, SHARE * grid.visual) / grid.frames))
    return torch.stack([torch.randperm(area, generator=generator)[:count] for _ in range(grid.frames)])


def _of_head(call: Call, head: int, rows: Tensor, place: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """The parts of ``Seen`` for one head."""
    grid, area = call.grid, call.grid.height * call.grid.width
    frames = torch.arange(grid.frames)[:, None]
    first = grid.text_before
    weights = _weights(call, head, first + (frames * area + rows).flatten())
    visual = weights[:, first : first + grid.visual]
    own = first + place[0] * area + place[1] * grid.width + place[2]
    looks = _weights(call, head, torch.tensor([own]))[0, first : first + grid.visual]
    between = visual.view(grid.frames, -1, grid.frames, area).sum(-1).mean(1)
    between = between / between.sum(-1, keepdim=True)
    ordered = weights.sort(-1, descending=True).values.cumsum(-1)
    kept = [ordered[:, max(1, round(density * grid.tokens)) - 1].mean() for density in DENSITIES]
    parts = {
        "space": looks.view(grid.shape).half(),
        "time": between,
        "decay": _over_time(between) if grid.frames > 1 else _over_space(visual, rows[0], grid),
        "text": (1 - visual.sum(-1).mean()).clamp_min(0),
        "needed": ((ordered < ENOUGH).sum(-1) + 1).clamp_max(grid.tokens).double().mean() / grid.tokens,
        "best": torch.stack(kept),
    }
    return {name: part.numpy() for name, part in parts.items()}


def _weights(call: Call, head: int, rows: Tensor) -> Tensor:
    """Attention of some rows on all keys: float32 [rows, tokens], on the CPU."""
    query, key = call.query[0, head, rows.to(call.query.device)].float(), call.key[0, head].float()
    logits = query @ key.T * call.scale
    if call.key_mask is not None:
        logits = logits.masked_fill(~call.key_mask[0], -torch.inf)
    return logits.softmax(-1).cpu()


def _over_time(between: Tensor) -> Tensor:
    """Mean weight by distance in frames, 1 where all frames are alike."""
    frames = len(between)
    apart = (torch.arange(frames)[:, None] - torch.arange(frames)).abs()
    return torch.stack([between[apart == distance].mean() * frames for distance in range(frames)])


def _over_space(visual: Tensor, rows: Tensor, grid: TokenGrid) -> Tensor:
    """Mean weight by distance in tokens, rounded, 1 where all tokens are alike."""
    every = torch.stack([torch.arange(grid.visual) // grid.width, torch.arange(grid.visual) % grid.width], 1).float()
    apart = torch.cdist(every[rows], every).round().long().flatten()
    most = max(grid.height, grid.width)
    totals, counts = (
        torch.bincount(apart, weights, minlength=most)[:most] for weights in (visual.flatten(), torch.ones(apart.shape))
    )
    return totals / counts.clamp_min(1) * grid.visual / visual.sum(-1).mean()
