"""One clip, made and measured: what was asked for, the seconds, the density, the likeness to stock."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

import dattn
from dattn.backends import choose
from dattn.metrics import WINDOW, psnr, ssim
from dattn.presets import PRESETS
from dattn.registry import pattern_from_string

from .adapted import parts, with_lora
from .arguments import STOCK
from .loading import STRETCH, Loaded
from .shapes.judge import judge
from .shapes.pictures import judge_picture

OnStep = Callable[[int, int], None]
HEAD_DIM = 64
"""For asking early whether a backend runs here at all; the model's own is looked at when it attends."""


@dataclass(frozen=True)
class Request:
    """What to make; None leaves a value to the pipeline."""

    prompt: str
    seed: int = 0
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    steps: int | None = None
    guidance: float | None = None

    def filled(self, loaded: Loaded) -> Request:
        """With what a demo model likes best in place of None, and no change for any other model."""
        native = loaded.native
        if native is None:
            return self
        wish: dict[str, Any] = {
            "height": native.height,
            "width": native.width,
            "steps": native.steps,
            "guidance": native.guidance,
        }
        if loaded.makes_video:
            wish["frames"] = native.frames_at(STRETCH)
        return replace(self, **{name: value for name, value in wish.items() if getattr(self, name) is None})

    def call(self, loaded: Loaded) -> dict[str, Any]:
        """The keyword arguments of the pipeline's call.

        Raises:
            ValueError: the pipeline takes no such argument.
        """
        given = {
            "num_frames": self.frames,
            "height": self.height,
            "width": self.width,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
        }
        wanted = {"prompt": self.prompt, **{k: v for k, v in given.items() if v is not None}}
        wanted |= loaded.native.extra if loaded.native else {}
        for name in sorted(wanted.keys() - loaded.arguments):
            kind = type(loaded.pipe).__name__
            raise ValueError(f"{name}={wanted[name]!r}: {kind} takes no such argument; leave the option out")
        return {**wanted, "generator": torch.Generator("cpu").manual_seed(self.seed), "output_type": "np"}


@dataclass
class Result:
    """A clip and its figures; None where a figure does not apply.

    ``density`` and ``pooled_share`` are those of a sparse step; ``work`` counts dense steps and pooled keys:
    attention FLOPs, as a share of dense.
    """

    name: str
    clip: np.ndarray = field(repr=False)
    seconds: float
    denoiser_seconds: float
    density: float | None = None
    pooled_share: float | None = None
    work: float | None = None
    psnr: float | None = None
    ssim: float | None = None
    judged: bool | None = None
    verdict: str | None = None
    report: dict[str, Any] | None = field(default=None, repr=False)
    table: str | None = field(default=None, repr=False)

    def figures(self) -> dict[str, Any]:
        """Everything but the clip, ready for JSON."""
        left_out = ("clip", "report", "table")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left_out}

    def compare(self, stock: np.ndarray) -> None:
        """Fill in the likeness to the stock clip of the same seed; equal clips have no PSNR."""
        likeness = psnr(self.clip, stock)
        self.psnr = likeness if math.isfinite(likeness) else None
        self.ssim = ssim(self.clip, stock) if min(self.clip.shape[1:3]) >= WINDOW else None


def is_stock(attention: str) -> bool:
    """Whether ``--pattern`` means the pipeline untouched."""
    return attention.lower() in STOCK


def read_attention(text: str) -> Any:
    """What ``--pattern`` means to ``dattn.apply``: a preset or recipe by name, or a pattern written out.

    Raises:
        ValueError: an unknown pattern, a bad literal, an unreadable recipe.
    """
    if text.endswith(".json"):
        return _readable_recipe(text)
    return text if text in PRESETS or text == "auto" else pattern_from_string(text)


def _readable_recipe(path: str) -> str:
    try:
        json.loads(Path(path).read_text())
    except OSError as error:
        raise ValueError(f"recipe {path}: cannot be read ({error.strerror}); give an existing file") from None
    except ValueError as error:
        raise ValueError(f"recipe {path}: not JSON ({error}); write it with handle.save_recipe") from None
    return path


def run(
    loaded: Loaded,
    request: Request,
    attention: str,
    options: dict[str, Any] | None = None,
    on_step: OnStep | None = None,
) -> Result:
    """Make one clip, stock or with a pattern, and measure it.

    Args:
        loaded: the pipeline; untouched afterwards.
        request: what to make.
        attention: ``stock``, or anything that :func:`read_attention` takes; either may have a LoRA of its own.
        options: more arguments of ``dattn.apply``.
        on_step: told after every step how many are done, and of how many; what it raises ends the run.

    Raises:
        ValueError: what the pipeline or the pattern refuses.
    """
    row = parts(attention)
    with with_lora(loaded.pipe, row.lora):
        if is_stock(row.attention):
            with row.acting(loaded.pipe):
                return _timed(loaded, request, "stock" if row.lora is None else attention, on_step)
        asked = read_attention(row.attention)
        with dattn.apply(loaded.pipe, asked, **(options or {})) as handle, row.acting(loaded.pipe):
            result = _timed(loaded, request, attention, on_step)
            report = handle.report()
    result.report, result.table = report.to_dict(), str(report)
    result.density, result.pooled_share = _mean_shares(result.report["layers"])
    result.work = result.report["flops_share"]
    return result


