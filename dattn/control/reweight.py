"""Reweight: a word of the prompt counts more, or less, or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

import torch
from torch import Tensor

from dattn.control.base import Call, Control, Place, Window, check_window, within
from dattn.control.words import Phrase


class Reweight(Control):
    """Multiply how much the picture looks at words: A' = A ⊙ c (Hertz et al., "Prompt-to-Prompt", 2022).

    In cross-attention that is attention with values multiplied by c. In joint attention only queries of the picture
    are changed: o' = o + Σ_j (c_j − 1) a_j v_j over the words' tokens j. With ``renormalize`` what is taken from one
    word goes to the others, as if log c were added to the logits: o' ÷ (1 + Σ_j (c_j − 1) a_j).

    Args:
        weights: a factor for every word or phrase; 0 removes it, negative ones work against it.
        window: the denoising steps in which it acts.
        renormalize: whether every query's weights still sum to one.

    Raises:
        ValueError: no words, factors that are no numbers, or with ``renormalize`` below 0.
    """

    def __init__(self, weights: Mapping[Phrase, float], window: Window = 1.0, renormalize: bool = False) -> None:
        wrong = {word: c for word, c in weights.items() if not isinstance(c, int | float) or not isfinite(c)}
        if wrong or not weights:
            raise ValueError(f'weights={weights!r}: give a factor for each word, such as {{"red": 2.0}}')
        if renormalize and min(weights.values()) < 0:
            raise ValueError(f"weights={weights!r}: with renormalize=True factors are 0 or more")
        self.weights, self.renormalize = dict(weights), renormalize
        self.window = check_window("window", window)

    def acts(self, place: Place) -> bool:
        """In cross-attention and joint attention."""
        return place.kind != "self" and within(self.window, place.step, place.steps)

    def edit(self, call: Call) -> Tensor:
        """Attention with the words' weights multiplied, for the samples that follow the prompt."""
        factors = self._factors(call)
        if call.place.kind == "cross" and not self.renormalize:
            return call.with_values(call.value * factors[:, None, :, None].to(call.value)).attend()
        tokens = (factors != 1).any(0).nonzero().flatten()
        some = call.columns(tokens.tolist()) * (factors[:, tokens] - 1)[:, None, None].to(call.value)
        queries = torch.zeros_like(call.query[:1, :1, :, :1])
        queries[:, :, call.place.visual] = 1
        some = some * queries
        output = call.attend() + some @ call.value[:, :, tokens]
        return output / (1 + some.sum(-1, keepdim=True)) if self.renormalize else output

    def _factors(self, call: Call) -> Tensor:
        """Of every sample and key: [batch, keys]."""
        factors = torch.ones(len(call.query), call.key.shape[2], device=call.key.device)
        for row, prompt in self.stage.prompt_of(call.rows):
            for word, factor in self.weights.items():
                factors[row, self.stage.keys(word, prompt, call.place.text)] = factor
        return factors
