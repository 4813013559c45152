"""What a handle did, layer by layer, as a table and as a dict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import Tensor

from dattn.processors.layer import Layer, Run
from dattn.recipe import Settings
from dattn.schedule import Clock, resolve_amount
from dattn.spec import Named

COLUMNS = ("#", "layer", "pattern", "grid", "density", "pooled", "backend", "FLOPs saved", "why")


@dataclass(frozen=True)
class Row:
    """One layer. FLOPs are those of attention (both matrix products) for one sample and one forward pass.

    Attributes:
        index: position among the model's self-attention layers.
        name: module name.
        pattern: the concrete pattern, or None where the layer stays stock.
        grid: (frames, height, width, text before, text after); None before a call.
        density: computed block pairs ÷ all, the mean over the calls where they differ; None before a call and where no
            block mask says so.
        tail_share: pooled keys' share of dense work.
        backend: the backend that ran, ``"stock"``, or None where nothing ran yet.
        why: why that backend, or why the layer was left alone, and what was clamped.
        flops_dense: dense attention; None before a call.
        flops_computed: what a sparse step of this layer computes.
        memory: bytes that an operator keeps from step to step.
    """

    index: int
    name: str
    pattern: str | None
    grid: tuple[int, ...] | None
    density: float | None
    tail_share: float | None
    backend: str | None
    why: str
    flops_dense: int | None
    flops_computed: int | None
    memory: int = 0

    @property
    def saved(self) -> float | None:
        """Share of the layer's attention FLOPs that a sparse step saves; None before a call."""
        if not self.flops_dense or self.flops_computed is None:
            return None
        return 1 - self.flops_computed / self.flops_dense

    def cells(self) -> tuple[str, ...]:
        """The row as text, one string per column."""
        saved = "–" if self.saved is None else f"{self.saved:.1%}" if self.saved > 0 else "no saving"
        grid = "–" if self.grid is None else _grid_text(self.grid)
        shares = (_percent(self.density), _percent(self.tail_share))
        return str(self.index), self.name, self.pattern or "–", grid, *shares, self.backend or "–", saved, self.why


@dataclass(frozen=True)
class Report:
    """The state of a handle. ``print`` shows a table; ``to_dict`` is plain data, ready for JSON."""

    attention: str | None
    source: str
    dense_steps: int | float
    dense_layers: int | float
    steps: int | None
    steps_dense: int | None
    ran: bool
    layers: tuple[Row, ...]
    controls: tuple[str, ...] = ()

    @property
    def flops_share(self) -> float | None:
        """Computed ÷ dense attention FLOPs, dense steps included; None before a call."""
        dense = sum(row.flops_dense or 0 for row in self.layers)
        if not dense:
            return None
        sparse = sum(row.flops_computed or 0 for row in self.layers) / dense
        warm = self.steps_dense / self.steps if self.steps and self.steps_dense else 0
        return warm + (1 - warm) * sparse

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        rows = [asdict(row) | {"saved": row.saved} for row in self.layers]
        return asdict(self) | {"layers": rows, "flops_share": self.flops_share}

    def __str__(self) -> str:
        return "\n".join([*self._head(), "", *_table([COLUMNS, *(row.cells() for row in self.layers)])])

    def _head(self) -> list[str]:
        head = [
            f"attention: {self.attention or 'stock'} ({self.source})",
            f"dense layers: {self.dense_layers}; dense steps: {self.dense_steps}{self._dense_note()}",
        ]
        if self.controls:
            head.append(f"controls: {', '.join(self.controls)}")
        if not self.ran:
            return [*head, "no pattern has run yet: this is what will happen"]
        if self.flops_share is not None:
            head.append(f"attention FLOPs: {self.flops_share:.1%} of dense, dense steps included")
        return head

    def _dense_note(self) -> str:
        if self.steps is None:
            return ""
        every = ", so every step is dense" if self.steps_dense == self.steps else ""
        return f" = {self.steps_dense} of {self.steps}{every}"


def build(layers: Sequence[Layer], settings: Settings, clock: Clock, controls: Sequence[str] = ()) -> Report:
    """The report of a handle's layers as they are now; ``controls`` names those that act, innermost first."""
    total = clock.total
    return Report(
        attention=describe(settings.attention),
        source=settings.source,
        dense_steps=settings.dense_steps,
        dense_layers=settings.dense_layers,
        steps=total,
        steps_dense=None if total is None else resolve_amount(settings.dense_steps, total),
        ran=any(layer.run for layer in layers),
        layers=tuple(_row(layer) for layer in layers),
        controls=tuple(controls),
    )


def _row(layer: Layer) -> Row:
    stock = layer.stock_reason
    known = layer.pattern is not None and layer.grid is not None
    density, tail_share = layer.visited() if known else (None, None)
    flops = _flops(layer)
    share = layer.spent() if known and not stock else 1.0
    run = layer.run or Run(None, "")
    return Row(
        index=layer.index,
        name=layer.name,
        pattern=describe(layer.concrete) if layer.pattern is not None else None,
        grid=None if layer.grid is None else layer.grid.sizes,
        density=density,
        tail_share=tail_share,
        backend="stock" if stock else run.backend,
        why="; ".join(part for part in (stock or run.reason, layer.note, *_remarks(layer, known)) if part),
        flops_dense=flops,
        flops_computed=None if flops is None else round(flops * share),
        memory=layer.held(),
    )


def _remarks(layer: Layer, known: bool) -> list[str]:
    """What an operator has to say about itself."""
    held = layer.held()
    return [layer.said, layer.concrete.untuned if known else "", f"keeps {held / 1e6:.1f} MB" if held else ""]


def _flops(layer: Layer) -> int | None:
    """Two matrix products of tokens x tokens x width, two FLOPs per multiplication with its addition."""
    return None if layer.grid is None else 4 * layer.grid.tokens**2 * layer.width


def describe(pattern: Any) -> str | None:
    """``Radial(decay=0.2)``: a pattern with the fields that differ from their defaults."""
    if pattern is None:
        return None
    changed = [
        f.name
        for f in fields(pattern)
        if isinstance(getattr(pattern, f.name), Tensor) or getattr(pattern, f.name) != f.default
    ]
    return f"{type(pattern).__name__}({', '.join(f'{name}={_shown(getattr(pattern, name))}' for name in changed)})"


def _shown(value: Any) -> str:
    """A field; a pattern as the report writes it, a tensor by its shape."""
    if isinstance(value, Named):
        return str(describe(value))
    if isinstance(value, tuple) and any(isinstance(item, Named) for item in value):
        return f"({', '.join(map(_shown, value))})"
    return f"tensor of {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


def _grid_text(grid: tuple[int, ...]) -> str:
    text = sum(grid[3:])
    return "x".join(str(n) for n in grid[:3]) + (f" + {text} text" if text else "")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]
