"""``tune``: measure a pipeline, and choose the attention that is fastest at a quality, or nearest at a speed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from dattn.block_mask import MaskCache
from dattn.grid import TokenGrid
from dattn.models import models_of
from dattn.operators.per_head import cost_of
from dattn.patterns import Dense
from dattn.plugin import apply
from dattn.recipe import Recipe
from dattn.registry import pattern_from_string
from dattn.spec import Spec
from dattn.tuning.assemble import assembled
from dattn.tuning.candidates import DENSE, candidates
from dattn.tuning.choose import efficient
from dattn.tuning.goal import Goal
from dattn.tuning.manners import MANNERS, Manner
from dattn.tuning.passes import Again, heard
from dattn.tuning.provenance import check_call, made_with, plain
from dattn.tuning.store import Store
from dattn.tuning.study import LOSSES, RANGES, Study
from dattn.tuning.tables import Measured

FORMAT = 2
"""Of measurements: those of another format are refused."""
STAND_IN_COST = 0.3
"""The candidate whose harm is measured costs about this share of dense attention."""
WARY = 1.3
"""After a check that fell short, so much more than the bound is asked for."""
Tell = Callable[[str, int, int], None]
"""Told before every part of the work: what it is, which, and of how many."""


def tune(
    pipe: Any,
    prompts: Sequence[str],
    *,
    quality: float | None = None,
    psnr: float | None = None,
    speed_up: float | None = None,
    candidates: Sequence[str] | None = None,
    seed: int = 0,
    backend: str = "auto",
    folder: str | Path | None = None,
    tell: Tell = lambda what, number, of: None,
    **call: Any,
) -> Recipe:
    """Find the attention for a model, a clip and a machine, by measuring.

    What is applied to the pipeline is replaced while it runs, and nothing is applied afterwards. The last prompt is
    kept apart: it tells whether what was predicted from the others comes true; of one prompt, another seed does.

    Args:
        pipe: a Diffusers pipeline whose output can be had as NumPy arrays.
        prompts: what it is asked for; two or three.
        quality: the least SSIM to dense attention's result, in (0, 1).
        psnr: or the least PSNR to it, in dB.
        speed_up: or how many times as fast a whole call should be, above 1. One of the three; without any, quality
            0.95.
        candidates: patterns as text; None for those of ``dattn.tuning.candidates``.
        seed: of the noise, and of the rows that are looked at.
        backend: of attention, as in ``dattn.apply``.
        folder: for measurements; a study that was killed goes on from there.
        tell: told how far it is.
        **call: arguments of the pipeline's call: size, steps, guidance.

    Returns:
        A recipe. ``figures`` says what was predicted and what was measured; ``dattn.apply(pipe, recipe)`` uses it.

    Raises:
        ValueError: a bound out of range, no prompt, a candidate that is none or wants training, or a folder of another
            study.
    """
    goal = Goal.of(quality, psnr, speed_up)
    check_call(call)
    if not prompts or isinstance(prompts, str):
        raise ValueError(f"prompts={prompts!r}: give a list of two or three prompts")
    if isinstance(candidates, str):
        raise ValueError(f"candidates={candidates!r}: give a list of patterns as text")
    if not hasattr(pipe, "scheduler"):
        raise ValueError(f"{type(pipe).__name__} is no pipeline: dattn.tune makes clips with one, give the pipeline")
    grid = _grid(pipe, prompts[0], call)
    specs = _specs(candidates, grid)
    work = _work(specs, grid)
    study = Study(pipe, call, specs, _stand_in(specs, work), seed, backend)
    made = made_with(pipe, models_of(pipe).values(), call)
    asked = {"grid": grid.sizes, "prompts": list(prompts), "seed": seed, "backend": backend, "ranges": RANGES}
    asked |= {"measurements": FORMAT}
    store = Store(Path(folder) if folder else None, {**made, **asked, "candidates": list(specs)})
    return _Tuning(study, store, list(prompts), goal, work, tell).recipe(made, grid)


def _grid(pipe: Any, prompt: str, call: dict[str, Any]) -> TokenGrid:
    """That of the largest layer, without a run: the first forward pass ends before it begins."""

    def stop(again: Again) -> Any:
        raise _Enough

    with apply(pipe, Dense()) as handle, heard(models_of(pipe).values(), stop):
        with contextlib.suppress(_Enough):
            pipe(**{"prompt": prompt, **call, "output_type": "latent"})
        return max((layer.grid for layer in handle.layers if layer.grid), key=lambda grid: grid.tokens)


class _Enough(Exception):
    """Ends a call once its grid is known."""


def _specs(texts: Sequence[str] | None, grid: TokenGrid) -> dict[str, Spec]:
    """The candidates by name, dense attention first.

    Raises:
        ValueError: text that is no pattern, or one that pretrained models cannot do or that differs by head.
    """
    found = {DENSE: pattern_from_string(DENSE)}
    for text in candidates(grid) if texts is None else texts:
        spec: Any = pattern_from_string(text)
        if spec.untuned:
            raise ValueError(f"candidate {text}: {spec.untuned}; leave it out")
        if spec.static and spec.fit(grid)[0].mask(grid).groups > 1:
            raise ValueError(f"candidate {text}: it differs from head to head, as the choice itself may; leave it out")
        found.setdefault(text, spec)
    if len(found) < 2:
        raise ValueError(f"candidates={texts!r}: give at least one pattern beside dense attention")
    return found


def _work(specs: dict[str, Spec], grid: TokenGrid) -> dict[str, float]:
    """What each computes ÷ dense work, pooled keys included."""
    masks = MaskCache(len(specs))
    return {name: cost_of(spec.at(0, 1, 0, 1).fit(grid)[0], grid, 64, masks) for name, spec in specs.items()}


def _stand_in(specs: dict[str, Spec], work: dict[str, float]) -> str:
    near = [name for name in list(specs)[1:] if specs[name].static and 0.1 < work[name] < 0.6]  # these cost no choosing
    return min(near or list(specs)[1:], key=lambda name: abs(round(work[name] - STAND_IN_COST, 2)))


@dataclass(eq=False)
class _Tuning:
    """The order of things: observe, see what is lost, choose, check on a prompt kept apart, correct once."""

    study: Study
    store: Store
    prompts: list[str]
    goal: Goal
    work: dict[str, float]
    tell: Tell
    _done: int = field(default=0)

    @property
    def _seen(self) -> list[str]:
        """The prompts that are observed."""
        return self.prompts[:-1] or self.prompts

    def _say(self, what: str) -> None:
        parts = len(self._seen) + len(RANGES) + 1 + len(MANNERS)  # a last check is not known beforehand
        self._done += 1
        self.tell(what, self._done, max(parts, self._done))

    def recipe(self, made: dict[str, Any], grid: TokenGrid) -> Recipe:
        """All of it: what each manner chooses is checked, and the better one corrected."""
        observed: list[Any] = []
        for number, prompt in enumerate(self._seen):
            observed.append(self._observed(number, prompt, observed[0]["times"] if observed else ()))
        lost = [self._lost(number) for number in range(len(RANGES))]
        self.study.forget()
        measured = Measured(tuple(self.study.specs), self.study.stand_in, observed, lost)
        dense = self._dense()["seconds"]
        pace = dense / fmean(figures["seconds"] for figures in observed)
        tried = [self._try(manner, measured, dense, 1.0, pace) for manner in MANNERS]
        best = self.goal.best(tried, "measured")
        found = best["measured"]
        if not self.goal.met(found) or self.goal.leaves_room(found):
            off = {name: _ratio(found[name], best["predicted"][name]) for name in (self.goal.loss, "seconds")}
            wary = 1.0 if self.goal.met(found) else WARY
            tried.append(self._try(best["manner"], measured, dense, off[self.goal.loss], pace * off["seconds"], wary))
            best = self.goal.best(tried, "measured")
        if not self.goal.met(best["measured"]):
            nearest = self.goal.said(best["measured"])
            warnings.warn(f"dattn.tune: {self.goal} was not reached; the nearest: {nearest}", stacklevel=3)
        spec = best.pop("spec")
        figures = {name: made[name] for name in ("config", "device", "dtype")}
        figures |= self._figures(best, tried, dense, measured)
        return Recipe(made["model"], grid.sizes, spec, figures=figures)

    def _figures(self, best: Any, tried: list[Any], dense: float, measured: Measured) -> dict[str, Any]:
        """What the recipe says of itself."""
        return {
            "goal": self.goal.to_dict(),
            "met": self.goal.met(best["measured"]),
            "dense_seconds": dense,
            "prompts": self.prompts,
            "seed": self.study.seed,
            "tuning_seconds": self.store.seconds,
            "call": plain(self.study.call),
            "ranges": list(RANGES),
            **best,
            "tried": [{name: one[name] for name in ("manner", "predicted", "measured")} for one in tried],
            "seconds": measured.observed[0]["times"],
            "work": self.work,
        }

    def _observed(self, number: int, prompt: str, times: Sequence[Any]) -> Any:
        self._say(f"dense attention, watched: {prompt}")

        def measure() -> Any:
            clip, figures = self.study.observe(prompt, number == 0, times)
            self.goal.check_size(clip.shape)
            if number == 0:
                self.store.keep("dense", clip)
            return figures

        return self.store.do(f"observed-{number}", measure)

    def _lost(self, number: int) -> Any:
        self._say(f"sparse from {RANGES[number]:.0%} of the steps on")
        lose = lambda: self.study.lose(self._seen[0], self.store.array("dense"), number)
        return self.store.do(f"lost-{number}", lose)

    def _dense(self) -> Any:
        """The prompt kept apart, by stock attention."""
        self._say(f"stock attention: {self.prompts[-1]}")

        def measure() -> Any:
            clip, seconds = self._apart().timed(self.prompts[-1])
            self.store.keep("apart", clip)
            return {"seconds": seconds}

        return self.store.do("apart", measure)

    def _apart(self) -> Study:
        """The study of the prompt kept apart; of a single prompt, with other noise."""
        return self.study if len(self.prompts) > 1 else replace(self.study, seed=self.study.seed + 1)

    def _try(
        self, manner: str, measured: Measured, dense: float, off: float, pace: float, wary: float = 1.0
    ) -> dict[str, Any]:
        """Choose, and make the clip kept apart so.

        Args:
            manner: of choosing.
            measured: what to choose from.
            dense: seconds of stock attention.
            off: loss that a check found ÷ the loss that was expected.
            pace: of all times, likewise.
            wary: how much more than the bound is asked for.
        """
        plan = self._plan(MANNERS[manner], measured, dense, off, pace, wary)
        self._say(f"check: {self.goal.said(plan['predicted'])} expected")
        check = lambda: self._apart().check(self.prompts[-1], plan["spec"], self.store.array("apart"))
        result = self.store.do(f"check-{_key(plan['spec'])}", check)
        return plan | {"manner": manner, "measured": result | {"speed_up": dense / result["seconds"]}}

    def _plan(
        self, manner: Manner, measured: Measured, dense: float, off: float, pace: float, wary: float
    ) -> dict[str, Any]:
        """What one manner of choosing leads to, and what is expected of it."""
        scale = {loss: off * usual for loss, (_, usual, _) in manner.optimism.items()}
        tables = {loss: measured.tables(loss, scale=scale[loss], pace=pace) for loss in LOSSES}
        own = tables[self.goal.loss]
        found = manner.options(own)
        chosen = self.goal.choose(found, own.other, dense, wary)
        names = own.by_name(chosen)
        spec = assembled({key: tuple(self.study.specs[n] for n in heads) for key, heads in names.items()}, RANGES)
        predicted: dict[str, Any] = {loss: table.loss(chosen) for loss, table in tables.items()}
        seconds = own.other + chosen.seconds
        predicted |= {"seconds": seconds, "speed_up": dense / seconds}
        over = [measured.tables(self.goal.loss, [one], scale[self.goal.loss]).loss(chosen) for one in measured.observed]
        least, usual, most = manner.optimism[self.goal.loss]
        predicted["interval"] = [least / usual * min(over), most / usual * max(over)]  # over prompts and trials
        return {
            "spec": spec,
            "predicted": predicted,
            "places": [
                {"range": key[0], "layer": key[1], "heads": list(heads), **measured.seen(key, heads)}
                for key, heads in names.items()
            ],
            "frontier": [[one.loss, own.other + one.seconds] for one in efficient(found)],
        }


def _ratio(real: float, expected: float) -> float:
    return real / expected if expected > 0 and real > 0 else 1.0


def _key(spec: Spec) -> str:
    """A short name of a pattern."""
    return hashlib.sha256(json.dumps(spec.to_dict(), sort_keys=True).encode()).hexdigest()[:12]
