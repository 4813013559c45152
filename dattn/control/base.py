"""What a control is, and what it sees of a call of attention.

Most edits of an attention map are linear in it, and those fold into the values: attention with edited values is what
the edited map would give, whichever backend or sparse pattern computes it. No map is ever built.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dattn.attention import Narrow
from dattn.control.merging import dense_lse
from dattn.control.stage import Stage
from dattn.grid import TokenGrid

Layers = Sequence[int] | Callable[[str], bool] | None
"""Numbers of layers among those of their kind, or a predicate on their names; None is all."""
T = TypeVar("T")
Window = float | tuple[float, float]
"""Part of the denoising steps: a share from the start on, or from one share to another; see ``within``."""


@dataclass(frozen=True)
class Place:
    """Where a call of attention happens.

    Attributes:
        kind: ``"self"`` (picture alone), ``"cross"`` (picture asks, text answers) or ``"joint"`` (one sequence).
        name: of the attention module, with the pipeline's component in front.
        index: position among the model's layers of this kind, in execution order.
        count: how many of those there are.
        step: the denoising step, from 0.
        steps: how many there are.
        grid: where the queries sit.
        text: which keys are tokens of the prompt; empty in self-attention.
        visual: which queries are tokens of the picture.
    """

    kind: str
    name: str
    index: int
    count: int
    step: int
    steps: int
    grid: TokenGrid
    text: slice
    visual: slice


class Runs(NamedTuple):
    """What a call runs: attention as it would be without this control, alone and with its LSE.

    Attributes:
        sparse: whether a pattern runs there.
        alone: whether no other control does.
        changes: the first control among those that does not keep sums, or ``""``.
        over: ``pair`` over a part of the pattern's block mask; None, or a result of None, where it has none.
    """

    inner: Callable[[Call], Tensor]
    pair: Callable[[Call], tuple[Tensor, Tensor]]
    sparse: bool = False
    alone: bool = True
    changes: str = ""
    over: Callable[[Call, Narrow], tuple[Tensor, Tensor] | None] | None = None


@dataclass(frozen=True)
class Call:
    """A call of attention that a control may change.

    Attributes:
        query, key, value: [batch, heads, queries or keys, head_dim].
        mask: what the model passed: bool or added to the logits, broadcastable to [batch, heads, queries, keys]; None.
        scale: factor of the logits.
        place: where this is.
        rows: the samples of the batch that follow the prompt; the others are unconditional.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float
    place: Place
    rows: slice
    runs: Runs

    def attend(self) -> Tensor:
        """What would run without this control: [batch, heads, queries, head_dim]."""
        return self.runs.inner(self)

    def attend_lse(self) -> tuple[Tensor, Tensor]:
        """``attend``, and the natural-log sum of the exponentials of every row: [batch, heads, queries]."""
        return self.runs.pair(self)

    def attend_over(self, narrow: Narrow) -> tuple[Tensor, Tensor] | None:
        """``attend_lse`` over what ``narrow`` makes of the pattern's block mask; None where there is no such mask."""
        return None if self.runs.over is None else self.runs.over(self, narrow)

    def aside(self) -> tuple[Tensor, Tensor]:
        """Dense attention and its LSE, past pattern and other controls, for keys that are gathered or added."""
        return dense_lse(self.query, self.key, self.value, self.scale, self.mask)

    def take(self, rows: Tensor) -> Call:
        """The same for other samples, in that order: int64 [samples]."""
        mask = self.mask if self.mask is None or len(self.mask) == 1 else self.mask[rows]
        return replace(self, query=self.query[rows], key=self.key[rows], value=self.value[rows], mask=mask)

    def conditional(self) -> Call:
        """The same for the samples that follow the prompt alone."""
        rows = torch.arange(self.rows.start, self.rows.stop, device=self.query.device)
        return replace(self.take(rows), rows=slice(0, len(rows)))

    def with_values(self, value: Tensor) -> Call:
        """The same with other values, [batch, heads, keys, any width]."""
        return replace(self, value=value)

    def columns(self, tokens: Sequence[int] | Tensor) -> Tensor:
        """How much every query looks at some keys: probabilities [batch, heads, queries, tokens].

        The values are one-hot for those keys, as many at a time as a head is wide.
        """
        width = self.value.shape[-1]
        parts = [self.value[..., :0].new_zeros(*self.query.shape[:3], 0)]
        for first in range(0, len(tokens), width):
            some = torch.as_tensor(tokens[first : first + width], device=self.value.device)
            one_hot = torch.arange(self.value.shape[2], device=some.device)[:, None] == F.pad(
                some, (0, width), value=-1
            )
            one_hot = one_hot[:, :width].to(self.value).expand_as(self.value).contiguous()
            parts.append(self.with_values(one_hot).attend()[..., : len(some)])
        return torch.cat(parts, -1)


