"""Attention over a ring of processes, each of which keeps its queries and sees the keys of the others in turn.

Ring Attention (Liu et al., ICLR 2024, arXiv 2310.01889) with a block mask: keys and values go only to processes that
see any of them, and what a process has seen is merged by its log-sum-exp. The backward pass sends keys and values once
more, and their gradients back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from dattn.backends import Backend
from dattn.backends.problem import Problem
from dattn.block_mask import BlockMask
from dattn.token_parts import between


@dataclass(frozen=True, eq=False)
class Ring:
    """Who sees whom among the processes.

    Attributes:
        group: the processes.
        rank: this one.
        masks: between this one's queries and the keys of every process; None where it sees none of them.
        sees: ``sees[a][b]``, whether process a sees any key of process b.
    """

    group: Any
    rank: int
    masks: list[BlockMask | None]
    sees: list[list[bool]]

    @classmethod
    def of(cls, group: Any, mask: BlockMask, tokens: list[Tensor]) -> Ring:
        """For a mask of all tokens, and the raster positions that every process holds.

        Raises:
            ValueError: a mask with a tail or with levels.
        """
        dist.barrier(group)  # the first call of a group is for all: later some may have nothing to send
        rank, length = dist.get_rank(group), max(map(len, tokens))
        parts = [[between(mask, own, others, length) for others in tokens] for own in tokens]
        return cls(group, rank, parts[rank], [[part is not None for part in row] for row in parts])

    def hops(self) -> Iterator[tuple[int, int]]:
        """For every hop: whose keys come, and to whom ours go."""
        count = len(self.sees)
        yield from (((self.rank + hop) % count, (self.rank - hop) % count) for hop in range(count))

    def send(self, tensor: Tensor, to: int, come_from: int, sent: bool, received: bool) -> tuple[Tensor, list[Any]]:
        """Begin to send a tensor and to receive one like it; ``wait`` on the works before it is read."""
        like = torch.empty_like(tensor)
        if to == self.rank:
            return tensor, []
        peers = dist.get_process_group_ranks(self.group)
        ops = [dist.P2POp(dist.isend, tensor, peers[to], self.group)] if sent else []
        ops += [dist.P2POp(dist.irecv, like, peers[come_from], self.group)] if received else []
        return like, dist.batch_isend_irecv(ops) if ops else []

    def keys(self, own: Tensor) -> Iterator[tuple[int, BlockMask, Tensor]]:
        """Process by process whose keys are seen: its number, the mask, and what it sent like ``own``.

        The next ones are on their way while those at hand are used.
        """
        hops = list(self.hops())
        begin = lambda hop: self.send(own, hop[1], hop[0], self.sees[hop[1]][self.rank], self.sees[self.rank][hop[0]])
        coming = begin(hops[0])
        for number, (source, _) in enumerate(hops):
            tensor, works = coming
            _wait(works)
            if number + 1 < len(hops):
                coming = begin(hops[number + 1])
            mask = self.masks[source]
            if mask is not None:
                yield source, mask, tensor


def _wait(works: list[Any]) -> None:
    for work in works:
        work.wait()


def attend_ring(
    ring: Ring, backend: Backend, query: Tensor, key: Tensor, value: Tensor, scale: float, length: int
) -> Tensor:
    """[batch, heads, own tokens, head_dim] in and out; differentiable.

    ``length`` is that of the process that holds most tokens.
    """
    own = query.shape[2]
    filled = [pad(t, (0, 0, 0, length - own)).contiguous() for t in (query, key, value)]
    output: Tensor = _Ring.apply(*filled, ring, backend, scale)
    return output[:, :, :own]


class _Ring(torch.autograd.Function):
    """Forward and backward around the ring."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, ring: Ring, backend: Backend, scale: float
    ) -> Tensor:
        wide = torch.promote_types(query.dtype, torch.float32)
        output = torch.zeros_like(query, dtype=wide)
        lse = torch.full(query.shape[:3], -torch.inf, dtype=wide, device=query.device)
        for _, mask, (k, v) in ring.keys(torch.stack((key, value))):
            part, sums = backend.forward(Problem(query, k, v, mask, scale))
            total = torch.logaddexp(lse, sums.to(wide))
            share = (sums - total.masked_fill(total == -torch.inf, 0)).exp()[..., None]
            output, lse = torch.lerp(output, part.to(wide), share.to(wide)), total
        output = output.to(query.dtype)
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.ring, ctx.backend, ctx.scale = ring, backend, scale
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        ring: Ring = ctx.ring
        wide, nothing = lse.dtype, torch.zeros_like(lse)
        dq = torch.zeros_like(query, dtype=wide)
        found = {}
        for source, mask, (k, v) in ring.keys(torch.stack((key, value))):
            problem = Problem(query, k, v, mask, ctx.scale)
            part, *others = ctx.backend.backward(problem, output, lse, grads[0].contiguous(), nothing)
            dq += part
            found[source] = torch.stack(others).to(wide)
        dkv = found.get(ring.rank, torch.zeros((2, *key.shape), dtype=wide, device=key.device))
        for source, to in ring.hops():
            if source == ring.rank:
                continue
            sent = found.get(source, dkv)
            part, works = ring.send(sent, source, to, source in found, ring.sees[to][ring.rank])
            _wait(works)
            if ring.sees[to][ring.rank]:
                dkv = dkv + part
        dk, dv = dkv.to(key.dtype)
        return dq.to(query.dtype), dk, dv, None, None, None
