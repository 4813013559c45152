"""What is measured of a pipeline: runs with dense attention that take notes, and runs with a part of it sparse.

The loss of the result is taken to be a sum over layers and ranges of steps of harm · squared relative error. The harm
of a range comes from a run in which a stand-in serves all layers in that range alone; how it is shared among the layers
from passes of one step that are made again with some layers sparse, by the change of what the model gives. Steps
before the range are not computed twice: their passes are answered from a record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_map

from dattn.metrics import WINDOW, psnr, ssim
from dattn.models import models_of
from dattn.plugin import Handle, apply
from dattn.spec import Spec
from dattn.tuning.passes import Again, heard, numbers
from dattn.tuning.watch import Notes, Size, Watch, Watching, starts

RANGES = (0.0, 0.1, 0.25, 0.6)
"""Where ranges of steps begin."""
LOSSES = "mse", "ssim"
PARTS = 3
"""Layers are asked for their harm in so many parts at most."""
SHORT, AGAIN = 4.0, 2
"""A call of fewer seconds is timed so many times more."""


@dataclass(eq=False)
class Study:
    """A pipeline with a call, and the candidates.

    Args:
        pipe: a Diffusers pipeline.
        call: arguments of its call, but for prompt, generator and output type.
        specs: candidates by name, dense attention first.
        stand_in: the candidate whose harm is measured.
        seed: of the noise, and of the rows that are looked at.
        backend: of attention, as in ``dattn.apply``.
    """

    pipe: Any
    call: Mapping[str, Any]
    specs: Mapping[str, Spec]
    stand_in: str
    seed: int = 0
    backend: str = "auto"
    _record: list[tuple[int, Any]] = field(default_factory=list)  # of a dense run: (step, what the model gave)
    _recorded: str | None = None  # its prompt

    def clip(self, prompt: str) -> tuple[np.ndarray, float]:
        """What the pipeline makes, [frames, height, width, channels] in [0, 1], and the seconds that it took."""
        began = _now()
        generator = torch.Generator().manual_seed(self.seed)
        output = self.pipe(prompt=prompt, **self.call, generator=generator, output_type="np")
        made = output.frames[0] if hasattr(output, "frames") else output.images[:1]
        return np.asarray(made), _now() - began

    def timed(self, prompt: str) -> tuple[np.ndarray, float]:
        """``clip``; a call so short that noise would decide is made a few times, and its fastest counts."""
        clip, seconds = self.clip(prompt)
        return clip, min([seconds] + [self.clip(prompt)[1] for _ in range(AGAIN if seconds < SHORT else 0)])

    def observe(self, prompt: str, sense: bool, times: Sequence[Any] = ()) -> tuple[np.ndarray, dict[str, Any]]:
        """A dense run that takes notes; with ``sense`` parts of the layers are asked for their harm too.

        Args:
            prompt: of the clip.
            sense: in the first pass of the step in the middle of each range.
            times: of candidates, as other figures have them: what is known is not timed again.

        Returns:
            The clip, and figures ready for JSON.
        """
        watching = self._watching()
        watching.notes.seconds |= {Size(*entry["size"]): entry["seconds"] for entry in times}
        if sense:
            self._record, self._recorded = [], prompt
        sensed: dict[int, list[float]] = {}
        repeats = 0.0
        with apply(self.pipe, Watch(watching), backend=self.backend) as handle:

            def hear(again: Again) -> Any:
                nonlocal repeats
                result = again()
                step, steps = handle.position
                if sense:
                    self._record.append((step, tree_map(_kept, result)))
                number = watching.range_of(step, steps)
                if sense and watching.looks(step, steps) and number not in sensed:
                    began = _now()
                    sensed[number] = self._changes(watching, handle, again, result)
                    repeats += _now() - began
                return result

            with heard(models_of(self.pipe).values(), hear):
                clip, seconds = self.clip(prompt)
            parts = _parts(handle)
        notes = watching.notes
        nothing = [0.0] * len(parts)  # of a range without steps
        by_part = zip(*(sensed.get(number, nothing) for number in range(len(RANGES))), strict=True)
        changes = [{"layers": layers, "change": change} for layers, change in zip(parts, by_part, strict=True)]
        figures = {"seconds": seconds - notes.spent - repeats, **figures_of(notes)}
        return clip, figures | ({"parts": changes} if sense else {})

    def _changes(self, watching: Watching, handle: Handle, again: Again, result: Any) -> list[float]:
        """How much of what the model gives changes, squared and relative, where one part after the other is sparse."""
        dense, changes = numbers(result), []
        for layers in _parts(handle):
            watching.sparse = frozenset(layers)
            try:
                other = numbers(again())
            finally:
                watching.sparse = frozenset()
            changes.append(((other - dense).square().sum() / dense.square().sum()).item())
        return changes

    def lose(self, prompt: str, dense: np.ndarray, number: int) -> dict[str, float]:
        """The loss of the result where the stand-in serves all layers in one range of steps.

        Args:
            prompt: one that was observed; the last one need not be computed up to the range.
            dense: its clip.
            number: of the range.
        """
        device = next(next(iter(models_of(self.pipe).values())).parameters()).device
        watching, passes = self._watching(), iter(self._record if self._recorded == prompt else ())
        watching.noting, watching.sparse_range = False, number
        with apply(self.pipe, Watch(watching), backend=self.backend) as handle:

            def hear(again: Again) -> Any:
                step, steps = handle.position
                known = next(passes, None)
                if known is not None and step < starts(RANGES, steps)[number]:
                    return tree_map(partial(_back, device), known[1])
                return again()

            with heard(models_of(self.pipe).values(), hear):
                clip, _ = self.clip(prompt)
        return losses(clip, dense)

    def forget(self) -> None:
        """Let go of what was recorded."""
        self._record, self._recorded = [], None

    def check(self, prompt: str, spec: Any, dense: np.ndarray) -> dict[str, float]:
        """Loss and seconds of a run under a pattern."""
        with apply(self.pipe, spec, backend=self.backend) as handle:
            clip, seconds = self.timed(prompt)
            work = handle.report().to_dict()["flops_share"]
        return {**losses(clip, dense), "seconds": seconds, "work": work}

    def _watching(self) -> Watching:
        return Watching(self.specs, RANGES, self.seed, self.stand_in)


def losses(clip: np.ndarray, dense: np.ndarray) -> dict[str, float]:
    """What a clip lacks: its mean squared error, and 1 - SSIM where pictures are large enough for it."""
    small = min(clip.shape[1:3]) < WINDOW
    return {
        "mse": float(10 ** (-psnr(clip, dense) / 10)),
        "ssim": float("nan") if small else 1 - ssim(clip, dense),
    }


def _parts(handle: Handle) -> list[list[int]]:
    """The layers that a pattern may run in, in a few parts of neighbours."""
    layers = sorted({layer.index for layer in handle.layers if not layer.stock_reason})  # two models share numbers
    return [part.tolist() for part in np.array_split(layers, min(PARTS, len(layers)))]


def figures_of(notes: Notes) -> dict[str, Any]:
    """Notes as JSON has them: lists of layers and ranges."""
    rows = []
    for (layer, number), calls in sorted(notes.calls.items()):
        error, kept = (found.get((layer, number), {}) for found in (notes.error, notes.kept))
        rows.append(
            {
                "layer": layer,
                "range": number,
                "calls": calls,
                "error": {name: heads.tolist() for name, heads in error.items()},
                "kept": {name: heads.tolist() for name, heads in kept.items()},
            }
        )
    sizes = {layer: list(size) for layer, size in notes.sizes.items()}
    times = [
        {"size": list(size), "seconds": found, "in_run": median(notes.dense[size])}
        for size, found in notes.seconds.items()
        if size in notes.dense  # what another run timed may be of another size
    ]
    return {"rows": rows, "sizes": sizes, "times": times}


def _kept(value: Any) -> Any:
    """A copy in main memory."""
    return value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value


def _back(device: torch.device, value: Any) -> Any:
    return value.to(device, copy=True) if isinstance(value, torch.Tensor) else value


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return perf_counter()
