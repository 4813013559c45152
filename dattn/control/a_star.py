"""AStar: words of the prompt keep places of their own, and keep them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from torch import Tensor

from dattn.control.base import Layers, Window, check_window, within
from dattn.control.optimize import Optimize
from dattn.control.words import Phrase


class AStar(Optimize):
    """Segregation and retention of word maps at every step (Agarwal et al., "A-STAR", ICCV 2023).

    Maps are brought to [0, 1] each. L = Σ_{m<n} Σ min(A^m, A^n) ÷ Σ (A^m + A^n), so that two words do not share a
    place, plus Σ_m (1 − Σ min(A^m, B^m) ÷ Σ (A^m + B^m)), with B^m where the map of the step before exceeded
    ``threshold``, so that a word does not lose its place. The authors give neither step size nor threshold; ours are
    those of Attend-and-Excite and one half.

    Args:
        words: the concepts.
        step_size: α at the first step, see ``Optimize``.
        window: the denoising steps in which latents are moved; the authors move them in all.
        threshold: of a map in [0, 1], for B.
        layers: the layers whose maps count.
    """

    def __init__(
        self,
        words: Sequence[Phrase],
        step_size: float = 20.0,
        window: Window = 1.0,
        threshold: float = 0.5,
        layers: Layers = None,
    ) -> None:
        super().__init__(words, step_size, layers)
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold={threshold!r}: of maps in [0, 1]; the default is 0.5")
        self.window, self.threshold = check_window("window", window), threshold
        self._before: Tensor | None = None

    def start(self) -> None:
        """Forget the last call."""
        super().start()
        self._before = None

    def move(self, latents: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """One move down the sum of both losses."""
        if not within(self.window, self.stage.step, self.stage.steps):
            return latents
        latents.requires_grad_()
        maps = _unit(self.look(latents, arguments))
        loss = segregation(maps)
        if self._before is not None:
            loss = loss + retention(maps, self._before)
        self._before = (maps.detach() > self.threshold).to(maps.dtype)
        return self.descend(latents, loss) if loss.requires_grad else latents  # one word has no rival, nor a place yet


def segregation(maps: Tensor) -> Tensor:
    """Overlap of all pairs of words, summed over samples: [samples, words, frames, height, width] in [0, 1]."""
    pairs = combinations(maps.flatten(2).unbind(1), 2)
    return sum((overlap(one, other).sum() for one, other in pairs), maps.new_zeros(()))


def retention(maps: Tensor, kept: Tensor) -> Tensor:
    """How much words lose the places ``kept``, 0 or 1 and shaped like ``maps``, summed over words and samples."""
    return (1 - overlap(maps.flatten(2), kept.flatten(2))).sum()


def overlap(one: Tensor, other: Tensor) -> Tensor:
    """Σ min ÷ Σ sum over the last axis: 0 where they share nothing, ½ where they are equal."""
    return one.minimum(other).sum(-1) / (one + other).sum(-1).clamp(min=1e-8)


def _unit(maps: Tensor) -> Tensor:
    """Every map from 0 to 1."""
    flat = maps.flatten(2)
    low, high = flat.amin(-1), flat.amax(-1)
    return (maps - low[..., None, None, None]) / (high - low).clamp(min=1e-8)[..., None, None, None]
