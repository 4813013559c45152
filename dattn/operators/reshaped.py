"""Reshaped attention: what a mask skips is remembered from the last dense step, and its weight with it.

Re-ttention (Chen et al., NeurIPS 2025, arXiv 2505.22918), over any static pattern. At a refresh, with S what the
pattern keeps and LSE the log-sums of exponentials,

    ρ = exp(LSE_S - LSE_full)        R = O_full - ρ · O_S        (what the skipped tokens contributed)

and at the k-th step after it, for a growth of λ,

    O = (ρ + k λ) · O_S + R

``residual`` says what is kept for R: "full", the tensor itself; "pooled", its mean over every query block; "none", no R
at all; "cached", O_full - O_S instead, to which O_S is added with ρ = 1 (the window residual of DiTFastAttn, Yuan et
al., NeurIPS 2024, arXiv 2406.08552).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from dattn.attention import attend, masks_in
from dattn.block_mask import BlockMask, MaskCache
from dattn.grid import TokenGrid
from dattn.heads import head_groups
from dattn.operators.per_head import cost_of
from dattn.patterns.base import Pattern
from dattn.patterns.dense import Dense
from dattn.spec import Call, OverPattern, Spec, State

RESIDUALS = ("full", "pooled", "cached", "none")
MEMORY = "reshaped"
NOTABLE = 0.1  # of the free memory: worth a warning before it is taken


@dataclass(frozen=True)
class Reshaped(OverPattern):
    """Re-ttention: a static pattern that is reshaped by what the last dense step said. For inference.

    Args:
        pattern: the static pattern.
        refresh: a dense step comes every so many steps; 1 makes all dense. The pattern stays as it was at the refresh.
        growth: λ, by which ρ grows with every step after a refresh.
        residual: "full" takes as much memory as the output of each layer, "pooled" a block-th of it, "none" none.

    Raises:
        ValueError: a field outside these bounds; more memory than the device has, when attention is computed.
    """

    refresh: int = 5
    growth: float = 0.04
    residual: str = "full"

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.refresh) is not int or self.refresh < 1:
            raise ValueError(f"refresh={self.refresh!r}: a dense step comes every 1 or more steps")
        if isinstance(self.growth, bool) or not isinstance(self.growth, int | float) or not 0 <= self.growth < math.inf:
            raise ValueError(f"growth={self.growth!r}: give a number of 0 or more")
        if self.residual not in RESIDUALS:
            raise ValueError(f"residual={self.residual!r}: choose one of {', '.join(RESIDUALS)}")

    def _takes(self, pattern: Spec) -> bool:
        """Whether attention over it has an LSE."""
        return pattern.fixed

    def keeping(self, layer: int, layers: int) -> int:
        """One, where there are steps between the dense ones."""
        return int(self.refresh > 1)

    def compute(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """Dense where a refresh is due, the reshaped pattern elsewhere.

        Raises:
            ValueError: too little memory for the residual.
            RuntimeError: a gradient is asked for.
        """
        if torch.is_grad_enabled() and any(t.requires_grad for t in call[:3]):
            raise RuntimeError(
                "Reshaped keeps tensors of earlier steps and has no gradient: run under torch.no_grad(), or train with "
                f"{self.pattern.name} itself"
            )
        kept = call.state.get(MEMORY)
        if kept is None or kept.age + 1 >= self.refresh or not kept.serves(self, call):
            return self._refresh(call)
        kept.age, kept.step = kept.age + 1, call.state.get("step")
        output, lse = _part(call, kept.pattern)
        if kept.share is None:
            return output + kept.rest(output.dtype), None
        share = kept.share + self.growth * kept.age
        lse = torch.where(lse == -torch.inf, lse, lse - share.log())
        return _scaled(output, share) + kept.rest(output.dtype), lse

    def _refresh(self, call: Call) -> tuple[Tensor, Tensor]:
        """A dense step, and what it leaves behind."""
        before = call.state.pop(MEMORY, None)  # or both would be held
        if self.refresh == 1:
            return _part(call, Dense())
        if before is None or before.shape != call.query.shape:
            self._check_memory(call)
        del before
        full, lse_full = _part(call, Dense())
        output, lse = _part(call, self.pattern)
        share = None if self.residual == "cached" else (lse - lse_full).exp().nan_to_num(0)
        rest: Tensor | None = full - (output if share is None else _scaled(output, share))
        blocks = None
        if self.residual == "pooled" and rest is not None:
            mask = masks_in(call.state).get(self.pattern, call.grid, call.query.device)
            blocks = _block_of(mask, call.query.shape[1])
            rest = _means(rest, blocks)
        kept = None if self.residual == "none" else rest
        call.state[MEMORY] = _Kept(
            self.pattern, self._terms, call.grid, call.query.shape, share, kept, blocks, call.state.get("step")
        )
        return full, lse_full

    @property
    def _terms(self) -> tuple[int, float, str]:
        """What must be the same for a residual to go on serving."""
        return self.refresh, self.growth, self.residual

    def memory(self, grid: TokenGrid, batch: int, heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """Bytes that one layer keeps for one guidance branch."""
        size = cast(Pattern, self.pattern).mask(grid).block_size if self.residual == "pooled" else 1
        return self._bytes((batch, heads, grid.tokens, head_dim), dtype, size)

    def _bytes(self, shape: tuple[int, ...], dtype: torch.dtype, block_size: int) -> int:
        rows = math.prod(shape[:3])
        shares = 0 if self.residual == "cached" else rows * torch.promote_types(dtype, torch.float32).itemsize
        whole = 0 if self.residual == "none" else rows * shape[3] * dtype.itemsize
        return shares + whole // block_size

    def _check_memory(self, call: Call) -> None:
        """Say what all layers together will keep; raise where the last would not get its share."""
        query, state, block_size = call.query, call.state, 1
        if self.residual == "pooled":
            block_size = masks_in(state).get(self.pattern, call.grid, query.device).block_size
        each = self._bytes(query.shape, query.dtype, block_size)
        (number, parts), free = state.get("sharing", (0, 1)), free_memory(query.device)
        size = (
            f"Reshaped(residual={self.residual!r}) keeps {each / 1e9:.2f} GB in each of {parts:g} layers for one branch"
        )
        if each * (parts - number) > free:
            raise ValueError(
                f"{size}, and {query.device} has {free / 1e9:.2f} GB left: use residual='pooled' or 'none', or fewer "
                "layers with layers="
            )
        if each * parts > free * NOTABLE:
            warnings.warn(f"dattn: {size}", stacklevel=2)  # the same words in every layer: shown once

    def held(self, state: State) -> int:
        """Bytes of what the last refresh left behind."""
        kept = state.get(MEMORY)
        return 0 if kept is None else sum(t.nbytes for t in (kept.share, kept.residual) if t is not None)

    def cost(self, grid: TokenGrid, head_dim: int, masks: MaskCache) -> float:
        """The pattern at every step, and a dense one every ``refresh`` steps."""
        return 1.0 if self.refresh == 1 else cost_of(self.pattern, grid, head_dim, masks) + 1 / self.refresh


@dataclass(eq=False)
class _Kept:
    """What a refresh leaves behind, for a pattern, a grid and a shape of queries.

    Attributes:
        share: ρ, [batch, heads, tokens]; None where it is 1.
        residual: [batch, heads, tokens or blocks, head_dim]; None where there is none.
        blocks: int64 [heads, tokens], each token's block, where the residual is pooled.
        step: the denoising step that it served last; None where there are no steps.
        age: steps since the refresh.
    """

    pattern: Spec
    terms: tuple[int, float, str]
    grid: TokenGrid
    shape: torch.Size
    share: Tensor | None
    residual: Tensor | None
    blocks: Tensor | None
    step: int | None
    age: int = 0

    def serves(self, operator: Reshaped, call: Call) -> bool:
        """Whether this is the next step of what it was left behind for."""
        step = call.state.get("step")
        next_ = step is None or self.step is None or step == self.step + 1
        return next_ and operator._terms == self.terms and call.query.shape == self.shape and call.grid == self.grid

    def rest(self, dtype: torch.dtype) -> Tensor | float:
        """R, [batch, heads, tokens, head_dim], or 0."""
        if self.residual is None or self.blocks is None:
            return 0.0 if self.residual is None else self.residual
        index = self.blocks[None, :, :, None].expand(self.shape)
        return self.residual.gather(2, index).to(dtype)


def _part(call: Call, pattern: Spec) -> Any:
    """Output and LSE of a pattern on a call."""
    state = {"masks": masks_in(call.state)}
    return attend(*call[:3], pattern, call.grid, state=state, return_lse=True, **call.options)


def _scaled(output: Tensor, share: Tensor) -> Tensor:
    return (output.to(share.dtype) * share[..., None]).to(output.dtype)


def _block_of(mask: BlockMask, heads: int) -> Tensor:
    """int64 [heads, tokens]: the query block of every token."""
    key = "query blocks", heads
    if key not in mask.derived:
        groups = enumerate(head_groups(heads, mask.groups))
        rows = [mask.query_blocks(group).expand(of.stop - of.start, -1) for group, of in groups]
        mask.derived[key] = rows[0] if len(rows) == 1 else torch.cat(rows)
    return mask.derived[key]


def _means(tokens: Tensor, blocks: Tensor) -> Tensor:
    """[batch, heads, blocks, head_dim]: the mean of the tokens of every block."""
    count = int(blocks.max()) + 1
    wide = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    sums = wide.new_zeros(*wide.shape[:2], count, wide.shape[-1])
    sums = sums.scatter_add(2, blocks[None, :, :, None].expand_as(wide), wide)
    sizes = wide.new_zeros(len(blocks), count).scatter_add(1, blocks, torch.ones_like(blocks, dtype=wide.dtype))
    return (sums / sizes.clamp_min(1)[None, :, :, None]).to(tokens.dtype)


def free_memory(device: torch.device) -> int:
    """Bytes that a device can still give."""
    if device.type == "cuda":
        return (
            torch.cuda.mem_get_info(device)[0]
            + torch.cuda.memory_reserved(device)
            - torch.cuda.memory_allocated(device)
        )
    import psutil

    return psutil.virtual_memory().available
