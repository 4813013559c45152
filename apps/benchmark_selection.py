"""``dattn bench selection``: what choosing blocks costs, beside dense attention on the same queries and keys."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from dattn.apps.benchmark_gpu import SHAPES, dense
from dattn.apps.table import table
from dattn.apps.timing import DEVICE, gpu_needed, milliseconds

if TYPE_CHECKING:
    from torch import Tensor

    from dattn.grid import TokenGrid
    from dattn.patterns import Dynamic

SHAPE = "wan-720p"
BLOCK = 128
KEPT = 0.2  # of the blocks, or of the estimated weight
PATTERNS = ("Selected(Pooled(), TopK(0.2))", "XAttention(16, 0.2)", "XAttention(8, 0.2)")


def selection(options: Any, save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Time scores and selection at 75 600 tokens and 40 heads.

    Raises:
        ValueError: there is no CUDA device.
    """
    import torch

    from dattn.grid import TokenGrid

    gpu_needed("selection")
    shape = next(s for s in SHAPES if s.name == SHAPE)
    rows: list[dict[str, Any]] = []
    for head_dim in options.head_dims:
        layout = 1, shape.tokens, shape.heads, head_dim
        query, key, value = (torch.randn(layout, device=DEVICE, dtype=torch.bfloat16).transpose(1, 2) for _ in range(3))
        whole = milliseconds(partial(dense("cudnn"), query, key, value), options.repeats, may_fail=True)
        for name, call in ways(query, key, TokenGrid(*shape.grid)).items():
            ms = milliseconds(call, options.repeats)
            share = ms / whole if ms and whole else None
            rows.append({"head_dim": head_dim, "selection": name, "ms": ms, "cudnn_ms": whole, "share": share})
        save({"selection": rows})
    print(table(list(rows[0]), [tuple(row.values()) for row in rows]))
    return {"selection": rows}


def ways(query: Tensor, key: Tensor, grid: TokenGrid) -> dict[str, Callable[[], object]]:
    """Every way of choosing key blocks for query blocks, from queries and keys to lists; then whole patterns."""
    import torch

    from dattn.kernels.antidiagonal import antidiagonal_scores
    from dattn.kernels.arguments import Blocks, Sets
    from dattn.kernels.pool import means
    from dattn.registry import pattern_from_string
    from dattn.selection import to_lists, top_k, top_p

    batch, _, tokens, dim = query.shape
    starts = torch.arange(0, tokens, BLOCK, dtype=torch.int32, device=query.device)[None]
    blocks, one = Blocks(starts, (tokens - starts).clamp_max(BLOCK), starts.shape[1], tokens), Sets(1, 1)
    weight = torch.ones(batch, 1, tokens, device=query.device) / BLOCK

    def by_means() -> object:
        q, k = (means(t, weight, blocks, one, BLOCK, BLOCK) for t in (query, key))
        scores = (q @ k.mT * dim**-0.5).float()
        return to_lists(top_k(scores, max(1, int(KEPT * blocks.number))))

    def by_antidiagonals(stride: int) -> object:
        scores = antidiagonal_scores(query, key, blocks, blocks, one, None, BLOCK, stride)
        return to_lists(top_p(scores, KEPT))

    patterns = {text: cast("Dynamic", pattern_from_string(text)) for text in PATTERNS}
    return {
        "block means, top-k": by_means,
        "antidiagonals of stride 16, top-p": lambda: by_antidiagonals(16),
        "antidiagonals of stride 8, top-p": lambda: by_antidiagonals(8),
    } | {text: partial(pattern.mask_for, query, key, grid) for text, pattern in patterns.items()}