def _mean_shares(layers: list[dict[str, Any]]) -> tuple[float | None, float | None]:
    """Density and pooled share, means over all self-attention layers; one left stock has density 1."""
    if any(layer["grid"] is None for layer in layers):
        return None, None
    density = [1.0 if layer["backend"] == "stock" else layer["density"] for layer in layers]
    pooled = [0.0 if layer["backend"] == "stock" else layer["tail_share"] for layer in layers]
    return None if None in density else fmean(density), None if None in pooled else fmean(pooled)


class _Enough(Exception):
    """Ends a call once its grid is known."""


def check(loaded: Loaded, request: Request, attention: str, options: dict[str, Any] | None = None) -> None:
    """Raise ``ValueError`` if a pattern cannot be applied to a pipeline as it is written, before anything runs.

    ``dattn.apply`` clamps a window to the grid, which is what a UNet's many levels need. Where a model has a
    single grid, a window that is larger is a mistake, if it was asked for; presets and recipes say what they became.
    """
    applied, lora, _ = parts(attention)
    if is_stock(applied):
        with with_lora(loaded.pipe, lora):
            return
    asked = read_attention(applied)
    with with_lora(loaded.pipe, lora), dattn.apply(loaded.pipe, asked, **(options or {})) as handle:
        choose((options or {}).get("backend", "auto"), loaded.pipe.device, loaded.pipe.dtype, HEAD_DIM)
        run_to_the_grid(loaded, request)
        notes = {layer.note for layer in handle.layers if layer.note}
        if notes and not isinstance(asked, str) and len({layer.grid for layer in handle.layers if layer.grid}) == 1:
            grid = next(layer.grid for layer in handle.layers if layer.grid)
            raise ValueError(f"{attention} does not fit the grid {grid.shape}: it would be {notes.pop()}; write that")


def run_to_the_grid(loaded: Loaded, request: Request) -> None:
    """Call the pipeline up to its first forward pass, which tells every layer its grid."""

    def stop(*_: Any) -> None:
        raise _Enough

    hooks = [network.register_forward_pre_hook(stop) for network in loaded.denoisers]
    loaded.pipe.set_progress_bar_config(disable=True)
    try:
        loaded.pipe(**request.call(loaded))
    except _Enough:
        pass
    finally:
        for hook in hooks:
            hook.remove()


def _timed(loaded: Loaded, request: Request, name: str, on_step: OnStep | None = None) -> Result:
    loaded.pipe.set_progress_bar_config(desc=name, leave=False, disable=not sys.stderr.isatty())
    if loaded.pipe.device.type != "cpu":  # kernels compile on the first call, of which nothing counts as done
        warm = None if on_step is None else lambda done, of: on_step(0, request.steps or of)
        loaded.pipe(**_told(loaded, replace(request, steps=2), warm))
    call = _told(loaded, request, on_step)
    with _stopwatch(loaded.denoisers) as denoising:
        start = _now()
        output = loaded.pipe(**call)
        seconds = _now() - start
    result = Result(name, clips_of(output)[0], seconds, denoising())
    _judge(loaded, request, result)
    return result


def _told(loaded: Loaded, request: Request, on_step: OnStep | None) -> dict[str, Any]:
    """The arguments of a call that tells of its steps, where the pipeline can."""
    call = request.call(loaded)
    if on_step is not None and "callback_on_step_end" in loaded.arguments:
        call["callback_on_step_end"] = telling(on_step)
    return call


def telling(on_step: OnStep) -> Callable[..., dict[str, Any]]:
    """A callback of pipelines that tells of their steps."""

    def after(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        on_step(step + 1, pipe.num_timesteps)
        return tensors

    return after


@contextmanager
def checked(pipe: Any, check: Callable[[], None]) -> Iterator[None]:
    """Call ``check`` before each layer of a pipeline's networks; what it raises ends the run, within a step."""
    networks = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    lists = [part for network in networks for part in network.modules() if isinstance(part, torch.nn.ModuleList)]
    layers = [layer for several in lists for layer in several if layer is not None]  # some lists have gaps
    hooks = [layer.register_forward_pre_hook(lambda *_: check()) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def _stopwatch(networks: list[torch.nn.Module]) -> Iterator[Callable[[], float]]:
    """Adds up the seconds that networks spend in their forward."""
    spans: list[float] = []
    hooks = [n.register_forward_pre_hook(lambda *_: spans.append(-_now())) for n in networks]
    hooks += [n.register_forward_hook(lambda *_: spans.append(_now())) for n in networks]
    try:
        yield lambda: sum(spans)
    finally:
        for hook in hooks:
            hook.remove()


def clips_of(output: Any) -> list[np.ndarray]:
    """The clips of a pipeline's output: uint8 ``[frames, height, width, 3]`` each; a picture is one frame."""
    made = output.frames if hasattr(output, "frames") else [np.asarray(picture)[None] for picture in output.images]
    return [np.rint(np.clip(np.asarray(clip), 0, 1) * 255).astype(np.uint8) for clip in made]


def _judge(loaded: Loaded, request: Request, result: Result) -> None:
    """Ask the judge, where the model is of its world and it can read both clip and prompt."""
    if loaded.native is None:
        return
    try:
        seen = (
            judge_picture(result.clip[0], request.prompt)
            if len(result.clip) == 1
            else judge(result.clip, request.prompt)
        )
    except ValueError:
        return
    result.judged, result.verdict = seen.ok, str(seen)
