"""Real pictures as the way of noisy latents that leads to them: found by stepping a scheduler backwards."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dattn.control import Control
from dattn.pipelines.latents import encoded

SINGLE = ("DDIMScheduler", "FlowMatchEulerDiscreteScheduler")
"""Schedulers whose step is linear in latents and prediction, and knows nothing of the steps before it."""


class Backwards:
    """A scheduler whose steps add the noise that the steps of another remove.

    A step of the other is x' = a x + b m of latents x and prediction m, so that x = (x' - b m) / a. The model is asked
    at the noise level of x, with x' in place of x (Song et al., "Denoising Diffusion Implicit Models", 2021).

    Args:
        scheduler: one of ``SINGLE``.

    Attributes:
        path: the latents of every noise level, the least first; what the first step was given is first.

    Raises:
        ValueError: another scheduler, or one whose steps are random or clip.
    """

    def __init__(self, scheduler: Any) -> None:
        kind, config = type(scheduler).__name__, scheduler.config
        if kind not in SINGLE:
            raise ValueError(
                f"scheduler {kind}: to invert a picture its steps must be linear; set pipe.scheduler = "
                "DDIMScheduler.from_config(pipe.scheduler.config), with models of flow "
                "FlowMatchEulerDiscreteScheduler.from_config(…)"
            )
        wrong = [name for name in ("clip_sample", "thresholding", "stochastic_sampling") if config.get(name)]
        if wrong:
            raise ValueError(
                f"scheduler {kind} with {wrong[0]}=True: to invert a picture, make it with {wrong[0]}=False"
            )
        self._scheduler = scheduler
        self.path: list[Tensor] = []
        self.set_timesteps = functools.wraps(scheduler.set_timesteps)(functools.partial(self._set_timesteps))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._scheduler, name)

    def _set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        """As the other, from the least noise on."""
        self._scheduler.set_timesteps(*args, **kwargs)
        levels = self._scheduler.timesteps
        self._factors = list(zip(self._stepped(1.0, 0.0), self._stepped(0.0, 1.0), strict=True))[::-1]
        self.timesteps, self.path = levels.flip(0), []

    def _stepped(self, latents: float, prediction: float) -> Iterator[float]:
        """What every step of the other makes of one number and a prediction of it."""
        other = copy.deepcopy(self._scheduler)
        given = [torch.full((1,), x, dtype=torch.float32, device=other.timesteps.device) for x in (prediction, latents)]
        for level in other.timesteps:
            yield float(other.step(given[0], level, given[1], return_dict=False)[0])

    def step(self, output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """Latents with the noise of one step more."""
        self.path = self.path or [sample]
        a, b = self._factors[len(self.path) - 1]
        self.path.append(((sample.float() - b * output.float()) / a).to(sample))
        return (self.path[-1],)


class Path(Control):
    """The first picture of a call goes the way that a real one came; all begin where it does.

    Args:
        latents: of every noise level, the most first.
    """

    def __init__(self, latents: Sequence[Tensor]) -> None:
        self.latents = tuple(latents)

    def stepped(self, latents: Tensor) -> Tensor:
        """The real picture's latents in the first place (Ju et al., "PnP Inversion", 2024)."""
        return torch.cat([self.latents[self.stage.step + 1].to(latents), latents[1:]])


@contextmanager
def backwards(pipeline: Any) -> Iterator[Backwards]:
    """The pipeline's scheduler runs backwards inside.

    Raises:
        ValueError: what ``Backwards`` raises.
    """
    forwards = pipeline.scheduler
    pipeline.scheduler = Backwards(forwards)
    try:
        yield pipeline.scheduler
    finally:
        pipeline.scheduler = forwards


def latents_of(pipeline: Any, image: Any, height: int | None, width: int | None) -> Tensor:
    """A picture as the pipeline's latents, packed where it packs them: of a PIL image, array or tensor."""
    pixels = pipeline.image_processor.preprocess(image, height=height, width=width)
    latents = encoded(pipeline.vae, pixels).to(pipeline._execution_device)
    if not hasattr(pipeline, "_pack_latents"):
        return latents
    return pipeline._pack_latents(latents, *latents.shape)
