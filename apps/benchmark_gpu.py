"""``dattn bench gpu``: our Triton kernels beside PyTorch's dense attention and FlexAttention, in one run.

Every competitor is pinned: dense attention by cuDNN and by FlashAttention, and FlexAttention with the very same
block mask where its blocks can be ours (128 tokens, all but the last full, no tail). Times are medians of CUDA events;
ratios are taken inside the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from dattn.apps.table import table
from dattn.apps.timing import DEVICE, gpu_needed, milliseconds

if TYPE_CHECKING:
    from torch import Tensor

    from dattn.block_mask import BlockMask

Clock = Callable[..., float | None]
FLEX_BLOCK = 128  # FlexAttention's own block size; masks of other sizes, or of ragged blocks, are not its own
WHOLE, SKIPPED = -1, -2
VIDEO_PATTERNS = (
    "Radial()",
    "Radial(decay=0.2)",
    "Radial(tail=True)",
    "Neighborhood((9, 25, 40), stride=(3, 5, 8), tile=(3, 5, 8))",
    "Neighborhood((9, 21, 32))",
)
IMAGE_PATTERNS = ("Neighborhood((1, 80, 80), stride=(1, 16, 16), tile=(1, 8, 16))", "Neighborhood((1, 80, 80))")


@dataclass(frozen=True)
class Shape:
    """A model's attention: its grid and heads, fewer than the model's where memory asks for it."""

    name: str
    grid: tuple[int, int, int]
    heads: int

    @property
    def tokens(self) -> int:
        """How many there are."""
        return prod(self.grid)

    @property
    def patterns(self) -> tuple[str, ...]:
        """What is measured on it."""
        return IMAGE_PATTERNS if self.grid[0] == 1 else VIDEO_PATTERNS


SHAPES = (
    Shape("wan-480p", (21, 30, 52), 40),
    Shape("wan-720p", (21, 45, 80), 40),
    Shape("hunyuan", (30, 48, 80), 24),
    Shape("wan-720p-4x", (84, 45, 80), 4),
    Shape("flux-4k", (1, 256, 256), 24),
    Shape("flux-8k", (1, 512, 512), 4),
)


@dataclass(frozen=True)
class Timing:
    """One row. ``rate`` is TFLOP/s on the blocks that are visited, ``saved`` the speed-up over cuDNN x density."""

    shape: str
    pattern: str
    head_dim: int
    passes: str
    density: float
    ms: float
    rate: float
    order_ms: float | None
    cudnn_ms: float | None
    flash_ms: float | None
    flex_ms: float | None
    speedup: float | None
    saved: float | None
    over_flex: float | None


def gpu(options: Any, save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Time every shape, head dim and pattern; forward alone, then forward and backward.

    Raises:
        ValueError: there is no CUDA device.
    """
    gpu_needed("gpu")
    names = options.shapes or [shape.name for shape in SHAPES]
    rows: list[dict[str, Any]] = []
    for shape in (s for s in SHAPES if s.name in names):
        for head_dim in options.head_dims:
            for case in _cases(shape, head_dim, options.repeats):
                for text in shape.patterns:
                    rows.append(asdict(_timing(case, text)))
                    print(table(list(rows[-1]), [tuple(rows[-1].values())]), flush=True)
                    save({"attention": rows})
    return {"attention": rows}


@dataclass(frozen=True)
class Case:
    """What all patterns of a shape are measured on, and how long dense attention takes there."""

    shape: Shape
    head_dim: int
    backward: bool
    inputs: list[Tensor]
    clock: Clock
    dense: dict[str, float | None]
    repeats: int


def _cases(shape: Shape, head_dim: int, repeats: int) -> Iterator[Case]:
    """Forward alone, then forward and backward."""
    import torch

    layout = 1, shape.tokens, shape.heads, head_dim
    make = lambda: torch.randn(layout, device=DEVICE, dtype=torch.bfloat16).transpose(1, 2)  # as models hand over
    query, key, value, grad = (make() for _ in range(4))
    for backward in (False, True):
        inputs = [t.detach().requires_grad_(backward) for t in (query, key, value)]
        clock = _clock(inputs, grad if backward else None, repeats)
        times = {name: clock(dense(name), True) for name in ("cudnn", "flash")}
        yield Case(shape, head_dim, backward, inputs, clock, times, repeats)


