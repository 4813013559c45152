"""SharedKeys: queries also see the keys of other frames, windows or samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from typing import Literal

import torch
from torch import Tensor

from dattn.control.base import Call, Control, Layers, Place, Window, among, check_layers, check_window, within
from dattn.control.hiding import hide, weighted
from dattn.control.key_bank import KeyBank
from dattn.control.merging import merge
from dattn.control.samples import branches, frames_apart

SOURCES = ("first_frame", "keyframes", "previous_window", "batch_item")
Pair = tuple[Tensor, Tensor]


class SharedKeys(Control):
    """Self-attention or joint attention over the own keys and those of a source, as one softmax.

    A key that a query sees anyway (by the model, by a pattern) counts once, a key of the source counts ``strength``
    times, and one that is both counts as the larger of the two:

        a_ij ∝ max(own_ij, strength · source_j) · exp(s q_i·k_j)

    So strength 1 is the union of both sets, and with dense attention over a whole video, where all frames are seen
    anyway, only more than 1 changes anything. Keys keep the positions that they were given at their source. The parts
    are merged by their log-sum-exp; no map is built.

    Sources:
        ``"first_frame"``, ``"keyframes"``: these frames' tokens, whole, for every query (Khachatryan et al.,
        "Text2Video-Zero", 2023; Geyer et al., "TokenFlow", 2023). Where frames are samples of the batch
        (AnimateDiff, Latte) they are those of the same video.
        ``"previous_window"``: frames that a ``KeyBank`` kept (Liao et al., "LOVECon", 2023).
        ``"batch_item"``: the sequence of another prompt's picture, text with it, under the same pattern and of the same
        guidance branch. With ``replace`` it takes the place of the own keys (Cai et al., "DiTCtrl", 2024). That
        prompt's own samples stay as they are, within rounding. Of several pictures for each prompt the n-th sees the
        n-th.

    Args:
        source: one of those.
        strength: how much a key of the source counts, 0 (off) or more.
        keyframes: frames for ``"keyframes"``, counted in latent frames, -1 the last.
        item: the number of the prompt for ``"batch_item"``; with one prompt for all, of the picture. ``"previous"``:
            for every prompt the one before it, while the first goes by itself.
        replace: see ``"batch_item"``.
        bank: for ``"previous_window"``; a new one by default, at ``.bank``.
        window: the denoising steps in which it acts.
        layers: numbers among the self-attention or joint layers, or a predicate on their names.

    Raises:
        ValueError: an unknown source, a strength below 0, ``keyframes`` missing or without use, ``replace`` with
            another source or strength.
    """

    def __init__(
        self,
        source: str = "first_frame",
        strength: float = 1.0,
        *,
        keyframes: Sequence[int] | None = None,
        item: int | Literal["previous"] = 0,
        replace: bool = False,
        bank: KeyBank | None = None,
        window: Window = 1.0,
        layers: Layers = None,
    ) -> None:
        if source not in SOURCES:
            raise ValueError(f"source={source!r}: choose {', '.join(SOURCES)}")
        if not isinstance(strength, int | float) or not isfinite(strength) or strength < 0:
            raise ValueError(f"strength={strength!r}: 0 (off) or more; 1 is the union of own keys and the source's")
        if bool(keyframes) != (source == "keyframes"):
            raise ValueError(f'keyframes={keyframes!r}, source={source!r}: give frames with source="keyframes" alone')
        if replace and (source != "batch_item" or strength != 1):
            raise ValueError('replace=True: for source="batch_item" with strength=1, whose keys are then the only ones')
        if item != "previous" and (not isinstance(item, int) or item < 0):
            raise ValueError(f"item={item!r}: the number of a prompt, counted from 0, or 'previous'")
        self.source, self.strength, self.item, self.replace = source, float(strength), item, replace
        self.frames = tuple(keyframes or (0,))
        self.bank = bank or KeyBank()
        self.window, self.layers = check_window("window", window), check_layers(layers)

    def acts(self, place: Place) -> bool:
        """In self-attention and joint attention."""
        here = place.kind != "cross" and among(self.layers, place)
        return here and self.strength > 0 and within(self.window, place.step, place.steps)

    def edit(self, call: Call) -> Tensor:
        """Attention over own keys and the source's."""
        if self.source == "batch_item":
            return self._with_item(call)
        return self._with_window(call) if self.source == "previous_window" else self._with_frames(call)

    def _with_frames(self, call: Call) -> Tensor:
        chosen = self._chosen(call, self.frames)
        if chosen.count == 1:
            raise ValueError(
                f"source={self.source!r}: {call.place.name} has one frame, so there are no others to see it"
            )
        source = _all_see(call, chosen.of(call.key), chosen.of(call.value), chosen.of_mask(call.mask))
        union = merge(hide(call, chosen.own).attend_lse(), weighted(source, max(self.strength, 1)))
        if self.strength < 1:
            union = merge(weighted(call.attend_lse(), 1 - self.strength), weighted(union, self.strength))
        return union[0]

    def _with_window(self, call: Call) -> Tensor:
        branch = f"{self.stage.branch} {self.stage.passes}"  # some pipelines give their branches no names
        chosen = self._chosen(call, self.bank.frames)
        found = self.bank.seen(call.place, branch)
        self.bank.keep(call.place, branch, chosen.of(call.key), chosen.of(call.value))
        if found is None:
            return call.attend()
        if len(call.query) % len(found[0]):
            raise ValueError(f"the window before had {len(found[0])} videos, this one {len(call.query)}: give as many")
        return merge(call.attend_lse(), weighted(_all_see(call, *found), self.strength))[0]

    def _chosen(self, call: Call, frames: tuple[int, ...]) -> _Frames:
        return self.once(call, lambda: _Frames(call, frames, frames_apart(call, self.stage)), frames)

    def _with_item(self, call: Call) -> Tensor:
        shared = replace(call.take(self._sources(call)), query=call.query)
        if self.replace:
            return shared.attend()
        return merge(call.attend_lse(), weighted(shared.attend_lse(), self.strength))[0]

    def _sources(self, call: Call) -> Tensor:
        """For every sample the one whose keys it sees: int64 [batch]."""
        return self.once(call, lambda: self._items(call))

    def _items(self, call: Call) -> Tensor:
        sources = torch.arange(len(call.query))
        for branch in branches(call, self.stage):
            if len(branch) < 2 or (self.item != "previous" and self.item >= len(branch)):
                raise ValueError(f"item={self.item}: {len(branch)} prompts run together; call with two or more")
            for number, samples in enumerate(branch):
                item = max(0, number - 1) if self.item == "previous" else self.item
                sources[samples] = torch.tensor(branch[item])
        return sources.to(call.key.device)


