"""Tails of an operator's own: what a mask skips, replaced by pooled keys that are merged with what it keeps.

Base of ``FirstOrder`` and ``SignificanceTail``; ``tail`` of a pattern is the plain mean, in the kernels themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dattn.attention import masked
from dattn.backends.pooling import run_slots
from dattn.block_mask import BlockMask, MaskCache, tail_run
from dattn.grid import TokenGrid
from dattn.heads import head_groups
from dattn.operators.per_head import cost_of
from dattn.operators.placed import Placed
from dattn.patterns.base import check_tail
from dattn.patterns.dynamic import Dynamic
from dattn.spec import VISITED, Call, OverPattern, Spec, State

CHUNK = 1 << 24  # logits of pooled keys held at a time


@dataclass(frozen=True)
class OwnTail(OverPattern):
    """A pattern with a tail of its own over what it skips. A subclass is one small file: its ``pool``.

    Args:
        pattern: static or dynamic, without a tail.
        tail: tokens of a run: True (a block), 16, 32, 64 or 128.

    Raises:
        ValueError: no such pattern, or one that has a tail; a tail that is not one of these.
    """

    tail: bool | int = True

    def __post_init__(self) -> None:
        check_tail(self.tail)
        for pattern in self.pattern.every if isinstance(self.pattern, Placed) else (self.pattern,):
            if not isinstance(pattern, Dynamic) and not (isinstance(pattern, Spec) and pattern.static):
                raise ValueError(f"pattern={pattern!r}: {self.name} works on a pattern, such as Radial()")
            if self.tail is False or getattr(pattern, "tail", False):
                raise ValueError(f"tail={self.tail!r} on {pattern}: give the tail here, and none to the pattern")
            if hasattr(pattern, "block_size"):
                tail_run(self.tail, pattern.block_size)

    def pool(self, runs: Runs, call: Call) -> Pooled:
        """The runs of a head group's keys and values, pooled; ``call`` holds its heads alone, in float32 at least."""
        raise NotImplementedError

    def extra(self, grid: TokenGrid, head_dim: int) -> float:
        """Work beyond pattern and pooled keys ÷ dense work."""
        return 0.0

    def compute(self, call: Call) -> tuple[Tensor, Tensor]:
        """The pattern, and the tail merged with it by their log-sums."""
        mask, output, lse = masked(self.pattern, call)
        if mask.tail:
            raise ValueError(f"{self.pattern} in {self.name}: it has a tail of its own; leave that out")
        if mask.repeats:
            raise ValueError(
                f"{self.pattern} in {self.name}: it sees single keys of skipped blocks, whose means have them too"
            )
        if not self.pattern.static:
            share = self._with_tail(mask).tail_share + self.extra(call.grid, call.query.shape[-1])
            call.state[VISITED] = mask.density, share
        samples = [self._merged(mask, *part) for part in _samples(mask, call, output, lse)]
        return torch.cat([out for out, _ in samples]).to(call.query.dtype), torch.cat([total for _, total in samples])

    def _merged(self, mask: BlockMask, row: int, call: Call, output: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
        """Output and LSE with the tail, of samples that share their lists: row ``row`` of the mask's."""
        outputs, sums = [], []
        for group, heads in enumerate(head_groups(call.query.shape[1], mask.groups)):
            q, k, v, kept, known = (t[:, heads].to(lse.dtype) for t in (*call[:3], output, lse))
            pooled = self.pool(self._runs(mask, row, group), call._replace(query=q, key=k, value=v))
            merged = [pooled.merge(q, kept, known, rows, call.scale) for rows in pooled.chunks(q)]
            outputs.append(torch.cat([out for out, _ in merged], 2))
            sums.append(torch.cat([total for _, total in merged], 2))
        return torch.cat(outputs, 1), torch.cat(sums, 1)

    def cost(self, grid: TokenGrid, head_dim: int, masks: MaskCache) -> float:
        """The pattern's, the pooled keys' where they are known before a call, and what there is beyond."""
        known = self.pattern.static
        pooled = self._with_tail(masks.get(self.pattern, grid, "cpu")).tail_share if known else 0.0
        return cost_of(self.pattern, grid, head_dim, masks) + pooled + self.extra(grid, head_dim)

    def held(self, state: State) -> int:
        """What the pattern keeps."""
        return self.pattern.held(state) if isinstance(self.pattern, Dynamic) else 0

    def _runs(self, mask: BlockMask, row: int, group: int) -> Runs:
        """The runs of a head group, kept with the mask."""
        key = "own tail", self.tail, row, group
        if key not in mask.derived:
            mask.derived[key] = Runs.of(self._with_tail(mask), row, group)
        return mask.derived[key]

    def _with_tail(self, mask: BlockMask) -> BlockMask:
        return replace(mask, tail=tail_run(self.tail, mask.block_size))


def _samples(mask: BlockMask, call: Call, output: Tensor, lse: Tensor) -> list[tuple[int, Call, Tensor, Tensor]]:
    """The samples one by one where each has lists of its own, else all together."""
    if len(mask.full.offsets) == 1:
        return [(0, call, output, lse)]
    parts = []
    for row in range(len(output)):
        one = slice(row, row + 1)
        kept = None if call.key_mask is None else call.key_mask[one]
        alone = call._replace(query=call.query[one], key=call.key[one], value=call.value[one], key_mask=kept)
        parts.append((row, alone, output[one], lse[one]))
    return parts


@dataclass(frozen=True, eq=False)
class Runs:
    """Which runs a head group has, and who skips them.

    Attributes:
        slots: int64 [visual key blocks, runs, run], raster positions, -1 where there is no token.
        skipped: bool [query blocks, all runs].
        block: int64 [tokens], the query block of every token.
    """

    slots: Tensor
    skipped: Tensor
    block: Tensor

    @classmethod
    def of(cls, mask: BlockMask, row: int, group: int) -> Runs:
        """Those of a mask with a tail."""
        slots = run_slots(mask, row, group, mask.tail)[mask.key.pooled]
        skipped = mask.pooled_rows(row, group, 0, mask.query.blocks)[-1][:, mask.key.pooled]
        return cls(slots, skipped.repeat_interleave(slots.shape[1], 1), mask.query_blocks(group, row))


@dataclass(frozen=True, eq=False)
class Pooled:
    """The runs of a head group, pooled.

    Attributes:
        runs: which they are.
        key, value: [batch, heads, runs, head_dim], one of each for every run.
        bias: [batch, heads or 1, 1, runs], added to the logits: ln n for plain means.
        slope: [batch, heads, head_dim, head_dim] or None; a query q adds s q H to every run's value.
    """

    runs: Runs
    key: Tensor
    value: Tensor
    bias: Tensor
    slope: Tensor | None = None

    def chunks(self, query: Tensor) -> list[slice]:
        """Runs of tokens whose logits are ``CHUNK`` numbers at most, or one token's."""
        tokens, step = query.shape[2], max(1, CHUNK // (query.shape[:2].numel() * max(1, self.key.shape[2])))
        return [slice(first, min(first + step, tokens)) for first in range(0, tokens, step)]

    def merge(self, query: Tensor, kept: Tensor, lse: Tensor, rows: slice, scale: float) -> tuple[Tensor, Tensor]:
        """Output and LSE of the tokens ``rows`` with their tail, from those without."""
        query, kept, lse = (t[:, :, rows] for t in (query, kept, lse))
        seen = self.runs.skipped[self.runs.block[rows]]
        logits = (query @ self.key.mT * scale + self.bias).masked_fill(~seen, -torch.inf)
        blind = (logits == -torch.inf).all(-1)
        sums = logits.masked_fill(blind[..., None], 0).logsumexp(-1).masked_fill(blind, -torch.inf)
        nothing = blind & (lse == -torch.inf)
        known = torch.logaddexp(lse.masked_fill(nothing, 0), sums.masked_fill(nothing, 0))
        total = known.masked_fill(nothing, -torch.inf)
        weights = (logits - known[..., None]).exp()
        share = weights.sum(-1, keepdim=True)
        tail = weights @ self.value
        if self.slope is not None:
            tail = tail + share * (scale * query @ self.slope)
        return (1 - share) * kept + tail, total
