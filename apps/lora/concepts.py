"""Several concepts learned from one picture without mixing: losses on the maps of their words.

A concept is a new word and its class, "<new1> circle". With maps a of class words and n of new words, each mean over
heads and layers, brought to [0, 1] and blurred, and a squared (DisenDiff, Zhang et al., CVPR 2024, arXiv 2404.02101):

    binding = Σ_i (1 - IoU(a_i, n_i)) + Σ_{i<j} IoU(a_i, a_j)          IoU(a, b) = (Σ ab + 1) / (Σ a + Σ b - Σ ab + 1)

where the first term pulls at the new words alone. With a mask m_i for each concept (AttenCraft, Shentu et al.,
arXiv 2405.17965), the mean p_i of the maps of its words, brought to the mask's size and to [0, 1], and softmax over
places, as its authors have it:

    masking = mean_i JS(softmax p_i, softmax m_i)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dattn.control.base import Call, Control, Place
from dattn.control.map_store import MapStore, resize, tells_words, word_maps

from .tokens import NewTokens

SIZE = 16
"""Height and width of the maps that losses are computed on."""
BLUR = (0.106507, 0.786986, 0.106507)
"""A Gaussian of width 0.5 at three places."""


@dataclass(frozen=True)
class Concept:
    """A new word and the class that it is one of."""

    word: str
    kind: str

    @classmethod
    def read(cls, text: str, placeholders: Sequence[str]) -> Concept:
        """Of "<new1> circle".

        Raises:
            ValueError: no new word in front, or no class behind it.
        """
        word, _, kind = text.strip().partition(" ")
        if word not in placeholders or not kind.strip():
            raise ValueError(f"--concept {text!r}: write a placeholder ({', '.join(placeholders)}) and its class")
        return cls(word, kind.strip())


class ConceptMaps(Control):
    """Maps of the concepts' words in a forward pass of a bare model, with their graph."""

    keeps_sums = True

    def __init__(self, tokens: NewTokens, concepts: Sequence[Concept]) -> None:
        self._tokens, self.concepts = tokens, tuple(concepts)
        self._phrases: list[list[list[int]]] = []
        self._store = MapStore((1, SIZE, SIZE))
        self.present = torch.zeros(0, len(self.concepts), dtype=torch.bool)

    def watch(self, captions: Sequence[str]) -> None:
        """A forward pass for these captions comes."""
        stage, self._store = self.stage, MapStore((1, SIZE, SIZE))
        stage.prompts, stage.samples, stage.passes = tuple(captions), len(captions), 0
        self.present = torch.tensor([self.named(caption) for caption in captions], dtype=torch.bool)
        rows = [self._found(caption) for caption in captions]
        self._phrases = [[places or [0] for pair in row for places in pair] for row in rows]  # 0 stands in for none

    def _found(self, caption: str) -> list[tuple[list[int], list[int]]]:
        """The tokens of every concept's word and of its class behind it; empty where the caption has them not."""
        tokens = self._tokens.tokens(caption)
        found = []
        for concept in self.concepts:
            word, both = tokens.of(concept.word), tokens.of(f"{concept.word} {concept.kind}")
            found.append((word, [i for i in both if i not in word]))
        return found

    def named(self, caption: str) -> list[bool]:
        """Which concepts a caption names."""
        return [bool(word and kind) for word, kind in self._found(caption)]

    def acts(self, place: Place) -> bool:
        """Where words are told apart, if any concept is named."""
        return bool(self.present.any()) and tells_words(None, self.stage, place)

    def edit(self, call: Call) -> Tensor:
        """Note the maps; attention as it is."""
        self._store.add(word_maps(call, self, [list(row) for row in self._phrases]).mean(1))
        return call.attend()

    def maps(self) -> Tensor:
        """[samples, concepts, 2, height, width]: of new words and of classes."""
        return self._store.mean[:, :, 0].unflatten(1, (len(self.concepts), 2))


def binding(maps: Tensor, present: Tensor) -> Tensor:
    """DisenDiff's loss, the mean over samples.

    Args:
        maps: [samples, concepts, 2, height, width], of new words and of classes.
        present: bool [samples, concepts], those that a sample's caption names.
    """
    clear = blurred(to_unit(maps))
    words, kinds = clear[:, :, 0], clear[:, :, 1].square()
    own = (1 - overlap(kinds.detach(), words)) * present
    both = torch.triu(present[:, :, None] & present[:, None], diagonal=1)
    return (own.sum() + (overlap(kinds[:, :, None], kinds[:, None]) * both).sum()) / len(maps)


def masking(maps: Tensor, masks: Tensor, present: Tensor) -> Tensor:
    """AttenCraft's loss, the mean over the concepts that are named and have a mask.

    Args:
        maps: as for ``binding``.
        masks: [samples, concepts, height, width] in [0, 1], of any size.
        present: as for ``binding``.
    """
    counted = present & (masks.sum((-2, -1)) > 0)
    looks = to_unit(resize(maps.mean(2)[:, :, None], (1, *masks.shape[-2:]))[:, :, 0])
    divergence = jensen_shannon(*(side.flatten(2).softmax(-1) for side in (looks, masks)))
    return (divergence * counted).sum() / counted.sum().clamp_min(1)


def to_unit(maps: Tensor) -> Tensor:
    """Every map [..., height, width] from its least to its largest value onto [0, 1]."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low).clamp_min(1e-8)


def blurred(maps: Tensor) -> Tensor:
    """[..., height, width] by a Gaussian over three places, borders repeated."""
    row = torch.tensor(BLUR).to(maps)
    flat = F.pad(maps.reshape(-1, 1, *maps.shape[-2:]), (1, 1, 1, 1), mode="replicate")
    return F.conv2d(flat, (row[:, None] * row)[None, None]).view_as(maps)


def overlap(one: Tensor, other: Tensor) -> Tensor:
    """Soft intersection over union of maps [..., height, width], broadcast; with nothing in both it is 1."""
    common = (one * other).sum((-2, -1))
    return (common + 1) / (one.sum((-2, -1)) + other.sum((-2, -1)) - common + 1)


def jensen_shannon(one: Tensor, other: Tensor) -> Tensor:
    """Of distributions over the last axis, in nats: 0 to ln 2."""
    middle = (one + other) / 2
    parts = (torch.special.xlogy(p, p) - torch.special.xlogy(p, middle) for p in (one, other))
    return sum(parts, torch.zeros(())).sum(-1) / 2
