"""AttendAndExcite: every subject of the prompt gets a place in the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dattn.control.base import Call, Layers, Window, check_window, within
from dattn.control.optimize import Optimize
from dattn.control.words import Phrase

SHARPNESS = 100.0
"""Factor of the maps before the softmax over words that makes them compete."""


class AttendAndExcite(Optimize):
    """Move the latents until some place looks at each of the words (Chefer et al., SIGGRAPH 2023).

    The map of every token is taken at 16 x 16, times 100, through a softmax over the prompt's tokens, and smoothed;
    with A_s the largest value of word s, the loss is L = max_s (1 − A_s). At some steps the latents are moved again and
    again until every A_s reaches a bound.

    Args:
        words: the subjects.
        step_size: α at the first step, see ``Optimize``.
        window: the denoising steps in which latents are moved.
        bounds: share of the steps → least A_s there.
        most: moves in one of those steps, at most.
        layers: the layers whose maps count.
    """

    def __init__(
        self,
        words: Sequence[Phrase],
        step_size: float = 20.0,
        window: Window = 0.5,
        bounds: Mapping[float, float] | None = None,
        most: int = 20,
        layers: Layers = None,
    ) -> None:
        super().__init__(words, step_size, layers)
        self.window, self.most = check_window("window", window), most
        self.bounds = {0.0: 0.05, 0.2: 0.5, 0.4: 0.8} if bounds is None else dict(bounds)
        if not all(0 <= share <= 1 and 0 <= bound <= 1 for share, bound in self.bounds.items()):
            raise ValueError(f"bounds={bounds!r}: shares of the steps and values of maps, all from 0 to 1")

    def move(self, latents: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """One move, or at some steps as many as it takes."""
        stage = self.stage
        bound = next((b for s, b in self.bounds.items() if round(s * stage.steps) == stage.step), None)
        if bound is not None:
            for _ in range(self.most):
                latents, loss = self._moved_once(latents, arguments)
                if loss <= 1 - bound:
                    break
        if within(self.window, stage.step, stage.steps):
            latents, _ = self._moved_once(latents, arguments)
        return latents

    def _moved_once(self, latents: Tensor, arguments: Mapping[str, Any]) -> tuple[Tensor, float]:
        latents = latents.detach().requires_grad_()
        loss = self.loss(self.look(latents, arguments))
        return self.descend(latents, loss), float(loss.detach())

    def loss(self, maps: Tensor) -> Tensor:
        """max_s (1 − A_s), summed over samples; ``maps`` is [samples, words, frames, height, width]."""
        best = maps.flatten(3).amax(3).mean(2)
        return (1 - best).clamp(min=0).amax(1).sum()

    def maps_of(self, call: Call) -> Tensor:
        """Maps that compete for every place, smoothed."""
        place, stage = call.place, self.stage
        count = place.text.stop - place.text.start
        looks = call.conditional().columns(range(place.text.start, place.text.stop))
        looks = looks[:, :, place.visual].mean(1).float()
        maps = []
        for sample, (_, prompt) in zip(looks, stage.prompt_of(call.rows), strict=True):
            inner = _inner(stage.tokens(stage.prompts[prompt])[0].spans if stage.prompts else (), count)
            rivals = torch.zeros_like(sample)
            rivals[:, inner] = (SHARPNESS * sample[:, inner]).softmax(-1)
            chosen = [rivals[:, stage.positions(word, prompt, count)].mean(-1) for word in self.words]
            maps.append(smooth(torch.stack(chosen).unflatten(1, place.grid.shape)))
        return torch.stack(maps)


def _inner(spans: Sequence[tuple[int, int]], count: int) -> slice:
    """The tokens that compete: without the special first one, where there is one, and without the very last."""
    special = bool(spans) and spans[0][0] == spans[0][1]
    return slice(1, count - 1) if special else slice(0, count)


def smooth(maps: Tensor, sigma: float = 0.5) -> Tensor:
    """Maps [..., height, width] under a 3 x 3 Gaussian with reflected borders.

    The exponent is −(d ÷ 2σ)², as in the method's own code: it is wider by √2 than its σ says.
    """
    distance = torch.arange(-1, 2, device=maps.device, dtype=maps.dtype)
    line = torch.exp(-((distance / (2 * sigma)) ** 2))
    kernel = torch.outer(line, line) / line.sum() ** 2
    flat = F.pad(maps.reshape(-1, 1, *maps.shape[-2:]), (1, 1, 1, 1), mode="reflect")
    return F.conv2d(flat, kernel[None, None]).view_as(maps)