class Control:
    """Base of controls: what changes what attention says.

    A control belongs to one handle at a time, and what it keeps to one denoising call. A subclass is one small file
    that overrides some of the methods below; each does nothing by itself.

    Attributes:
        keeps_sums: whether queries, keys and masks stay as they are, so that the log-sum-exp of a call does too.
    """

    keeps_sums = False

    _stage: Stage | None = None
    _found_once: dict[Hashable, Any] | None = None

    @property
    def stage(self) -> Stage:
        """What is known about the denoising call that runs.

        Raises:
            RuntimeError: the control is not applied to anything.
        """
        if self._stage is None:
            raise RuntimeError(f"{type(self).__name__} is not applied: pass it to dattn.apply(pipe, control=…)")
        return self._stage

    def on(self, target: Any) -> AbstractContextManager[Any]:
        """Apply it to a pipeline for the length of a ``with`` block, beside what is applied there already."""
        from dattn.plugin import controlling

        return controlling(target, self)

    def start(self) -> None:
        """A denoising call starts: forget the last one."""
        self._found_once = None

    def once(self, call: Call, find: Callable[[], T], *of: Hashable) -> T:
        """What ``find`` gives, kept for all calls of attention of this denoising call that are laid out alike.

        It is for what comes of prompts and masks: a look at those, or a copy to a GPU, makes it wait, in every layer.

        Args:
            of: what else it depends on.
        """
        stage, place, like = self.stage, call.place, call.value
        samples = len(call.query), call.rows.start, call.rows.stop, stage.sample, stage.batch, stage.branch
        where = place.kind, place.grid, place.text.start, place.text.stop, call.key.shape[2]
        key = stage.prompts, *samples, *where, like.dtype, like.device, *of
        self._found_once = {} if self._found_once is None else self._found_once
        if key not in self._found_once:
            self._found_once[key] = find()
        return self._found_once[key]

    def removed(self) -> None:
        """It acts no more: put back what it changed outside of attention."""

    def prepared(self, latents: Tensor) -> Tensor:
        """The first, noisy latents of a call, [samples, …]."""
        return latents

    def inputs(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """The model's arguments by name, before a forward pass."""
        return arguments

    def acts(self, place: Place) -> bool:
        """Whether it changes, or looks at, attention at a place."""
        return False

    def edit(self, call: Call) -> Tensor:
        """The output of a call of attention at a place where it acts: [batch, heads, queries, head_dim]."""
        return call.attend()

    def guided(self, output: Tensor, again: Callable[[], Tensor]) -> Tensor:
        """What becomes of the model's output, [batch, …]; ``again()`` runs it once more on the same inputs."""
        return output

    def stepped(self, latents: Tensor) -> Tensor:
        """The latents after a step of the scheduler, [samples, …]."""
        return latents


def check_layers(layers: Any) -> Layers:
    """A choice of layers that can be read more than once.

    Raises:
        ValueError: neither numbers nor a predicate.
    """
    if layers is None or callable(layers):
        return layers
    chosen = [layers] if isinstance(layers, int) else list(layers)
    if not chosen or not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in chosen):
        raise ValueError(f"layers={layers!r}: give numbers of layers such as [0, 1], or a predicate on their names")
    return chosen


def among(layers: Layers, place: Place) -> bool:
    """Whether a place is one of the chosen layers."""
    return layers is None or (layers(place.name) if callable(layers) else place.index in layers)


def check_window(name: str, window: Any, of: str = "the denoising steps") -> tuple[float, float]:
    """A window as start and end in [0, 1], shares of something.

    Raises:
        ValueError: anything else.
    """
    start, end = window if isinstance(window, tuple) and len(window) == 2 else (0.0, window)
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (start, end))
    if not numbers or not 0 <= start <= end <= 1:
        raise ValueError(
            f"{name}={window!r}: shares of {of}, 0 to 1; write {name}=0.4 for the first 40 %, "
            f"{name}=(0.2, 0.8) for a part in the middle"
        )
    return float(start), float(end)


def within(window: tuple[float, float], step: int, steps: int) -> bool:
    """Whether a step is in a window: with 10 steps, (0, 0.4) holds 0 to 3.

    Both ends are rounded to the nearest step, of two that are as near to the even one, so that 0.4 of 7 steps is 3;
    published code often rounds down, to 2.
    """
    start, end = window
    return round(start * steps) <= step < round(end * steps)
