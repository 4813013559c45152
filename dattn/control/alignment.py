"""How the tokens of an edited prompt correspond to those of its source (Hertz et al., "Prompt-to-Prompt", 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dattn.control.words import Tokens


def replacement(source: Tokens, target: Tokens) -> Tensor:
    """The mapper of prompts that differ in single words: float64 [room, room], so that A' = A_source · M.

    Tokens of a swapped word share those of its counterpart; outside of swapped words tokens correspond in step, and
    behind the last one position by position.

    Raises:
        ValueError: prompts that differ in the number of words.
    """
    swapped = _swapped_words(source, target)
    mapper = torch.zeros(source.room, source.room, dtype=torch.float64)
    i = j = 0
    for olds, news in swapped:
        between = torch.arange(olds[0] - i)
        mapper[i + between, j + between] = 1
        mapper[olds[0] : olds[-1] + 1, news[0] : news[-1] + 1] = _block(len(olds), len(news))
        i, j = olds[-1] + 1, news[-1] + 1
    behind = torch.arange(j, source.room)
    mapper[behind, behind] = 1
    return mapper


def _swapped_words(source: Tokens, target: Tokens) -> list[tuple[list[int], list[int]]]:
    """Tokens of every word that differs, in both prompts."""
    olds, news = source.words(), target.words()
    if len(olds) != len(news):
        raise ValueError(
            f"{source.text!r} has {len(olds)} words and {target.text!r} {len(news)}: Replace swaps words one for one; "
            "use Refine"
        )
    pairs = [(one[1], other[1]) for one, other in zip(olds, news, strict=True) if one[0] != other[0]]
    return [pair for pair in pairs if max(pair[0][-1], pair[1][-1]) < source.room]  # not what is cut off


def _block(olds: int, news: int) -> Tensor:
    """Between the tokens of a word and those of the word that takes its place."""
    return torch.eye(olds, dtype=torch.float64) if olds == news else torch.full((olds, news), 1 / news).double()


def refinement(source: Tokens, target: Tokens) -> tuple[Tensor, Tensor]:
    """For every token of a refined prompt its counterpart in the source, int64 [room], and 1 or 0 if it has one.

    Tokens are aligned by Needleman and Wunsch: a match counts 1, a mismatch −1, a gap nothing. Padding behind the
    prompt corresponds to itself.
    """
    length = len(target.ids)
    counterpart, known = torch.arange(target.room), torch.ones(target.room, dtype=torch.float64)
    counterpart[:length] = torch.tensor(_aligned(source.ids, target.ids))[: target.room]
    known[counterpart < 0] = 0
    return counterpart.clamp(min=0), known


def _aligned(olds: Sequence[int], news: Sequence[int]) -> list[int]:
    """For every new token the place of its old one, or -1; of equal alignments the one that skips new tokens last."""
    score = [[0] * (len(news) + 1) for _ in range(len(olds) + 1)]
    for i, old in enumerate(olds, 1):
        for j, new in enumerate(news, 1):
            diagonal = score[i - 1][j - 1] + (1 if old == new else -1)
            score[i][j] = max(score[i][j - 1], score[i - 1][j], diagonal)
    found = [-1] * len(news)
    i, j = len(olds), len(news)
    while i > 0 and j > 0:
        if score[i][j] == score[i][j - 1]:
            j -= 1
        elif score[i][j] == score[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            found[j] = i
    return found
