"""Replace: swap words of a prompt and keep the picture's layout."""

from __future__ import annotations

import torch
from torch import Tensor

from dattn.control.alignment import replacement
from dattn.control.from_source import FromSource
from dattn.control.words import Tokens


class Replace(FromSource):
    """Word swap of Prompt-to-Prompt: ``pipe(["a red circle", "a blue circle"], …)``.

    Every prompt after the first has as many words as the first; see ``FromSource`` for the arguments.
    """

    def correspondence(self, source: Tokens, target: Tokens) -> tuple[Tensor, Tensor]:
        """The map of the source, its columns carried over to the words that take their places."""
        return replacement(source, target), torch.zeros(target.room, dtype=torch.float64)
