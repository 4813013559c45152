"""``apply`` and ``remove``: one line makes a Diffusers pipeline sparse, another puts it back."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dattn import presets, report
from dattn.adapters import adapter_for
from dattn.backends import BACKENDS
from dattn.block_mask import MaskCache
from dattn.control.base import Control
from dattn.control.idle import names_of, warn_of_idle
from dattn.control.stage import Stage
from dattn.control.taps import PipelineTap
from dattn.models import components_of, models_of
from dattn.parts import Part, chosen_of, family_of, once
from dattn.processors import Layer
from dattn.processors.direction import Direction
from dattn.processors.patch import Patch
from dattn.recipe import AUTO, Recipe, Selection, Settings
from dattn.report import Report
from dattn.schedule import Amount, Clock, SchedulerTap, resolve_amount
from dattn.shelf import identity
from dattn.tuning.by_grid import ByGrid

HANDLE = "_dattn_handle"
MANY_PASSES = 16
"""Forward passes of a model in one step after which nobody seems to count the steps."""


def apply(
    target: Any,
    attention: Any = None,
    *,
    dense_steps: Amount | None = None,
    dense_layers: Amount | None = None,
    layers: Selection = None,
    control: Any = None,
    backend: str = "auto",
) -> Handle:
    """Replace the self-attention inside a Diffusers pipeline or model.

    Everything is checked before anything is changed; then an earlier handle on any of the models is removed.

    Args:
        target: a pipeline (its ``transformer``, ``transformer_2`` and ``unet``) or a bare model.
        attention: a pattern, an operator, a dict, a preset (``"radial"``, ``"neighborhood"``, ``"dense"``,
            ``"auto"``), a pattern as text (``"Radial(decay=0.2)"``), a recipe or its path (``….json``), or None.
        dense_steps: leading steps that stay stock: an int counts, a float in [0, 1) is a fraction, rounded up.
            None: as the preset or the recipe says, otherwise 0. On a bare model anything but 0 needs
            ``handle.step(index, total)`` before the forward pass, which raises without it.
        dense_layers: leading self-attention layers, in execution order, that stay stock; counted like steps.
        layers: indices of self-attention layers, or a predicate on their module names; the others stay stock.
        control: one control or several, such as ``dattn.control.Reweight({"red": 2})``; of several, each acts on what
            those before it leave.
        backend: ``"auto"``, or a backend that then runs or raises.

    Returns:
        The handle: a report, a recipe, and the way back.

    Raises:
        ValueError: an unsupported model, or an argument out of bounds; the message says what to do.
    """
    controls = _controls(control)
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"backend={backend!r}: choose auto, {' or '.join(BACKENDS)}")
    parts = [Part(name, model, adapter_for(model)) for name, model in models_of(target).items()]
    served = sum(not site.why for site in parts[0].sites)
    config = identity(*(part.model for part in parts))
    settings = presets.resolve(attention, family_of(parts), parts[0].kind, dense_steps, dense_layers, served, config)
    settings = replace(settings, layers=once(settings.layers if layers is None else layers))
    for part in parts:
        part.stock_reasons(settings)
    for one in controls:
        _check_free(one, [vars(part.model).get(HANDLE) for part in parts])
    if settings.attention is not None and settings.attention.untuned:
        warnings.warn(f"dattn: {settings.attention.name} is {settings.attention.untuned}", stacklevel=2)
    for part in parts:
        remove(part.model)
    handle = Handle(target, parts, settings, backend)
    try:
        handle._install()
        for one in controls:
            handle.add(one)
    except BaseException:
        handle.remove()
        raise
    return handle


def remove(target: Any) -> None:
    """Put a pipeline or model back as it was; does nothing where no handle is applied."""
    for model in components_of(target).values():
        handle = vars(model).get(HANDLE)
        if handle is not None:
            handle.remove()


class Handle:
    """What ``apply`` returns. Leaving a ``with`` block removes it.

    It follows the pipeline: resolution, batch and prompts may change between calls, processors that are set
    later become the stock ones, and a scheduler that is put in the pipeline later is followed from the next
    forward pass on. A handle that has been removed or replaced does nothing any more.
    """

    def __init__(self, target: Any, parts: list[Part], settings: Settings, backend: str) -> None:
        self.settings = settings
        self._parts, self._backend = parts, backend
        self._pipeline: Callable[[], Any] = weakref.ref(target) if hasattr(target, "scheduler") else lambda: None
        # a recipe may have a mask for every layer in each of three ranges of steps, and those of its parts
        self._masks = MaskCache(8 * max(8, sum(len(part.sites) for part in parts)))
        self._patches: list[Patch] = []
        self._removed = False
        self._passes = 0  # since the last step
        self._warned: set[tuple[int, ...]] = set()  # grids that the recipe was not measured at
        self._clock = Clock(self._begin, self._place)
        self._tap: SchedulerTap | None = None
        self._controls: list[Control] = []
        adapter = parts[0].adapter
        text = adapter.tokenizers, adapter.written, adapter.positive_first
        self._stage = Stage(lambda: self._pipeline(), *text, adapter.frames_first)
        self._pipeline_tap: PipelineTap | None = None

    def _install(self) -> None:
        for part in self._parts:
            layers = part.layers(self.settings, self._masks, self._backend)
            setattr(part.model, HANDLE, self)
            self._patches.append(Patch(part.model, part.adapter, layers, self._before_forward))
            self._patches[-1].install()
        self._place()
        self._follow_scheduler()

    @property
    def layers(self) -> list[Layer]:
        """Every self-attention layer of every model, in execution order."""
        return [layer for patch in self._patches for layer in patch.layers]

    @property
    def controls(self) -> tuple[Control, ...]:
        """What changes what attention says, innermost first."""
        return tuple(self._controls)

    @property
    def position(self) -> tuple[int, int]:
        """The step that the denoising loop is at, and of how many; step 0 of 1 outside of one."""
        return self._stage.step, self._stage.steps

    def add(self, control: Control) -> None:
        """Let one more control act, on what those before it leave.

        Raises:
            ValueError: a control that is applied somewhere already.
        """
        _check_free(control)
        if not self._controls:
            self._direct()
        self._controls.append(control)
        control._stage = self._stage

    def drop(self, control: Control) -> None:
        """Let a control act no more; does nothing where it does not act here."""
        if control not in self._controls:
            return
        self._controls.remove(control)
        control.removed()
        control._stage = None
        if not self._controls:
            self._release()

    def step(self, index: int, total: int) -> None:
        """Report that step ``index`` of ``total`` comes next, where no pipeline does; 0 begins a new call.

        Raises:
            ValueError: ``index`` outside 0 … total - 1.
        """
        self._clock.report(index, total)

    def report(self) -> Report:
        """Layer by layer: pattern, grid, density, backend, FLOPs saved and why; ``print`` it, or ``to_dict``."""
        return report.build(self.layers, self.settings, self._clock, names_of(self._controls, self._stage))

    def save_recipe(self, path: str | Path) -> None:
        """Write pattern and schedule as JSON, with the model and the grid of its first layer."""
        part, grid, own = self._parts[0], self._patches[0].layers[0].grid, self.settings
        chosen = None if own.layers is None else tuple(chosen_of([site.name for site in part.sites], own.layers))
        auto = own.min_saving is not None or isinstance(own.attention, ByGrid)
        attention, sizes = AUTO if auto else own.attention, None if grid is None else grid.sizes
        warm = own.attention.otherwise if isinstance(own.attention, ByGrid) else own
        made = Recipe(part.kind, sizes, attention, warm.dense_steps, warm.dense_layers, chosen)
        measured = own.recipe
        if measured is not None and made == replace(measured, figures=None, grid=sizes and measured.grid):
            made = measured  # nothing is other than it was measured
        made.save(path)

    def remove(self) -> None:
        """Put everything back: processors, hooks and scheduler are what they were."""
        if self._removed:
            return
        self._removed = True
        for control in self.controls:
            self.drop(control)
        for patch in self._patches:
            patch.remove()
        for part in self._parts:
            vars(part.model).pop(HANDLE, None)
        if self._tap is not None:
            self._tap.remove()

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def _direct(self) -> None:
        """Prepare the models and the pipeline for controls."""
        for part, patch in zip(self._parts, self._patches, strict=True):
            patch.direct(Direction(part.model, part.adapter, patch.layers, part.prefix, self._controls, self._stage))
        if self._pipeline() is not None:
            self._pipeline_tap = PipelineTap(self._pipeline(), self._stage, self._prepared)

    @contextmanager
    def _hearing(self, target: Any) -> Iterator[None]:
        """Prompts, latents and steps are another pipeline's inside, which has the same models."""
        before = self._pipeline
        if isinstance(target, nn.Module) or before() is target:
            yield
            return
        self._listen(weakref.ref(target))
        try:
            yield
        finally:
            self._listen(before)

    def _listen(self, pipeline: Callable[[], Any]) -> None:
        self._pipeline = pipeline
        if self._pipeline_tap is not None:
            self._pipeline_tap.remove()
            self._pipeline_tap = PipelineTap(self._pipeline(), self._stage, self._prepared)

    def _release(self) -> None:
        for patch in self._patches:
            patch.release()
        if self._pipeline_tap is not None:
            self._pipeline_tap.remove()
            self._pipeline_tap = None

    def _begin(self) -> None:
        self._stage.begin()
        self._forget()

    def _forget(self) -> None:
        for layer in self.layers:
            layer.forget()
        if self._pipeline_tap is not None:
            self._pipeline_tap.rearm()
        for control in self._controls:
            control.start()

    def _prepared(self, latents: Tensor) -> Tensor:
        """The first latents of a call, as the controls want them."""
        self._stage.samples = len(latents)
        for control in self._controls:
            latents = control.prepared(latents)
        self._stage.latents = latents
        return latents

    def _stepped(self, latents: Tensor) -> Tensor:
        """The latents after a step, as the controls want them."""
        for control in self._controls:
            latents = control.stepped(latents)
        last = self._clock.total == self._clock.index + 1
        self._stage.latents = None if last else latents
        if last:
            warn_of_idle(self._controls, self._stage)
        return latents

    def _place(self) -> None:
        """Tell every layer where the denoising loop is; outside a loop, at step 0 of 1."""
        self._passes = 0
        total = self._clock.total
        step = min(self._clock.index, (total or 1) - 1)
        dense = self._dense_steps()
        self._stage.step, self._stage.steps, self._stage.passes = step, total or 1, 0
        for layer in self.layers:
            layer.place(step, total or 1, step < dense, step == dense - 1 < (total or 1) - 1)
            if total is not None and self._clock.index >= total:
                layer.release()
        if self.settings.recipe is not None and self.settings.recipe.grid is not None and self._clock.index > 0:
            self._compare(self.settings.recipe.grid[:3])

    def _compare(self, measured: tuple[int, ...]) -> None:
        """Warn of a call at another grid than the recipe was measured at; once for each."""
        grids = [layer.grid.shape for layer in self.layers if layer.grid is not None]
        if not grids or measured in grids or grids[0] in self._warned:
            return
        self._warned.add(grids[0])
        there, here = ("x".join(map(str, grid)) for grid in (measured, grids[0]))
        warnings.warn(
            f"dattn: the recipe was measured at {there} tokens, this call has {here}: shares and growing spans "
            "follow, but nobody has seen its quality here; run dattn tune at this size",
            stacklevel=2,
        )

    def _before_forward(self) -> None:
        self._follow_scheduler()
        if not torch.compiler.is_compiling():  # a number that changes would compile anew
            self._watch_steps()
        if self._clock.total is not None and self._clock.index < self._clock.total:
            return
        self._stage.passes = 0
        if self.settings.dense_steps and self._clock.total is None:
            raise ValueError(
                f"dense_steps={self.settings.dense_steps!r}, but no step has been reported: on a bare model call "
                "handle.step(index, total) before each forward pass, or apply to the pipeline"
            )
        if self._controls or any(layer.keeps for layer in self.layers):
            self._forget()

    def _watch_steps(self) -> None:
        """Warn where dense steps would never end: some pipelines step copies of their scheduler."""
        self._passes += 1
        if self._passes == MANY_PASSES * len(self._parts) and self._clock.index < self._dense_steps():
            warnings.warn(
                f"dattn: {self._passes} forward passes without a step of the pipeline's scheduler, so that dense_steps="
                f"{self.settings.dense_steps!r} does not end: pass dense_steps=0, or call handle.step(index, total) in "
                "the pipeline's callback_on_step_end",
                stacklevel=3,
            )

    def _dense_steps(self) -> int:
        """Leading steps of this call that are dense; 0 outside of one."""
        total = self._clock.total
        return 0 if total is None else resolve_amount(self.settings.dense_steps, total)

    def _follow_scheduler(self) -> None:
        """Tap the scheduler that the pipeline holds now; one that is already set up is in the middle of a call."""
        pipeline = self._pipeline()
        if pipeline is None or (self._tap is not None and self._tap.scheduler is pipeline.scheduler):
            return
        late = self._tap is not None
        if self._tap is not None:
            self._tap.remove()
        self._tap = SchedulerTap(pipeline.scheduler, self._clock, self._stepped)
        if late and getattr(pipeline.scheduler, "num_inference_steps", None) is not None:
            self._tap.begin()