def _timing(case: Case, text: str) -> Timing:
    import torch

    from dattn.grid import TokenGrid
    from dattn.registry import static_from_string

    grid = TokenGrid(*case.shape.grid)
    mask = static_from_string(text).mask(grid).to(DEVICE)
    sparse = _sparse(mask, case.head_dim)
    with torch.no_grad():
        sparse(*case.inputs)  # a failure of our own is no gap in the table: it ends the run
    ours, flex = case.clock(sparse), case.clock(flex_attention(mask), True)
    if ours is None:
        raise RuntimeError(f"{text} on {case.shape.name}: our own kernel failed, see the line above")
    flops = 4 * grid.tokens**2 * case.head_dim * case.shape.heads * mask.density * (3.5 if case.backward else 1)
    cudnn = case.dense["cudnn"]
    speedup = cudnn / ours if cudnn else None
    return Timing(
        shape=case.shape.name,
        pattern=text,
        head_dim=case.head_dim,
        passes="forward + backward" if case.backward else "forward",
        density=mask.density,
        ms=ours,
        rate=flops / ours / 1e9,
        order_ms=_order_milliseconds(mask, case.shape.heads, case.head_dim, case.repeats),
        cudnn_ms=cudnn,
        flash_ms=case.dense["flash"],
        flex_ms=flex,
        speedup=speedup,
        saved=speedup * mask.density if speedup else None,
        over_flex=flex / ours if flex else None,
    )


def _clock(inputs: list[Tensor], grad: Tensor | None, repeats: int) -> Clock:
    """Milliseconds of a call on the inputs, with its backward pass where there is a gradient."""
    import torch

    def clock(call: Any, may_fail: bool = False) -> float | None:
        def once() -> None:
            output = call(*inputs)
            if grad is not None:
                torch.autograd.grad(output, inputs, grad)

        return None if call is None else milliseconds(once, repeats, may_fail=may_fail)

    return clock


def dense(name: str) -> Any:
    """PyTorch's dense attention, pinned to one kernel."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    backend = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}[name]

    def call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel([backend]):
            return scaled_dot_product_attention(query, key, value)

    return call


def _sparse(mask: BlockMask, head_dim: int) -> Any:
    from dattn.backends import run
    from dattn.backends.problem import Problem

    return lambda query, key, value: run("triton", Problem(query, key, value, mask, head_dim**-0.5))[0]


def _order_milliseconds(mask: BlockMask, heads: int, head_dim: int, repeats: int) -> float | None:
    """What bringing key and value into kernel order costs; 0 where the order is the model's own."""
    import torch

    from dattn.backends.triton_lists import lists_of
    from dattn.kernels.reorder import in_order

    lists = lists_of(mask)
    order = lists.orders[1]
    if order is None:
        return 0.0
    shape = 1, order.shape[-1], heads, head_dim
    tensor = torch.empty(shape, device=DEVICE, dtype=torch.bfloat16).transpose(1, 2)
    return milliseconds(lambda: [in_order(tensor, order, lists.visits.sets) for _ in range(2)], repeats)


def flex_attention(mask: BlockMask, compiled: bool = True) -> Any:
    """FlexAttention with the same lists; None where its blocks cannot be ours.

    It takes tensors in kernel order and gives its output in it, so nothing of its time goes into orders.
    """
    import torch
    from torch.nn.attention import flex_attention as flex

    whole = bool((mask.key.lengths[..., :-1] == FLEX_BLOCK).all()) and mask.block_size == FLEX_BLOCK
    if mask.pools or not whole:
        return None
    table, rule = _flex_rule(mask)
    counts_and_indices = (*_flex_lists(table >= 0), *_flex_lists(table == WHOLE))
    tokens = mask.query.order.shape[-1]
    blocks = flex.BlockMask.from_kv_blocks(
        *counts_and_indices, BLOCK_SIZE=FLEX_BLOCK, mask_mod=rule, seq_lengths=(tokens, tokens)
    )
    call: Any = flex.flex_attention
    if compiled:
        torch._dynamo.reset()  # a mask is a program of its own, and only eight are kept
        call = torch.compile(flex.flex_attention, dynamic=False)
    return lambda query, key, value: call(query, key, value, block_mask=blocks)


def _flex_rule(mask: BlockMask) -> tuple[Tensor, Any]:
    """int32 [rows, columns] of tile numbers (or WHOLE, SKIPPED), and the element rule that reads it."""
    import torch

    rows, columns = mask.num_blocks
    kinds = torch.full((rows, columns), SKIPPED, dtype=torch.int32, device=DEVICE)
    kinds[mask.full.rows(0, 0, 0, rows, columns)] = WHOLE
    kinds[mask.partial.rows(0, 0, 0, rows, columns)] = mask.tile[0, 0]
    size = 1, FLEX_BLOCK, FLEX_BLOCK
    none, every = (make(size, dtype=torch.bool, device=DEVICE) for make in (torch.zeros, torch.ones))
    tiles = torch.cat([mask.unpacked_tiles(), none, every])  # SKIPPED and WHOLE count from the end

    def rule(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return tiles[kinds[query // FLEX_BLOCK, key // FLEX_BLOCK], query % FLEX_BLOCK, key % FLEX_BLOCK]

    return kinds, rule


def _flex_lists(visited: Tensor) -> tuple[Tensor, Tensor]:
    """Counts [1, 1, rows] and indices [1, 1, rows, columns] as FlexAttention has them."""
    order = visited.int().argsort(dim=-1, descending=True, stable=True)
    return visited.sum(-1).int()[None, None], order.int()[None, None]
