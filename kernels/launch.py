"""Launching the kernels: shapes in, grids and configurations out. Interpreted on a CPU under TRITON_INTERPRET=1."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from .arguments import Heads, Pool, Visits
from .backward import deltas, grad_key, grad_pool, grad_query
from .config import Config, Row, pick
from .forward import forward
from .options import like_model, options, padded_width

INTERPRETED_ARCHITECTURE = 80
DELTAS = Config(64, 64, 4, 1)


def block_sparse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visits: Visits,
    order: Tensor | None,
    key_mask: Tensor | None,
    pool: Pool | None,
    size: int,
    ragged: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Attention over block lists.

    Args:
        query, key, value: [batch, heads, tokens, head_dim], of one dtype: 16 or 32 bits; the query in raster order,
            key and value in kernel order.
        visits: what every query block visits.
        order: int32 [sets, tokens], the raster position of each kernel position of the queries; None: the same.
        key_mask: uint8 [batch, groups, tokens] in kernel order, 0 for keys that nobody sees; or None.
        pool: pooled keys and values, or None.
        size: slots in a block; ``ragged`` says whether any block of keys holds fewer tokens.
        scale: factor of the logits.

    Returns:
        The output like ``query``, and the natural-log LSE, float32 [batch, heads, tokens]; in raster order.
    """
    batch, heads, tokens = query.shape[:3]
    out = like_model(query)
    lse = query.new_empty(query.shape[:3], dtype=torch.float32)
    config = _configs(query, size)[0]
    forward[(visits.own.number * (size // config.M), batch * heads)](
        *map(Heads.of, (query, key, value, out)),
        lse,
        order,
        visits,
        key_mask,
        pool,
        scale,
        heads,
        tokens,
        **options(config, query, size, ragged),
    )
    return out, lse


def block_sparse_gradients(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grad: Tensor,
    lse: Tensor,
    delta: Tensor,
    visits: Visits,
    turned: Visits,
    orders: tuple[Tensor | None, Tensor | None],
    key_mask: Tensor | None,
    pool: Pool | None,
    size: int,
    scale: float,
) -> list[Tensor]:
    """Gradients of query, key, value (raster order) and, where there is a pool, of its keys and values.

    Inputs as for ``block_sparse``, all in kernel order: the output's gradient, the LSE (+inf for rows that see
    nothing) and ``delta_of``. ``turned`` are the transposed lists, ``orders`` those of queries and keys.
    """
    batch, heads, tokens = query.shape[:3]
    _, config, key_config = _configs(query, size)
    tensors = tuple(map(Heads.of, (query, key, value, grad)))
    grads = [like_model(t) for t in (query, key, value)]
    dq, dk, dv = map(Heads.of, grads)
    grad_query[(visits.own.number * (size // config.M), batch * heads)](
        *tensors, lse, delta, dq, orders[0], visits, key_mask, pool, scale, heads, tokens,
        **options(config, query, size),  # keys past a ragged block's end are zeros and add nothing
    )  # fmt: skip
    settings = options(key_config, query, size)
    grad_key[(turned.own.number * (size // key_config.N), batch * heads)](
        *tensors, lse, delta, dk, dv, orders[1], turned, key_mask, scale, heads, tokens, **settings,
    )  # fmt: skip
    if pool is not None:
        pooled = [torch.empty_like(t.data) for t in (pool.key, pool.value)]
        grad_pool[(triton.cdiv(pool.number, key_config.N), batch * heads)](
            tensors[0], tensors[3], lse, delta, *map(Heads.of, pooled), visits, pool, scale, heads, tokens, **settings,
        )  # fmt: skip
        grads += pooled
    return grads


def delta_of(out: Tensor, grad: Tensor, grad_lse: Tensor) -> Tensor:
    """float32 [batch, heads, tokens]: sum(grad · out) - grad_lse, what the softmax's gradient subtracts."""
    batch, heads, tokens = out.shape[:3]
    delta = torch.empty_like(grad_lse, dtype=torch.float32, memory_format=torch.contiguous_format)
    deltas[(triton.cdiv(tokens, DELTAS.M), batch * heads)](
        Heads.of(out), Heads.of(grad), grad_lse.contiguous(), delta, heads, tokens, **options(DELTAS, out)
    )
    return delta


def _configs(query: Tensor, size: int) -> Row:
    architecture = INTERPRETED_ARCHITECTURE
    if query.is_cuda:
        major, minor = torch.cuda.get_device_capability(query.device)
        architecture = 10 * major + minor
    return pick(architecture, padded_width(query.shape[-1]), size, query.dtype != torch.float32)