def _controls(control: Any) -> list[Control]:
    """What was given as ``control=``, checked."""
    given = [] if control is None else [control] if isinstance(control, Control) else control
    if not isinstance(given, Iterable) or not all(isinstance(one, Control) for one in given):
        raise ValueError(f"control={control!r}: give a control such as dattn.control.Reweight(...), or a list of them")
    controls = list(given)
    for one in controls:
        if controls.count(one) > 1:
            raise ValueError(f"{type(one).__name__} is given twice: a control keeps its own state; make another one")
    return controls


def _check_free(control: Control, replaced: Iterable[Handle | None] = ()) -> None:
    """Raise where a control serves a handle already, other than those that are about to go."""
    if control._stage is None or any(handle is not None and control in handle.controls for handle in replaced):
        return
    raise ValueError(
        f"{type(control).__name__} is applied already: a control serves one handle at a time; remove it there, or make "
        "another one"
    )


@contextmanager
def controlling(target: Any, control: Control) -> Iterator[Handle]:
    """A control on a target for the length of a ``with`` block, beside what is applied there already."""
    handle = next((vars(m)[HANDLE] for m in models_of(target).values() if HANDLE in vars(m)), None)
    if handle is None:
        with apply(target, control=control) as own:
            yield own
        return
    if handle._pipeline() is None and not isinstance(target, nn.Module):
        raise ValueError(
            f"{type(control).__name__}: dattn was applied to the model inside this pipeline, where neither prompts nor "
            "steps are known; apply it to the pipeline"
        )
    with handle._hearing(target):
        handle.add(control)
        try:
            yield handle
        finally:
            handle.drop(control)
