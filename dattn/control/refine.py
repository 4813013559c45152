"""Refine: add words to a prompt and keep the picture's layout."""

from __future__ import annotations

import torch
from torch import Tensor

from dattn.control.alignment import refinement
from dattn.control.from_source import FromSource
from dattn.control.words import Tokens


class Refine(FromSource):
    """Prompt refinement of Prompt-to-Prompt: ``pipe(["a circle", "a big red circle"], …)``.

    Words that both prompts share follow the source, new ones have the attention of their own prompt; see
    ``FromSource`` for the arguments.
    """

    def correspondence(self, source: Tokens, target: Tokens) -> tuple[Tensor, Tensor]:
        """Columns of the source for known tokens, own ones for the others."""
        counterpart, known = refinement(source, target)
        fold = torch.zeros(target.room, target.room, dtype=torch.float64)
        fold[counterpart, torch.arange(target.room)] = known
        return fold, 1 - known
