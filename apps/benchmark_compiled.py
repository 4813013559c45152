"""``dattn bench compiled``: what the Triton kernels take of GPUs that need not be here, as their assembler says."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from dattn.apps.table import table

ARCHITECTURES = (80, 90, 100)
PATTERNS = ("Radial(block_size={block})", "Neighborhood((3, 9, 9), tile=({frames}, 8, 8), tail=16)")
GRID, TEXT = (5, 16, 16), 7  # nothing divides it: the last blocks are ragged


@dataclass(frozen=True)
class Compiled:
    """One kernel as it is launched. ``spilled`` is in bytes, ``wgmma`` counts Hopper's matrix instructions."""

    architecture: int
    dtype: str
    head_dim: int
    block: int
    pattern: str
    kernel: str
    queries: int
    keys: int
    warps: int
    stages: int
    registers: int
    spilled: int
    shared: int
    wgmma: int


def compiled(options: Any, save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Compile forward and backward pass for every architecture, head dim, block and dtype; print what they take.

    Raises:
        ValueError: the kernels are interpreted, so there is nothing to compile.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise ValueError("bench compiled: TRITON_INTERPRET=1 makes kernels plain Python; unset it")
    rows: list[dict[str, Any]] = []
    cases = product(ARCHITECTURES, options.dtypes, options.head_dims, options.blocks, PATTERNS)
    for architecture, dtype, head_dim, block, text in cases:
        pattern = text.format(block=block, frames=block // 64)
        new = [asdict(row) for row in _rows(architecture, dtype, head_dim, block, pattern)]
        print(table(list(new[0]), [tuple(row.values()) for row in new]), flush=True)
        rows += new
        save({"compiled": rows})
    return {"compiled": rows}


def _rows(architecture: int, dtype: str, head_dim: int, block: int, pattern: str) -> list[Compiled]:
    """Every kernel of both passes, once for each way in which it is compiled."""
    from dattn.kernels.ahead import compile_call, recorded

    with recorded(architecture) as calls:
        _attend(pattern, dtype, head_dim)
    rows = []
    for kernel, args, constants in calls:
        tile, warps, stages = constants["TILE"], constants["num_warps"], constants["num_stages"]
        usage = asdict(compile_call(kernel, args, constants, architecture))
        place = architecture, dtype, head_dim, block, pattern, kernel.__name__
        rows.append(Compiled(*place, tile.M, tile.N, warps, stages, **usage))
    return list(dict.fromkeys(rows))


def _attend(pattern: str, dtype: str, head_dim: int) -> None:
    """Forward and backward pass on tensors that lie in memory as models have them."""
    import torch

    from dattn.backends import run
    from dattn.backends.problem import Problem
    from dattn.grid import TokenGrid
    from dattn.registry import static_from_string

    grid = TokenGrid(*GRID, text=TEXT)
    make = lambda: torch.zeros(1, grid.tokens, 2, head_dim, dtype=getattr(torch, dtype)).transpose(1, 2)
    query, key, value = (make().requires_grad_() for _ in range(3))
    output, lse = run("triton", Problem(query, key, value, static_from_string(pattern).mask(grid), 1.0))
    torch.autograd.grad(output.sum() + lse.sum(), (query, key, value))
