"""Muon in float32: the momentum of every matrix, made orthogonal, is the step.

``torch.optim.Muon`` orthogonalises in bfloat16, which processors without it emulate: on those it takes two thirds of
a training step of our small models. Everything else here is as there. Method: Jordan et al., 2024; scale of the step:
Liu et al., "Muon is Scalable for LLM Training", 2025.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of x, x³ and x⁵: five rounds bring every singular value in (0, 1] near 1."""
ROUNDS = 5


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest matrix whose singular values are about 1 (0.7 to 1.2), by Newton and Schulz: float32 ``[m, n]``."""
    a, b, c = QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Steps of the size that AdamW's have at the same learning rate.

    Args:
        params: matrices alone.
        lr: learning rate.
        momentum: share of the old in the running mean of gradients, with Nesterov's look ahead.
        weight_decay: decoupled.

    Raises:
        ValueError: a parameter that is no matrix.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.02
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for parameter in (p for group in self.param_groups for p in group["params"]):
            if parameter.ndim != 2:
                raise ValueError(
                    f"a parameter of shape {tuple(parameter.shape)}: Muon steps matrices; give it to AdamW"
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step with the gradients at hand."""
        for group in self.param_groups:
            for weights in (p for p in group["params"] if p.grad is not None):
                mean = self.state[weights].setdefault("mean", torch.zeros_like(weights))
                mean.lerp_(weights.grad, 1 - group["momentum"])
                step = orthogonal(weights.grad.lerp(mean, group["momentum"]))
                weights.mul_(1 - group["lr"] * group["weight_decay"])
                weights.add_(step, alpha=-0.2 * group["lr"] * max(weights.shape) ** 0.5)
