"""SubjectKeys: a prompt's subject sees the subject of the prompt before it, and its surroundings see the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from dattn.control.base import Call, Layers, Place, Window, among, check_layers
from dattn.control.hiding import hide
from dattn.control.map_store import MapStore, resize, word_maps
from dattn.control.shared_keys import SharedKeys
from dattn.control.words import Phrase


class SubjectKeys(SharedKeys):
    """Mask-guided sharing of keys (Cai et al., "DiTCtrl", CVPR 2025).

    Where a map of the subject's words, from 0 to 1 in every frame, exceeds ``threshold``, there is the subject. Its
    queries see, of the source's keys, the source's subject and the text, all others what is left and the text:

        m ⊙ attend(q, source's keys but its surroundings) + (1 - m) ⊙ attend(q, source's keys but its subject)

    Queries of text are the subject's where they are its words. Before there are maps, where one is even, and where a
    pattern would leave a query without keys, the source's are shared whole. Maps are the mean over the steps so far,
    and serve all guidance branches.

    Args:
        words: for every prompt of the call the words of its subject.
        threshold: in (0, 1).
        item: the prompt whose keys are seen, or ``"previous"``.
        maps: the layers whose maps count, among those that see text; in joint models each costs its attention a
            second time.
        window, layers: see ``SharedKeys``.

    Raises:
        ValueError: no words, a threshold outside (0, 1), and what ``SharedKeys`` raises.
    """

    def __init__(
        self,
        words: Sequence[Phrase],
        threshold: float = 0.3,
        *,
        item: int | Literal["previous"] = 0,
        maps: Layers = None,
        window: Window = 1.0,
        layers: Layers = None,
    ) -> None:
        super().__init__("batch_item", item=item, replace=True, window=window, layers=layers)
        if isinstance(words, str) or not words:
            raise ValueError(f"words={words!r}: give the words of the subject for every prompt, such as ['cat', 'cat']")
        if not 0 < threshold < 1:
            raise ValueError(f"threshold={threshold!r}: a number between 0 and 1")
        self.words, self.threshold, self.maps = list(words), threshold, check_layers(maps)
        self._store: MapStore | None = None

    def start(self) -> None:
        """Forget the last call's maps."""
        super().start()
        self._store = None

    def acts(self, place: Place) -> bool:
        """Where keys are shared, and where maps are told before that is over."""
        return super().acts(place) or self._tells(place)

    def edit(self, call: Call) -> Tensor:
        """Note the maps; subject on subject and the rest on the rest."""
        if self._tells(call.place) and call.rows.stop > call.rows.start:
            self._note(call)
        if not super().acts(call.place):
            return call.attend()
        sources = self._sources(call)
        shared = replace(call.take(sources), query=call.query)
        if self._store is None:
            return shared.attend()
        subject, known = self._subject(call)
        theirs, visual = subject[sources], torch.zeros_like(subject)
        visual[:, call.place.visual].fill_(True)
        alone = sources == torch.arange(len(sources), device=sources.device)
        split = (known & known[sources] & ~alone)[:, None]
        inside = _without(shared, visual & ~theirs & split)
        outside = _without(shared, visual & theirs & split)
        return torch.where((subject | ~split)[:, None, :, None], inside, outside)

    def _tells(self, place: Place) -> bool:
        over = place.step >= round(self.window[1] * place.steps)
        return place.kind != "self" and not over and not self.stage.again and among(self.maps, place)

    def _note(self, call: Call) -> None:
        if len(self.words) != len(self.stage.prompts):
            raise ValueError(
                f"words for {len(self.words)} prompts, but the call has {len(self.stage.prompts)}: give them for each"
            )
        maps = word_maps(call, self, [[word] for word in self.words], total=True).mean(1).detach()
        self._store = self._store or MapStore(call.place.grid.shape)
        self._store.add(maps)

    def _subject(self, call: Call) -> tuple[Tensor, Tensor]:
        """Which tokens are the subject's, bool [batch, queries], and of which samples that is known, bool [batch]."""
        assert self._store is not None
        maps = resize(self._store.mean[:, 0], call.place.grid.shape).flatten(2).float()  # samples, frames, tokens
        low, high = maps.amin(2, keepdim=True), maps.amax(2, keepdim=True)
        share = (maps - low) / (high - low).clamp(min=torch.finfo(maps.dtype).tiny)
        found = torch.zeros(len(maps), call.query.shape[2], dtype=torch.bool, device=maps.device)
        found[:, call.place.visual] = share.flatten(1) > self.threshold
        if call.place.kind == "joint":
            found |= self.once(call, lambda: self._told(call, len(maps)), "words")
        known = (high > low).flatten(1).all(1)
        times = len(call.query) // len(maps)  # guidance branches in one batch
        return found.repeat(times, 1), known.repeat(times)

    def _told(self, call: Call, samples: int) -> Tensor:
        """Which queries of text are the subject's words, for the samples of a branch: bool [samples, queries]."""
        found = torch.zeros(samples, call.query.shape[2], dtype=torch.bool)
        for sample, prompt in self.stage.prompt_of(slice(0, samples)):
            found[sample, self.stage.keys(self.words[prompt], prompt, call.place.text)] = True
        return found.to(call.key.device)


def _without(call: Call, keys: Tensor) -> Tensor:
    """Attention without some keys, bool [batch, keys]; whole where a pattern leaves a query none."""
    if not call.runs.sparse:
        return hide(call, keys).attend()
    output, lse = hide(call, keys).attend_lse()
    return torch.where(lse.isfinite()[..., None], output, call.attend())
