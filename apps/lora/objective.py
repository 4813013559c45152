"""What a model is trained to predict: noise levels, noisy latents and targets, as the scheduler's config says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

WEIGHTED = ("sigma_sqrt", "cosmap")
"""Schemes of ``Noise`` that weight losses."""


@dataclass(frozen=True)
class Noise:
    """How noise levels are drawn and their losses weighted.

    Attributes:
        scheme: ``"none"`` draws evenly, ``"logit_normal"`` and ``"mode"`` draw more of some levels (Esser et al. 2024);
            ``"sigma_sqrt"`` and ``"cosmap"`` draw evenly and weight.
        mean, deviation: of ``logit_normal``.
        scale: of ``mode``.
        gamma: signal-to-noise ratios above it do not add to a loss's weight (Min-SNR, Hang et al. 2023); None for no
            weights.
    """

    scheme: str = "none"
    mean: float = 0.0
    deviation: float = 1.0
    scale: float = 1.29
    gamma: float | None = None


@dataclass(frozen=True)
class Objective:
    """Latents with noise, and what is to be predicted of them.

    Attributes:
        kind: ``"flow"`` (x_s = (1 - s) x + s e, predict e - x), ``"epsilon"``, ``"v_prediction"`` or ``"sample"``
            (x_t = sqrt(a_t) x + sqrt(1 - a_t) e).
        alphas: the products a_t, [times]; None for flow.
        shift: of the noise levels of flow: s -> shift s / (1 + (shift - 1) s); see ``shifted``.
        times: how many there are.
        between: the noise levels that the model is asked for, where two models share them.
        window: the denoising steps that are trained, as shares of all.
    """

    kind: str
    alphas: Tensor | None
    shift: float
    times: int
    between: tuple[float, float] = (0.0, 1.0)
    window: tuple[float, float] = (0.0, 1.0)

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest noise level that are trained."""
        start, end = (self._level(1 - share) for share in self.window)
        return max(self.between[0], end), min(self.between[1], start)

    def shifted(self, shift: float | None) -> Objective:
        """The same with another shift, where there is one: that of a size."""
        return self if shift is None else replace(self, shift=shift)

    def check(self, noise: Noise) -> None:
        """Raise ``ValueError`` where losses cannot be weighted so, or no level is trained."""
        low, high = self.bounds
        if low >= high:
            raise ValueError(
                f"--train_window {self.window[0]:g} {self.window[1]:g}: this model is asked for noise levels from "
                f"{self.between[0]:g} to {self.between[1]:g}, and none of them is in these steps; widen it"
            )
        if noise.gamma is not None and self.kind == "flow":
            raise ValueError(
                f"--snr_gamma {noise.gamma:g}: for models that predict epsilon, v or samples, this one learns flow; "
                "use --weighting_scheme"
            )
        if noise.scheme in WEIGHTED and self.kind != "flow":
            raise ValueError(
                f"--weighting_scheme {noise.scheme}: for models that learn flow, this one predicts {self.kind}; use "
                "--snr_gamma"
            )

    def weights(self, levels: Tensor, noise: Noise) -> Tensor:
        """Of the losses at noise levels, float32 [batch]."""
        if noise.scheme in WEIGHTED:
            from diffusers.training_utils import compute_loss_weighting_for_sd3

            return compute_loss_weighting_for_sd3(noise.scheme, levels)
        if noise.gamma is None or self.alphas is None:
            return torch.ones_like(levels)
        a = self.alphas.to(levels)[self._times(levels)]
        ratio = a / (1 - a)
        most = ratio.clamp(max=noise.gamma)
        if self.kind == "epsilon":
            return (noise.gamma / ratio).clamp(max=1)  # as most / ratio, where all is noise too
        return most / (ratio + 1) if self.kind == "v_prediction" else most

    def levels(self, count: int, noise: Noise, generator: torch.Generator) -> Tensor:
        """Noise levels in (0, 1), float32 [count]; those that are not trained are drawn again."""
        from diffusers.training_utils import compute_density_for_timestep_sampling

        low, high = self.bounds
        found = torch.empty(0)
        while len(found) < count:
            drawn = compute_density_for_timestep_sampling(
                noise.scheme, count, noise.mean, noise.deviation, noise.scale, generator=generator
            )
            level = self._level(1 - drawn.float())
            found = torch.cat([found, level[(level >= low) & (level <= high)]])
        return found[:count]

    def done(self, levels: Tensor) -> float:
        """The share of a denoising call's steps that lie before noise levels, their mean, [batch]."""
        even = levels / (self.shift - (self.shift - 1) * levels) if self.kind == "flow" else levels
        return 1 - float(even.mean())

    def fixed(self, share: float) -> Tensor:
        """The level at a share of those that are trained, float32 [1]."""
        low, high = self.bounds
        return torch.tensor([low + share * (high - low)])

    def noisy(self, clean: Tensor, noise: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy latents, the scheduler's times, and targets, for latents [batch, …] and levels [batch]."""
        if self.alphas is None:
            s = _over(levels, clean)
            return (1 - s) * clean + s * noise, levels * self.times, noise - clean
        times = self._times(levels)
        a = self.alphas.to(levels)[times]
        signal, rest = _over(a.sqrt(), clean), _over((1 - a).sqrt(), clean)
        targets = {"epsilon": noise, "v_prediction": signal * noise - rest * clean, "sample": clean}
        return signal * clean + rest * noise, times.float(), targets[self.kind]

    def _level(self, even: Any) -> Any:
        """The noise level, numbers or tensors, where a share of the denoising steps is still to come."""
        return self.shift * even / (1 + (self.shift - 1) * even) if self.kind == "flow" else even

    def _times(self, levels: Tensor) -> Tensor:
        """The scheduler's whole times at noise levels."""
        return (levels * self.times).long().clamp(max=self.times - 1)


def objective_of(scheduler: Any, between: tuple[float, float] = (0.0, 1.0)) -> Objective:
    """The objective of a scheduler's models.

    Raises:
        ValueError: a scheduler that tells of none that is known.
    """
    config = scheduler.config
    if config.get("invert_sigmas"):
        raise ValueError(f"scheduler {type(scheduler).__name__} with invert_sigmas=True: its times run backwards")
    times, kind = config.get("num_train_timesteps", 1000), config.get("prediction_type")
    if type(scheduler).__name__.startswith("FlowMatch") or kind == "flow_prediction" or config.get("use_flow_sigmas"):
        shift = config.get("shift") or config.get("flow_shift") or 1.0
        return Objective("flow", None, float(shift), times, between)
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None or kind not in ("epsilon", "v_prediction", "sample"):
        raise ValueError(
            f"scheduler {type(scheduler).__name__} with prediction_type={kind!r}: dattn trains flow matching, epsilon, "
            "v_prediction and sample"
        )
    return Objective(str(kind), alphas, 1.0, times, between)


def _over(numbers: Tensor, like: Tensor) -> Tensor:
    return numbers.view(-1, *[1] * (like.ndim - 1)).to(like)
