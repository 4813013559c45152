"""What every dynamic pattern is: a block mask that also depends on the queries and keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dattn.attention import check_inputs, over
from dattn.backends import choose
from dattn.block_mask import BlockMask
from dattn.grid import TokenGrid
from dattn.spec import VISITED, Call, Operator, State
from dattn.sums import wide


class Given(NamedTuple):
    """What there is to look at.

    Attributes:
        query, key: [batch, heads, tokens, head_dim] in raster order, as they come.
        grid: where the tokens sit.
        state: of a denoising call, layer and guidance branch; empty outside of any.
        factor: logits are the products of queries and keys over √head_dim, times this.
        value: like the key; None where a mask is asked for without attention.
        key_mask: bool [batch, tokens], False for keys that nobody sees; or None.
        backend: what attention is asked to run on.
    """

    query: Tensor
    key: Tensor
    grid: TokenGrid
    state: State
    factor: float = 1.0
    value: Tensor | None = None
    key_mask: Tensor | None = None
    backend: str = "auto"

    @property
    def terms(self) -> tuple[Any, ...]:
        """What has to be the same for a choice to serve again."""
        return self.grid, self.query.shape, self.query.dtype, self.query.device

    def seen_keys(self) -> Tensor:
        """The keys; those that nobody sees are 0, whatever they hold."""
        return self.key if self.key_mask is None else self.key.masked_fill(~self.key_mask[:, None, :, None], 0)

    def wide(self) -> tuple[Tensor, Tensor]:
        """Queries, with the factor, and ``seen_keys`` in float32 or float64."""
        query = wide(self.query)
        return query if self.factor == 1 else query * self.factor, wide(self.seen_keys())

    @property
    def kernels(self) -> bool:
        """See ``Sides.kernels``."""
        query = self.query
        chosen = choose(self.backend, query.device, query.dtype, query.shape[-1]).name
        return chosen == "triton" and query.element_size() == 2


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
            ValueError: queries and keys that differ in shape, or have other tokens than the grid; a pattern that does
                not fit it.
        """
        check_inputs(query, key, key, self, grid, None)
        return self._mask(Given(query, key, grid, {} if state is None else state))

    def build(self, given: Given) -> BlockMask:
        """``mask_for``, or the mask of a call."""
        raise NotImplementedError

    @torch.no_grad()
    def _mask(self, given: Given) -> BlockMask:
        return self.build(given)

    def mask_in(self, call: Call) -> BlockMask:
        """The mask of a call: its scale and its key mask count, and its values may."""
        query, key, value, grid, state, scale, key_mask, backend = call
        return self._mask(Given(query, key, grid, state, scale * query.shape[-1] ** 0.5, value, key_mask, backend))

    def compute(self, call: Call) -> tuple[Tensor, Tensor]:
        """Attention over the mask of this call."""
        mask = self.mask_in(call)
        call.state[VISITED] = mask.density, mask.tail_share
        return over(mask, call)
