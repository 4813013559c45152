"""Reweight: a word of the prompt counts more, or less, or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

import torch
from torch import Tensor

from dattn.control.base import Call, Control, Place, Window, check_window, within
from dattn.control.hiding import of_rows
from dattn.control.words import Phrase


class Reweight(Control):
    """Multiply how much the picture looks at words: A' = A ⊙ c (Hertz et al., "Prompt-to-Prompt", 2022).

    That is attention with values multiplied by c, in joint attention for queries of the picture alone; those of text
    stay, unless ``both`` is given. With ``renormalize`` what is taken from one word goes to the others, as if log c
    were added to the logits: it is divided by attention with c in place of the values. A query that is left with
    nothing gives 0. In joint attention text and picture run apart, at no more cost; over a pattern or other controls
    the whole runs once more.

    Args:
        weights: a factor for every word or phrase; 0 removes it, negative ones work against it.
        window: the denoising steps in which it acts.
        renormalize: whether every query's weights still sum to one.
        prompts: numbers of the prompts that are changed, counted from 0; None is all.
        both: whether in joint attention the words also look at the picture so much more (Cai et al., "DiTCtrl", 2024);
            by default only the picture at the words.
        frames: the part of the clip that it holds for, in shares of its length: (0.5, 1) is the second half. With
            ``{word: 0}`` that erases a word for a while (Chen et al., "MotionCLR", 2024).

    Raises:
        ValueError: no words, factors that are no numbers, or with ``renormalize`` below 0; ``both`` for some frames.
    """

    def __init__(
        self,
        weights: Mapping[Phrase, float],
        window: Window = 1.0,
        renormalize: bool = False,
        prompts: Sequence[int] | None = None,
        both: bool = False,
        frames: Window = 1.0,
    ) -> None:
        wrong = {word: c for word, c in weights.items() if not isinstance(c, int | float) or not isfinite(c)}
        if wrong or not weights:
            raise ValueError(f'weights={weights!r}: give a factor for each word, such as {{"red": 2.0}}')
        if renormalize and min(weights.values()) < 0:
            raise ValueError(f"weights={weights!r}: with renormalize=True factors are 0 or more")
        self.weights, self.renormalize, self.both = dict(weights), renormalize, both
        self.keeps_sums = not renormalize  # log c is part of the sum
        self.window, self.prompts = check_window("window", window), None if prompts is None else frozenset(prompts)
        self.frames = check_window("frames", frames, of="the clip")
        if both and self.frames != (0, 1):
            raise ValueError(f"frames={frames!r} with both=True: words look at the whole clip; leave one of them out")

    def acts(self, place: Place) -> bool:
        """In cross-attention and joint attention."""
        return place.kind != "self" and within(self.window, place.step, place.steps)

    def edit(self, call: Call) -> Tensor:
        """Attention with the words' weights multiplied, for the samples that follow the prompt."""
        factors = self.once(call, lambda: self._factors(call))
        if factors is None:
            return call.attend()
        if call.place.kind == "cross":
            return self._scaled(call, factors) if self.frames == (0, 1) else self._split(call, factors)
        following = call.rows.stop - call.rows.start
        if call.runs.sparse or not call.runs.alone or following == len(call.query):
            return self._split(call, factors)
        output = torch.empty_like(call.query)  # samples apart: those that follow no prompt stay as they are, to the bit
        others = torch.arange(len(output) - following, device=output.device)
        others = others + following * (others >= call.rows.start)
        output[others] = call.take(others).attend()
        output[call.rows] = self._split(call.conditional(), factors[call.rows])
        return output

    def _split(self, call: Call, factors: Tensor) -> Tensor:
        """Queries of the picture, in the frames, with weights multiplied, others without, or as ``both`` says."""
        picture, rest = self.once(call, lambda: self._sides(call), "sides")
        output = call.value.new_empty(*call.query.shape[:3], call.value.shape[-1])
        if len(picture):
            output[:, :, picture] = self._scaled(call, factors, picture)
        if len(rest):
            output[:, :, rest] = self._told(call, factors, picture, rest) if self.both else of_rows(call, rest)
        return output

    def _sides(self, call: Call) -> tuple[Tensor, Tensor]:
        """The queries that are served, and the others: int64 each."""
        grid, inside = call.place.grid, torch.zeros(call.query.shape[2], dtype=torch.bool)
        served = torch.tensor([within(self.frames, frame, grid.frames) for frame in range(grid.frames)])
        inside[call.place.visual] = served.repeat_interleave(grid.height * grid.width)
        return inside.nonzero().flatten().to(call.query.device), (~inside).nonzero().flatten().to(call.query.device)

    def _scaled(self, call: Call, factors: Tensor, queries: Tensor | None = None) -> Tensor:
        """Attention of some queries, int64, with the weights of keys multiplied: [batch, 1, keys, 1]."""
        scaled = of_rows(call.with_values(call.value * factors), queries)
        if not self.renormalize:
            return scaled
        sums = of_rows(call.with_values(factors.expand_as(call.value).contiguous()), queries)[..., :1]
        return scaled / sums.clamp(min=torch.finfo(sums.dtype).tiny)

    def _told(self, call: Call, factors: Tensor, picture: Tensor, text: Tensor) -> Tensor:
        """Queries of text, of which those of words look at the picture so much more: o + (c - 1) · what they see there.

        The factors of keys are those of the same tokens as queries.
        """
        there = torch.zeros_like(call.value[:1, :1, :, :1]).index_fill(2, picture, 1)
        more = factors[:, :, text] - 1
        output = of_rows(call, text) + more * of_rows(call.with_values(call.value * there), text)
        if not self.renormalize:
            return output
        sums = 1 + more * of_rows(call.with_values(there.expand_as(call.value).contiguous()), text)[..., :1]
        return output / sums.clamp(min=torch.finfo(sums.dtype).tiny)

    def _factors(self, call: Call) -> Tensor | None:
        """Of every sample and key: [batch, 1, keys, 1]; None where all are 1."""
        factors = torch.ones(len(call.query), call.key.shape[2], dtype=call.value.dtype)
        for row, prompt in self.stage.prompt_of(call.rows):
            for word, factor in self.weights.items() if self.prompts is None or prompt in self.prompts else ():
                factors[row, self.stage.keys(word, prompt, call.place.text)] = factor
        return None if (factors == 1).all() else factors[:, None, :, None].to(call.value.device)
