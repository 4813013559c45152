"""Edits that take attention from the first prompt of a batch: what Replace and Refine share."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dattn.control.base import Call, Control, Layers, Place, Window, among, check_layers, check_window, within
from dattn.control.words import Tokens

Fold = tuple[Tensor, Tensor | None]


class FromSource(Control):
    """The first prompt of a call is the source; pictures of the others keep its layout (Prompt-to-Prompt).

    In cross-attention the source's map is carried over to an edited prompt by A' = A_source · F + A ⊙ w, with F
    [source tokens, tokens] and w [tokens]: attention of the source's queries and keys with values F · V, and where w is
    not 0 another of the own ones with values w ⊙ V. In self-attention the source's map is taken as it is: its queries
    and keys with the own values. In joint attention the picture's queries and keys come from the source, the text's
    stay (the source's map as a whole would not know the edited prompt's words).

    All pictures of a call begin with the source's noise.

    Args:
        cross: the denoising steps in which cross-attention follows the source; joint attention has ``inject`` alone.
        inject: the steps in which self-attention or joint attention does.
        words: other steps than ``cross`` for single words or phrases of the edited prompts, in cross-attention.
        max_tokens: the largest picture, in tokens, whose self-attention follows the source; None is any, since most
            models have one size alone. The method's authors took 16², later 32², on Stable Diffusion's 64² latents:
            on a UNet give ``max_tokens=1024`` to edit as they do.
        layers: the layers of self-attention or joint attention that follow it.

    Raises:
        ValueError: windows that are none. In a call: no edited prompts, words that are in none of them, or ``words``
            where attention is joint.
    """

    def __init__(
        self,
        cross: Window = 0.8,
        inject: Window = 0.4,
        words: Mapping[str, Window] | None = None,
        max_tokens: int | None = None,
        layers: Layers = None,
    ) -> None:
        self.cross, self.inject = check_window("cross", cross), check_window("inject", inject)
        self.words = {word: check_window(f"words[{word!r}]", window) for word, window in (words or {}).items()}
        self.max_tokens, self.layers = max_tokens, check_layers(layers)
        self._checked = False
        self._folds: dict[Hashable, Fold] = {}

    def start(self) -> None:
        """Forget how the last call's prompts correspond."""
        super().start()
        self._folds, self._checked = {}, False

    def _check(self, place: Place) -> None:
        """Raise where a call has no edited prompts, words are in none or of no use, or samples do not meet."""
        if self.stage.sample is not None:
            raise ValueError(
                f"{type(self).__name__}: this model attends to each sample by itself, so none sees a source"
            )
        edited = self.stage.prompts[1:]
        if not edited:
            raise ValueError(
                f"{type(self).__name__}: {len(self.stage.prompts)} prompts; the first is the source and edits follow: "
                'pipe(["a red circle", "a blue circle"], ...)'
            )
        if self.words and place.kind == "joint":
            raise ValueError(
                f"words={self.words}: joint attention takes queries and keys of the source's picture, whatever the "
                "words; leave words out, and give inject"
            )
        for word in self.words:
            if not any(part.of(word) for prompt in edited for part in self.stage.tokens(prompt)):
                raise ValueError(f"words: {word!r} is in none of the edited prompts {edited}")

    def prepared(self, latents: Tensor) -> Tensor:
        """The source's noise for all."""
        each = max(1, len(latents) // max(1, len(self.stage.prompts)))
        return latents[:each].repeat(len(latents) // each, *[1] * (latents.ndim - 1))

    def acts(self, place: Place) -> bool:
        """Where and when attention follows the source."""
        if place.kind == "cross":
            return any(within(window, place.step, place.steps) for window in (self.cross, *self.words.values()))
        small = place.kind == "joint" or self.max_tokens is None or place.grid.visual <= self.max_tokens
        return small and within(self.inject, place.step, place.steps) and among(self.layers, place)

    def edit(self, call: Call) -> Tensor:
        """Attention of all samples, those of edited prompts after the source."""
        if not self._checked:
            self._check(call.place)
            self._checked = True
        rows, pairs = self.once(call, lambda: self._rows(call))
        if call.place.kind == "cross":
            return self._carry_over(call, rows, pairs)
        source = call.take(rows).with_values(call.value)
        if call.place.kind == "joint":
            source = replace(source, query=_with_picture(call.query, source.query, call.place.visual))
            source = replace(source, key=_with_picture(call.key, source.key, call.place.visual))
        return source.attend()

    def _rows(self, call: Call) -> tuple[Tensor, list[tuple[int, int]]]:
        """For every sample the one that it follows, int64 [batch]; those of edited prompts, with their prompts."""
        pairs = self.stage.prompt_of(call.rows)
        each = max(1, len(pairs) // max(1, len(self.stage.prompts)))
        edited = [(row, prompt) for row, prompt in pairs if prompt > 0]
        rows = torch.arange(len(call.query))
        for row, _ in edited:
            rows[row] = call.rows.start + (row - call.rows.start) % each
        return rows.to(call.query.device), edited

    def _carry_over(self, call: Call, rows: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
        """Cross-attention: A_source · F + A ⊙ w, folded into the values."""
        folded, own, mixed = call.value.clone(), torch.zeros_like(call.value), False
        for row, prompt in pairs:
            fold, weight = self._fold(prompt, call)
            folded[row] = fold @ call.value[row]
            if weight is not None:
                own[row], mixed = weight[:, None] * call.value[row], True
        output = call.take(rows).with_values(folded).attend()
        return output + call.with_values(own).attend() if mixed else output

    def _fold(self, prompt: int, call: Call) -> Fold:
        """F [keys, keys] and w [keys] for an edited prompt at a step; None where w is 0."""
        place, like = call.place, call.value
        active = tuple(within(window, place.step, place.steps) for window in (self.cross, *self.words.values()))
        which = prompt, place.text.stop - place.text.start, active, like.dtype, like.device
        if which not in self._folds:
            fold, weight = self._mixed(*which[:3])
            self._folds[which] = fold.to(like), weight.to(like) if weight.any() else None
        return self._folds[which]

    def _mixed(self, prompt: int, count: int, active: Sequence[bool]) -> tuple[Tensor, Tensor]:
        """F and w where ``cross``, and after it each of ``words``, is in its steps or not."""
        fold, weight = self._correspondences(prompt, count)
        follows = torch.full((count,), float(active[0]), dtype=fold.dtype)
        for word, now in zip(self.words, active[1:], strict=True):
            if any(part.of(word) for part in self.stage.tokens(self.stage.prompts[prompt])):
                follows[self.stage.positions(word, prompt, count)] = float(now)
        return fold * follows, 1 - follows * (1 - weight)

    def _correspondences(self, prompt: int, count: int) -> tuple[Tensor, Tensor]:
        """F and w where every token follows the source, for all tokenizers together."""
        fold, weight = torch.eye(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
        olds, news = (self.stage.tokens(self.stage.prompts[i]) for i in (0, prompt))
        for old, new in zip(olds, news, strict=True):
            room = min(new.room, count - new.start)
            part = slice(new.start, new.start + room)
            fold[part, part], weight[part] = self.correspondence(replace(old, room=room), replace(new, room=room))
        return fold, weight

    def correspondence(self, source: Tokens, target: Tokens) -> tuple[Tensor, Tensor]:
        """F [room, room] and w [room] of an edited prompt, for one tokenizer: A' = A_source · F + A ⊙ w."""
        raise NotImplementedError


def _with_picture(own: Tensor, other: Tensor, visual: slice) -> Tensor:
    """``own`` with the tokens of the picture from ``other``."""
    mixed = own.clone()
    mixed[:, :, visual] = other[:, :, visual]
    return mixed
