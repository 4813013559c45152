"""Reweight: a word of the prompt counts more, or less, or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

import torch
from torch import Tensor

from dattn.control.base import Call, Control, Place, Window, check_window, within
from dattn.control.words import Phrase


class Reweight(Control):
    """Multiply how much the picture looks at words: A' = A ⊙ c (Hertz et al., "Prompt-to-Prompt", 2022).

    That is attention with values multiplied by c, in joint attention for queries of the picture alone. With
    ``renormalize`` what is taken from one word goes to the others, as if log c were added to the logits: it is divided
    by attention with c in place of the values. A query that is left with nothing gives 0.

    Args:
        weights: a factor for every word or phrase; 0 removes it, negative ones work against it.
        window: the denoising steps in which it acts.
        renormalize: whether every query's weights still sum to one.
        prompts: numbers of the prompts that are changed, counted from 0; None is all.

    Raises:
        ValueError: no words, factors that are no numbers, or with ``renormalize`` below 0.
    """

    def __init__(
        self,
        weights: Mapping[Phrase, float],
        window: Window = 1.0,
        renormalize: bool = False,
        prompts: Sequence[int] | None = None,
    ) -> None:
        wrong = {word: c for word, c in weights.items() if not isinstance(c, int | float) or not isfinite(c)}
        if wrong or not weights:
            raise ValueError(f'weights={weights!r}: give a factor for each word, such as {{"red": 2.0}}')
        if renormalize and min(weights.values()) < 0:
            raise ValueError(f"weights={weights!r}: with renormalize=True factors are 0 or more")
        self.weights, self.renormalize = dict(weights), renormalize
        self.keeps_sums = not renormalize  # log c is part of the sum
        self.window, self.prompts = check_window("window", window), None if prompts is None else frozenset(prompts)

    def acts(self, place: Place) -> bool:
        """In cross-attention and joint attention."""
        return place.kind != "self" and within(self.window, place.step, place.steps)

    def edit(self, call: Call) -> Tensor:
        """Attention with the words' weights multiplied, for the samples that follow the prompt."""
        factors = self.once(call, lambda: self._factors(call))
        scaled = call.with_values(call.value * factors).attend()
        if self.renormalize:
            sums = call.with_values(factors.expand_as(call.value)).attend()[..., :1]
            scaled = scaled / sums.clamp(min=torch.finfo(sums.dtype).tiny)
        if call.place.kind == "cross":
            return scaled
        output = call.attend().clone()
        output[:, :, call.place.visual] = scaled[:, :, call.place.visual]
        return output

    def _factors(self, call: Call) -> Tensor:
        """Of every sample and key: [batch, 1, keys, 1]."""
        factors = torch.ones(len(call.query), call.key.shape[2], dtype=call.value.dtype)
        for row, prompt in self.stage.prompt_of(call.rows):
            for word, factor in self.weights.items() if self.prompts is None or prompt in self.prompts else ():
                factors[row, self.stage.keys(word, prompt, call.place.text)] = factor
        return factors[:, None, :, None].to(call.value.device)
