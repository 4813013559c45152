"""What every backend is given."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from dattn.block_mask import BlockMask


class Problem(NamedTuple):
    """Attention to compute; checked by then.

    Attributes:
        query, key, value: [batch, heads, tokens, head_dim] in raster order, of one dtype.
        mask: who sees whom.
        scale: factor of the logits.
        key_mask: bool [batch, tokens], False for keys that nobody sees; or None.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: BlockMask
    scale: float
    key_mask: Tensor | None = None
