"""Launching the kernels: shapes in, grids and configurations out. Interpreted on a CPU under TRITON_INTERPRET=1."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from .arguments import Heads, Walk
from .backward import deltas, grad_key, grad_pool, grad_query
from .config import Config, Row, pick
from .forward import forward
from .options import launcher, like_model, options, padded_width, precision

INTERPRETED_ARCHITECTURE = 80
DELTAS = Config(64, 64, 4, 1)


@launcher
def block_sparse(query: Tensor, key: Tensor, value: Tensor, walk: Walk) -> tuple[Tensor, Tensor]:
    """Attention over block lists.

    Args:
        query, key, value: [batch, heads, tokens, head_dim], of one dtype: 16 or 32 bits; the query in raster order,
            key and value in kernel order.
        walk: who visits whom, and how.

    Returns:
        The output like ``query``, and the natural-log LSE, float32 [batch, heads, tokens]; in raster order.
    """
    batch, heads, tokens = query.shape[:3]
    out = like_model(query)
    lse = query.new_empty(query.shape[:3], dtype=torch.float32)
    config = configs(query, walk.size, walk.crowded).forward
    tensors = tuple(map(Heads.of, (query, key, value, out)))
    width = padded_width(query.shape[-1])
    described = [t.described(config.N, width) if config.descriptors else None for t in tensors[1:3]]
    forward[(walk.visits.own.number * (walk.size // config.M), batch * heads)](
        *tensors,
        *described,
        lse,
        walk.orders[0],
        walk.visits,
        walk.key_mask,
        walk.pool,
        walk.scale,
        heads,
        tokens,
        **options(config, query, walk.size, walk.ragged, walk.sparse),
    )
    return out, lse


@launcher
def block_sparse_gradients(
    query: Tensor, key: Tensor, value: Tensor, grad: Tensor, lse: Tensor, delta: Tensor, walk: Walk
) -> list[Tensor]:
    """Gradients of query, key, value (raster order) and, where there is a pool, of its keys and values.

    All tensors are in kernel order: query, key and value, the output's gradient, the LSE (+inf for rows that see
    nothing) and ``delta_of``.
    """
    batch, heads, tokens = query.shape[:3]
    _, query_config, key_config = configs(query, walk.size, walk.crowded)
    tensors = tuple(map(Heads.of, (query, key, value, grad)))
    grads = [like_model(t) for t in (query, key, value)]
    dq, dk, dv = map(Heads.of, grads)
    rest = walk.scale, heads, tokens
    grad_query[(walk.visits.own.number * (walk.size // query_config.M), batch * heads)](
        *tensors, lse, delta, dq, walk.orders[0], walk.visits, walk.key_mask, walk.pool, *rest,
        **options(query_config, query, walk.size, walk.ragged, walk.sparse),
    )  # fmt: skip
    assert walk.turned is not None  # a backward pass has it
    settings = options(key_config, query, walk.size)
    grad_key[(walk.turned.own.number * (walk.size // key_config.N), batch * heads)](
        *tensors, lse, delta, dk, dv, walk.orders[1], walk.turned, walk.key_mask, *rest, **settings
    )
    if walk.pool is not None:
        pooled = [torch.empty_like(t.data) for t in (walk.pool.key, walk.pool.value)]
        grad_pool[(triton.cdiv(walk.pool.number, key_config.N), batch * heads)](
            tensors[0],
            tensors[3],
            lse,
            delta,
            *map(Heads.of, pooled),
            walk.visits,
            walk.pool,
            *rest,
            **options(key_config, query, walk.size, sparse=walk.sparse),
        )
        grads += pooled
    return grads


@launcher
def delta_of(out: Tensor, grad: Tensor, grad_lse: Tensor) -> Tensor:
    """float32 [batch, heads, tokens]: sum(grad · out) - grad_lse, what the softmax's gradient subtracts."""
    batch, heads, tokens = out.shape[:3]
    delta = torch.empty_like(grad_lse, dtype=torch.float32, memory_format=torch.contiguous_format)
    deltas[(triton.cdiv(tokens, DELTAS.M), batch * heads)](
        Heads.of(out), Heads.of(grad), grad_lse.contiguous(), delta, heads, tokens, **options(DELTAS, out)
    )
    return delta


def configs(query: Tensor, size: int, crowded: bool = False) -> Row:
    """What ``pick`` gives for such queries and blocks of ``size`` slots, on their GPU."""
    architecture = INTERPRETED_ARCHITECTURE
    if query.is_cuda:
        major, minor = torch.cuda.get_device_capability(query.device)
        architecture = 10 * major + minor
    float32 = precision(query.dtype) if query.dtype == torch.float32 else None
    return pick(architecture, query.shape[-1], size, float32, crowded)