class _Frames:
    """Some frames of a call of attention, whether they are parts of its sequences or samples of its batch.

    Attributes:
        own: bool [batch or 1, keys]; which keys of a sample are theirs.
        count: how many frames there are.
    """

    def __init__(self, call: Call, frames: Sequence[int], apart: int) -> None:
        self._apart = apart > 1
        self.count = apart if self._apart else call.place.grid.frames
        wrong = [frame for frame in frames if not -self.count <= frame < self.count]
        if wrong:
            raise ValueError(f"frames {wrong}: there are {self.count} latent frames, counted from 0; -1 is the last")
        chosen = torch.zeros(self.count, dtype=torch.bool)
        chosen[[*frames]] = True
        own = _of_samples(chosen, call) if self._apart else _of_tokens(chosen, call)
        self.own = own.to(call.key.device)
        self._places = (chosen if self._apart else own[0]).nonzero().flatten().to(call.key.device)

    def of(self, tensor: Tensor) -> Tensor:
        """Their keys or values: [videos, heads, tokens, head_dim]."""
        if not self._apart:
            return tensor[:, :, self._places]
        return tensor.unflatten(0, (-1, self.count))[:, self._places].transpose(1, 2).flatten(2, 3)

    def of_mask(self, mask: Tensor | None) -> Tensor | None:
        """What the model's mask says of their keys, or None."""
        return None if mask is None or self._apart else mask[..., self._places]


def _of_samples(chosen: Tensor, call: Call) -> Tensor:
    return chosen.repeat(len(call.key) // len(chosen))[:, None].expand(-1, call.key.shape[2])


def _of_tokens(chosen: Tensor, call: Call) -> Tensor:
    own = torch.zeros(1, call.key.shape[2], dtype=torch.bool)
    own[:, call.place.visual] = chosen.repeat_interleave(call.place.grid.visual // len(chosen))
    return own


def _all_see(call: Call, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Pair:
    """Every query over keys [videos, heads, tokens, head_dim] that all samples of a video see."""
    key, value = (tensor.repeat_interleave(len(call.query) // len(tensor), 0) for tensor in (key, value))
    return replace(call, key=key, value=value, mask=mask).aside()
