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

    The mean map of every token over heads and layers of 16 x 16, times 100, goes through a softmax over the prompt's
    tokens and is smoothed; with A_s the largest value of word s, the loss is L = max_s (1 − A_s). At some steps within
    the window, latents are moved again and again until every A_s of their sample reaches a bound.

    Args:
        words: the subjects.
        step_size: α at the first step, see ``Optimize``.
        window: the denoising steps in which latents are moved.
        bounds: share of the steps → least A_s there; of those that fall on one step the largest counts.
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
        """One move, or at some steps as many before it as it takes."""
        stage = self.stage
        if not within(self.window, stage.step, stage.steps):
            return latents
        bound = max((b for s, b in self.bounds.items() if round(s * stage.steps) == stage.step), default=None)
        for _ in range(0 if bound is None else self.most):
            latents = latents.detach().requires_grad_()
            losses = self.losses(self.look(latents, arguments))
            wanting = losses.detach() > 1 - (bound or 0)
            if not wanting.any():
                break
            moved = self.descend(latents, losses.sum())
            latents = moved.where(wanting.view(-1, *[1] * (moved.ndim - 1)), latents.detach())
        latents = latents.detach().requires_grad_()
        return self.descend(latents, self.losses(self.look(latents, arguments)).sum())

    def losses(self, maps: Tensor) -> Tensor:
        """max_s (1 − A_s) of every sample; ``maps`` of all tokens are [samples, tokens, frames, height, width]."""
        stage, each, worst = self.stage, max(1, len(maps) // max(1, len(self.stage.prompts))), []
        for number, looks in enumerate(maps):
            prompt, count = number // each, len(looks)
            inner = _inner(stage.tokens(stage.prompts[prompt])[0].spans if stage.prompts else (), count)
            rivals = torch.zeros_like(looks)
            rivals[inner] = (SHARPNESS * looks[inner]).softmax(0)
            chosen = [rivals[stage.positions(word, prompt, count)].mean(0) for word in self.words]
            best = smooth(torch.stack(chosen)).flatten(2).amax(2).mean(1)
            worst.append((1 - best).clamp(min=0).amax())
        return torch.stack(worst)

    def maps_of(self, call: Call) -> Tensor:
        """Maps of all text tokens, which compete for every place."""
        place = call.place
        looks = call.conditional().columns(range(place.text.start, place.text.stop))
        return looks[:, :, place.visual].mean(1).float().mT.unflatten(2, place.grid.shape)


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
