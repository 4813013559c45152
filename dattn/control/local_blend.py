"""LocalBlend: edits change the picture only where the words are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dattn.control.base import Call, Control, Layers, Place, check_layers, check_window
from dattn.control.map_store import MapStore, on_latents, tells_words, word_maps
from dattn.control.words import Phrase


class LocalBlend(Control):
    """Outside of where the words of source and edit are, the edit's latents are the source's (Prompt-to-Prompt).

    x ← x_source + m ⊙ (x − x_source), with m where the word's map, divided by its maximum, exceeds ``threshold`` in
    either picture. It stands beside ``Replace`` or ``Refine``: ``control=[Replace(), LocalBlend(["cat", "dog"])]``.

    Args:
        words: for every prompt of the call a phrase, or several.
        subtract: for every prompt phrases whose place, in the edit or in the source, is never changed.
        threshold: for ``words``; a pair gives that for ``subtract`` too.
        start: share of the denoising steps before it acts; maps are gathered from the first on.
        layers: the layers whose maps count; by default those of 16 x 16 tokens, or the level nearest to that.

    Raises:
        ValueError: thresholds or a start outside [0, 1].
    """

    keeps_sums = True

    def __init__(
        self,
        words: Sequence[Phrase | Sequence[str]],
        subtract: Sequence[Phrase | Sequence[str]] | None = None,
        threshold: float | tuple[float, float] = 0.3,
        start: float = 0.2,
        layers: Layers = None,
    ) -> None:
        thresholds = threshold if isinstance(threshold, tuple) else (threshold, threshold)
        if len(thresholds) != 2 or not all(0 <= t <= 1 for t in thresholds):
            raise ValueError(f"threshold={threshold!r}: a number in [0, 1], or a pair for words and subtract")
        self.words, self.subtract = _listed(words), None if subtract is None else _listed(subtract)
        self.thresholds, self.layers = thresholds, check_layers(layers)
        self.begin = check_window("start", start)[1]
        self._stores: list[MapStore] = []

    def start(self) -> None:
        """Forget the last call's maps."""
        super().start()
        self._stores = []

    def _check(self) -> None:
        """Raise where there are not as many words as prompts."""
        for name, given in (("words", self.words), ("subtract", self.subtract)):
            if given is not None and len(given) != len(self.stage.prompts):
                count = len(self.stage.prompts)
                raise ValueError(f"{name} for {len(given)} prompts, but the call has {count}: give phrases for each")

    def acts(self, place: Place) -> bool:
        """Where text is seen, at one size of the picture."""
        return not self.stage.again and tells_words(self.layers, self.stage, place)

    def edit(self, call: Call) -> Tensor:
        """Note the maps; attention as it is."""
        if not self._stores:
            self._check()
        if call.rows.stop > call.rows.start:
            for number, phrases in enumerate(filter(None, (self.words, self.subtract))):
                together = self.once(call, lambda: self._together(phrases, call.place), number)  # noqa: B023
                maps = word_maps(call, self, together, total=True)
                if len(self._stores) <= number:
                    frames, height, width = maps.shape[-3:]
                    self._stores.append(MapStore((frames, height, width)))
                self._stores[number].add(maps.mean(1).detach())
        return call.attend()

    def _together(self, phrases: list[list[Phrase]], place: Place) -> list[list[Phrase]]:
        """For every prompt the positions of all its phrases as one."""
        count = place.text.stop - place.text.start
        found = lambda prompt, some: {i for one in some for i in self.stage.positions(one, prompt, count)}
        return [[sorted(found(prompt, some))] for prompt, some in enumerate(phrases)]

    def stepped(self, latents: Tensor) -> Tensor:
        """The source's latents where no word is."""
        if not self._stores or self.stage.step < round(self.begin * self.stage.steps):
            return latents
        each = len(latents) // len(self.stage.prompts)
        mask = self._mask(latents, self._stores[0].mean[:, 0], self.thresholds[0], pool=True)
        if self.subtract is not None:
            mask = mask & ~self._mask(latents, self._stores[1].mean[:, 0], self.thresholds[1], pool=False)
        return torch.where(mask, latents, _for_all(latents[:each], len(latents)))

    def _mask(self, latents: Tensor, maps: Tensor, threshold: float, pool: bool) -> Tensor:
        """Where maps [samples, frames, height, width] of a picture or its source exceed a threshold.

        It is a bool that multiplies latents.
        """
        maps = F.max_pool2d(maps, 3, stride=1, padding=1) if pool else maps
        laid = on_latents(maps, latents, self.stage.frames_first)
        found = laid > threshold * laid.flatten(1).amax(1).view(-1, *[1] * (laid.ndim - 1))
        return found | _for_all(found[: len(found) // len(self.stage.prompts)], len(found))


def _for_all(source: Tensor, samples: int) -> Tensor:
    """The source's pictures for every prompt's."""
    return source.repeat(samples // len(source), *[1] * (source.ndim - 1))


def _listed(phrases: Sequence[Phrase | Sequence[str]]) -> list[list[Phrase]]:
    """For every prompt its phrases as a list."""
    lists: list[list[Phrase]] = []
    for one in phrases:
        several = not isinstance(one, str | int) and isinstance(one[0], str)
        lists.append([*one] if several else [one])  # type: ignore[list-item, misc]
    return lists
