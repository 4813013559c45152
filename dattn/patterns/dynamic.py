"""What every dynamic pattern is: a block mask that also depends on the queries and keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dattn.attention import over
from dattn.block_mask import BlockMask
from dattn.grid import TokenGrid
from dattn.spec import VISITED, Call, Operator, State


@dataclass(frozen=True)
class Dynamic(Operator):
    """Base of dynamic patterns. A subclass is one small file: its fields and ``build``.

    Masks carry no gradient; attention over them does.
    """

    def mask_for(self, query: Tensor, key: Tensor, grid: TokenGrid, state: State | None = None) -> BlockMask:
        """The mask of these queries and keys.

        Args:
            query, key: [batch, heads, tokens, head_dim] in raster order; logits are their products over √head_dim.
            grid: where the tokens sit.
            state: of one denoising call, layer and guidance branch; None outside of any.

        Raises:
            ValueError: the pattern does not fit the grid.
        """
        return self._mask(query, key, None, grid, {} if state is None else state)

    def build(self, query: Tensor, key: Tensor, value: Tensor | None, grid: TokenGrid, state: State) -> BlockMask:
        """``mask_for`` of tensors in float32 or float64; with the values, where attention is computed with them."""
        raise NotImplementedError

    @torch.no_grad()
    def _mask(self, query: Tensor, key: Tensor, value: Tensor | None, grid: TokenGrid, state: State) -> BlockMask:
        wide = torch.promote_types(query.dtype, torch.float32)
        query, key = query.to(wide), key.to(wide)
        return self.build(query, key, None if value is None else value.to(wide), grid, state)

    def mask_in(self, call: Call) -> BlockMask:
        """The mask of a call: its scale counts, and its values may."""
        query, key, value, grid, state, scale = call[:6]
        usual = query.shape[-1] ** -0.5
        return self._mask(query if scale == usual else query * (scale / usual), key, value, grid, state)

    def compute(self, call: Call) -> tuple[Tensor, Tensor]:
        """Attention over the mask of this call."""
        mask = self.mask_in(call)
        call.state[VISITED] = mask.density, mask.tail_share
        return over(mask, call)
