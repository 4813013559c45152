"""Which concepts of a picture a step is about, so that all are learned equally fast (AttenCraft, arXiv 2405.17965).

A step is about some of the concepts that a caption names: the caption then tells of these alone, and the model's error
counts in their masks M alone, |M (prediction - target)|². Which set S it is, is drawn with a chance in proportion to

    uniform       1: of two concepts each alone, and both, equally often
    reweighted    mean_{i in S} 1 / s_i          s_i: mean attention to word i in the mask of concept i

so that concepts which the model looks at little come more often. The authors' code draws uniformly; that ratios follow
attention scores is what the paper says, this form of it is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, combinations

import torch
from torch import Tensor

from .concepts import Concept

Members = tuple[int, ...]


def subsets(concepts: Sequence[int]) -> list[Members]:
    """All sets of one or more."""
    return list(chain.from_iterable(combinations(concepts, size) for size in range(1, len(concepts) + 1)))


def chances(sets: Sequence[Members], scheme: str, scores: Tensor) -> Tensor:
    """With which chance each set is drawn, float64 [sets].

    Args:
        scheme: "uniform" or "reweighted".
        scores: [concepts], above 0: mean attention to each concept's word in its mask.
    """
    rare = torch.ones(len(scores)) if scheme == "uniform" else 1 / scores.clamp_min(1e-8)
    weights = torch.stack([rare.double()[list(members)].mean() for members in sets])
    return weights / weights.sum()


def scores_of(words: Tensor, masks: Tensor) -> Tensor:
    """Mean attention to words in masks, both [concepts, height, width] of one size: [concepts]; 0 without a mask."""
    return (words * masks).sum((1, 2)) / masks.sum((1, 2)).clamp_min(1)


def drawn(sets: Sequence[Members], weights: Tensor, generator: torch.Generator) -> Members:
    """One of some sets, by chances [sets]."""
    return sets[int(torch.multinomial(weights, 1, generator=generator))]


def told(concepts: Sequence[Concept], members: Members) -> str:
    """The caption of some concepts alone: "a <new1> circle and a <new2> square"."""
    return " and ".join(f"a {concepts[i].word} {concepts[i].kind}" for i in members)
