"""Token merging: which visual tokens are averaged into which, shared by the operators that merge.

Bipartite soft matching (Bolya et al., ICLR 2023, arXiv 2210.09461; for diffusion: Bolya and Hoffman, 2023, arXiv
2303.17604). Every frame is cut into cells of s x s tokens; the middle token of a cell is a destination, the others are
sources. The sources that are most alike to a destination (cosine of their features) are averaged into it. s is the
smallest power of two that leaves enough sources; one token of every frame is always left. The choice follows from the
tokens alone: nothing is random.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dattn.block_mask import MaskCache
from dattn.grid import TokenGrid

CHUNK = 1 << 22  # similarities held at a time, per sample


@dataclass(frozen=True, eq=False)
class Merging:
    """Tokens and what became of them.

    Attributes:
        target: int64 [batch, tokens], the merged token that each token went into; text tokens stay alone.
        count: merged tokens in all.
    """

    target: Tensor
    count: int

    @classmethod
    @torch.no_grad()
    def of(cls, features: Tensor, grid: TokenGrid, ratio: float, masks: MaskCache) -> Merging:
        """Merge away ``ratio`` of the visual tokens by their features [batch, heads, tokens, head_dim]."""
        before, merged, device = grid.text_before, merged_away(grid, ratio), features.device
        cells: tuple[Tensor, Tensor] = masks.keep(
            (grid, merged, device), lambda: tuple(t.to(device) for t in sources_and_destinations(grid, merged))
        )
        sources, destinations = cells
        metric = normalize(features[:, :, before : before + grid.visual].float().mean(1), dim=-1)
        score, best = _best(metric[:, sources], metric[:, destinations])
        rank = score.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        lone, count = len(sources) - merged, grid.tokens - merged
        target = torch.empty(len(features), grid.tokens, dtype=torch.int64, device=device)
        target[:, before + sources] = torch.where(rank < merged, best + lone, rank - merged) + before
        target[:, before + destinations] = before + lone + torch.arange(len(destinations), device=device)
        target[:, :before] = torch.arange(before, device=device)
        target[:, before + grid.visual :] = torch.arange(count - grid.text_after, count, device=device)
        return cls(target, count)

    def merge(self, tokens: Tensor) -> Tensor:
        """Means of what goes together: [batch, heads, tokens, head_dim] -> [batch, heads, count, head_dim]."""
        wide = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        sums = wide.new_zeros(*wide.shape[:2], self.count, wide.shape[-1])
        sums = sums.scatter_add(2, self.target[:, None, :, None].expand_as(wide), wide)
        return (sums / self._sizes(wide.dtype)[:, None, :, None]).to(tokens.dtype)

    def unmerge(self, merged: Tensor) -> Tensor:
        """Every token gets what its merged token has: the inverse shape of ``merge``."""
        index = self.target[:, None, :, None].expand(-1, merged.shape[1], -1, merged.shape[-1])
        return merged.gather(2, index)

    def kept(self, key_mask: Tensor | None) -> Tensor | None:
        """bool [batch, count]: merged tokens of which something is kept."""
        if key_mask is None:
            return None
        some = torch.zeros(len(key_mask), self.count, device=key_mask.device)
        return some.scatter_add(1, self.target.expand(len(key_mask), -1), key_mask.float()) > 0

    def _sizes(self, dtype: torch.dtype) -> Tensor:
        """[batch, count]: tokens in each merged token."""
        ones = torch.ones_like(self.target, dtype=dtype)
        return torch.zeros(len(ones), self.count, dtype=dtype, device=ones.device).scatter_add(1, self.target, ones)


def merged_away(grid: TokenGrid, ratio: float) -> int:
    """How many visual tokens are merged into others; one of every frame is always left."""
    return min(int(grid.visual * ratio), grid.visual - grid.frames)


def sources_and_destinations(grid: TokenGrid, merged: int) -> tuple[Tensor, Tensor]:
    """int64, visual tokens: destinations are the middles of cells, which are as small as ``merged`` sources allow."""
    frames, height, width = grid.shape
    side = 2
    while True:
        rows, columns = (torch.arange(n) % side == min(side, n) // 2 for n in (height, width))
        chosen = (rows[:, None] & columns).flatten().repeat(frames)
        if grid.visual - int(chosen.sum()) >= merged:
            return (~chosen).nonzero().flatten(), chosen.nonzero().flatten()
        side *= 2


def _best(sources: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The highest similarity of each source, and with which target; chunk by chunk, no matrix of all pairs."""
    step = max(1, CHUNK // max(1, targets.shape[1]))
    parts = [(part @ targets.mT).max(-1) for part in sources.split(step, 1)]
    return torch.cat([p.values for p in parts], 1), torch.cat([p.indices for p in parts], 1)


def check_ratio(ratio: float) -> None:
    """Raise ``ValueError`` unless ``ratio`` is a share above 0 and below 1."""
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio < 1:
        raise ValueError(f"ratio={ratio!r}: the share of the tokens that is merged away, above 0 and below 1")
