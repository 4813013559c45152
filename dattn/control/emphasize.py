"""Emphasize: a word is added to what the picture sees, whatever else it looks at."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

import torch
from torch import Tensor

from dattn.control.base import Call, Control, Layers, Place, Window, among, check_layers, check_window, within
from dattn.control.words import Phrase


class Emphasize(Control):
    """Add to words' weights: o' = o + w Σ_j v_j over a word's tokens j (Chen et al., "MotionCLR", 2024).

    That is A'_ij = A_ij + w, rows no longer summing to one, for every query of the picture, in cross-attention or joint
    attention. The paper takes w from -1 to 1, of verbs. To erase a word for some steps, or in a part of the
    clip, is another control: ``Reweight({word: 0}, window=(0.2, 0.6), frames=(0.5, 1))``.

    Args:
        weights: what is added for every word or phrase; negative works against it.
        window: the denoising steps in which it acts.
        layers: numbers among the layers that see text, or a predicate on their names.

    Raises:
        ValueError: no words, or weights that are no numbers.
    """

    keeps_sums = True

    def __init__(self, weights: Mapping[Phrase, float], window: Window = 1.0, layers: Layers = None) -> None:
        wrong = [w for w in weights.values() if not isinstance(w, int | float) or not isfinite(w)]
        if wrong or not weights:
            raise ValueError(f'weights={weights!r}: give what is added for each word, such as {{"moving": 0.3}}')
        self.weights = dict(weights)
        self.window, self.layers = check_window("window", window), check_layers(layers)

    def acts(self, place: Place) -> bool:
        """In cross-attention and joint attention."""
        return place.kind != "self" and among(self.layers, place) and within(self.window, place.step, place.steps)

    def edit(self, call: Call) -> Tensor:
        """Attention and the words' values, for the samples that follow the prompt."""
        added = self.once(call, lambda: self._added(call))
        output = call.attend().clone()
        output[:, :, call.place.visual] += added @ call.value
        return output

    def _added(self, call: Call) -> Tensor:
        """To the weight of every key: [batch, 1, 1, keys]."""
        added = torch.zeros(len(call.key), call.key.shape[2], dtype=call.value.dtype)
        for row, prompt in self.stage.prompt_of(call.rows):
            for word, weight in self.weights.items():
                added[row, self.stage.keys(word, prompt, call.place.text)] += weight
        return added[:, None, None].to(call.value.device)
