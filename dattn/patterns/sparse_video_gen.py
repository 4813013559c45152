"""Sparse VideoGen: every head looks either around itself in the frame or at its own place over time.

SVG (Xi et al., ICML 2025, arXiv 2502.01776). Both masks are a band of blocks around the diagonal and the first tokens,
as many as a frame has: *spatial* in raster order, so that the band spans frames nearby; *temporal* in patch-major
order, so that it spans all frames at places nearby. For a number of sampled queries the exact output is compared with
that under either mask, and the head takes the one with the smaller squared error. The band is as wide as makes

    density · N² = 2 N · text + N · frame + N² - (N - w)²                        (N visual tokens, w the band's reach)

rounded to blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from dattn.attention import masks_in
from dattn.block_mask import BlockMask, MaskCache, tail_run
from dattn.grid import Layout, TokenGrid, text_blocks
from dattn.orders import Partition, PatchMajor, Raster
from dattn.patterns.base import check_count
from dattn.patterns.dynamic import Dynamic, Given
from dattn.patterns.selected import check_block
from dattn.selection import check_share, to_lists, whole_blocks

CHUNK = 1 << 24  # logits of sampled queries held at a time


@dataclass(frozen=True)
class SparseVideoGen(Dynamic):
    """SVG: a spatial or a temporal band, head by head and call by call.

    For videos: of a single frame the first frame is all there is, so everything is computed, and of a few frames it is
    a good part.

    Args:
        density: computed ÷ all, the first frame's keys and the text included, as nearly as blocks allow; 1 is all.
        rows: queries that are sampled to decide.
        seed: of the sample; the same one for all heads.
        block_size: 16, 32, 64 or 128.
        tail: pool what is skipped: False, True (one key per block) or a run of 16 … block size tokens.

    Raises:
        ValueError: a field outside these bounds.
    """

    density: float = 0.3
    rows: int = 64
    seed: int = 0
    block_size: int = 128
    tail: bool | int = False

    def __post_init__(self) -> None:
        check_share("density", self.density)
        check_count("rows", self.rows)
        check_block(self.block_size, self.tail)

    def build(self, given: Given) -> BlockMask:
        """See ``Dynamic.build``; without values, as in ``mask_for``, the weight that a mask misses decides."""
        masks, grid = masks_in(given.state), given.grid
        orders = (Raster(), PatchMajor())
        both = [o.partition(given.query, given.key, grid, self.block_size, masks) for o in orders]
        band = self.band(grid).to(given.query.device)
        errors = self.errors(given, [self._allowed(part, band) for part in both])
        temporal = errors[1] < errors[0]
        layout, other = (part.layouts[0] for part in both)
        order = torch.where(temporal[..., None], other.order, layout.order)
        before, after = text_blocks(grid, self.block_size)
        kept = pad(band, (before, after, before, after), value=True).expand(*temporal.shape, -1, -1)
        run = tail_run(self.tail, self.block_size)
        layout = Layout(order, layout.lengths, layout.pooled)
        return whole_blocks(layout, layout, to_lists(kept), self.block_size, run)

    def band(self, grid: TokenGrid) -> Tensor:
        """bool [visual blocks, visual blocks] in either order."""
        visual, frame, text = grid.visual, grid.height * grid.width, grid.tokens - grid.visual
        share = 1.0 if self.density == 1 else self.density - (2 * text + frame) / visual
        reach = visual * (1 - math.sqrt(1 - min(max(share, 0), 1)))
        block = torch.arange(math.ceil(visual / self.block_size))
        return ((block[:, None] - block).abs() <= round(reach / self.block_size)) | (block * self.block_size < frame)

    def _allowed(self, part: Partition, band: Tensor) -> Tensor:
        """bool [rows, tokens], raster order: what the sampled queries see."""
        grid = part.grid
        block = torch.arange(len(part.blocks), device=band.device).repeat_interleave(part.blocks)
        of_token = torch.empty_like(block)
        of_token[part.key] = block
        seen = band[of_token[self.sample(grid).to(band.device)]][:, of_token]
        return pad(seen, (grid.text_before, grid.text_after), value=True)

    def sample(self, grid: TokenGrid) -> Tensor:
        """int64 [rows]: the visual tokens that are sampled, ascending."""
        luck = torch.randperm(grid.visual, generator=torch.Generator().manual_seed(self.seed))
        return luck[: self.rows].sort().values

    def errors(self, given: Given, allowed: list[Tensor]) -> list[Tensor]:
        """For each mask [batch, heads]: the squared error of the sampled outputs, or the weight that is missed."""
        query, key = given.wide()
        rows = query[:, :, self.sample(given.grid).to(query.device) + given.grid.text_before] * query.shape[-1] ** -0.5
        step = max(1, CHUNK // (len(query) * rows.shape[2] * given.grid.tokens))
        parts: list[list[Tensor]] = [[] for _ in allowed]
        for first in range(0, query.shape[1], step):
            heads = slice(first, first + step)
            logits = rows[:, heads] @ key[:, heads].mT
            if given.key_mask is not None:
                logits = logits.masked_fill(~given.key_mask[:, None, None], torch.finfo(logits.dtype).min)
            weights = logits.softmax(-1)
            for part, seen in zip(parts, allowed, strict=True):
                kept = weights * seen
                mass = kept.sum(-1, keepdim=True)
                if given.value is None:
                    part.append((1 - mass).sum((-1, -2)))
                else:
                    missed = (weights - kept / mass.clamp_min(1e-30)) @ given.value[:, heads].to(weights.dtype)
                    part.append(missed.square().sum((-1, -2)))
        return [torch.cat(part, 1) for part in parts]

    def cost(self, grid: TokenGrid, head_dim: int, masks: MaskCache) -> float:
        """The density of the band."""
        return self.band(grid).double().mean().item()
