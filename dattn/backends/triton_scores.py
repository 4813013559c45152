"""Block scores by our own kernels: what ``dattn.scores`` says of queries and keys, and no logit is written out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from dattn.backends.triton_lists import blocks_of
from dattn.kernels.antidiagonal import antidiagonal_scores
from dattn.kernels.arguments import Lists, Sets, Visits, Walk
from dattn.kernels.block_weights import weights_of_blocks
from dattn.kernels.launch import block_sparse
from dattn.orders import Partition

ONE = Sets(1, 1)


def antidiagonals(query: Tensor, key: Tensor, partition: Partition, stride: int, factor: float) -> Tensor:
    """See ``dattn.scores.Antidiagonal``, for regions that are one block each.

    Args:
        query, key: [batch, heads, visual, head_dim] in the partition's order.
        stride: a power of two up to the block size.
        factor: logits are multiplied by it.

    Returns:
        float32 [batch, heads, blocks, blocks].
    """
    blocks = blocks_of(partition.blocks.int()[None], query.shape[2])
    query, key = query.detach(), key.detach()
    scores = antidiagonal_scores(query, key, blocks, blocks, ONE, None, partition.block_size, stride, factor)
    return scores / -(-partition.blocks // stride)[:, None]


def true_weights(query: Tensor, key: Tensor, partition: Partition, largest: bool, factor: float) -> Tensor:
    """The largest or the summed weight of every block of queries and region of keys; arguments as above.

    Returns:
        float32 [batch, heads, blocks, regions], rows not yet divided by their sums.
    """
    query, key = query.detach(), key.detach()
    size, scale, count = partition.block_size, factor * query.shape[-1] ** -0.5, len(partition.blocks)
    blocks = blocks_of(partition.blocks.int()[None], query.shape[2])
    every = torch.arange(count, dtype=torch.int32, device=query.device).repeat(count)[None]
    ends = torch.arange(0, count * count + 1, count, dtype=torch.int32, device=query.device)[None]
    lists = Lists(ends, every, None, count, count * count)
    visits = Visits(blocks, blocks, lists, None, None, ONE)
    walk = Walk(visits, None, (None, None), None, None, size, True, False, scale)
    _, lse = block_sparse(query, key, key, walk)  # whatever the values are
    found = weights_of_blocks(query, key, lse, visits, lists, None, size, True, scale)[0 if largest else 1]
    weights = found.unflatten(2, (count, count))
    if not largest:
        return weights @ one_hot(partition.region, len(partition.lengths)).to(weights)
    regions = weights.new_zeros(*weights.shape[:3], len(partition.lengths))
    return regions.scatter_reduce_(3, partition.region.expand_as(weights), weights, "amax")
