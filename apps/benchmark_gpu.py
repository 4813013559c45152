"""``dattn bench gpu``: our Triton kernels beside PyTorch's dense attention and FlexAttention, in one run.

Every competitor is pinned: dense attention by cuDNN and by FlashAttention, and FlexAttention with the very same
block mask. Times are medians of CUDA events; ratios are taken inside the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from dattn.apps.table import table

if TYPE_CHECKING:
    from torch import Tensor

    from dattn.block_mask import BlockMask
    from dattn.grid import TokenGrid

FLEX_BLOCK = 128  # FlexAttention's own block size; masks of other sizes, or of ragged blocks, are not its own
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
    order_ms: float
    cudnn_ms: float | None
    flash_ms: float | None
    flex_ms: float | None
    speedup: float | None
    saved: float | None
    over_flex: float | None


def gpu(options: Any) -> dict[str, Any]:
    """Time every shape, head dim and pattern; forward alone, then forward and backward.

    Raises:
        ValueError: there is no CUDA device.
    """
    import torch

    if not torch.cuda.is_available():
        raise ValueError("bench gpu: needs a CUDA device, and there is none here; `dattn bench cpu` needs none")
    names = options.shapes or [shape.name for shape in SHAPES]
    rows = []
    for shape in (s for s in SHAPES if s.name in names):
        for head_dim in options.head_dims:
            for timing in _shape(shape, head_dim, options.repeats):
                rows.append(asdict(timing))
                print(table(list(rows[-1]), [tuple(rows[-1].values())]), flush=True)
    return {"attention": rows}


def _shape(shape: Shape, head_dim: int, repeats: int) -> Iterator[Timing]:
    import torch

    from dattn.grid import TokenGrid
    from dattn.patterns import pattern_from_string

    grid = TokenGrid(*shape.grid)
    layout = 1, grid.tokens, shape.heads, head_dim
    make = lambda: torch.randn(layout, device="cuda", dtype=torch.bfloat16).transpose(1, 2)  # as models hand over
    query, key, value, grad = (make() for _ in range(4))
    for backward in (False, True):
        inputs = [t.detach().requires_grad_(backward) for t in (query, key, value)]
        clock = lambda call, i=inputs, b=backward: _milliseconds(call, i, grad if b else None, repeats)
        dense = {name: clock(_dense(name)) for name in ("cudnn", "flash")}
        for text in shape.patterns:
            mask = pattern_from_string(text).mask(grid).to("cuda")
            yield _timing(shape, text, head_dim, grid, mask, clock, dense, inputs, backward)


def _timing(
    shape: Shape,
    text: str,
    head_dim: int,
    grid: TokenGrid,
    mask: BlockMask,
    clock: Callable[[Any], float | None],
    dense: dict[str, float | None],
    inputs: list[Tensor],
    backward: bool,
) -> Timing:
    import torch

    sparse = _sparse(mask, head_dim)
    with torch.no_grad():
        sparse(*inputs)  # a failure of our own is no gap in the table: it ends the run
    ours, flex = clock(sparse), clock(_flex(mask))
    if ours is None:
        raise RuntimeError(f"{text} on {shape.name}: our own kernel failed, see the line above")
    flops = 4 * grid.tokens**2 * head_dim * shape.heads * mask.density * (3.5 if backward else 1)
    cudnn = dense["cudnn"]
    speedup = cudnn / ours if cudnn else None
    return Timing(
        shape=shape.name,
        pattern=text,
        head_dim=head_dim,
        passes="forward + backward" if backward else "forward",
        density=mask.density,
        ms=ours,
        rate=flops / ours / 1e9,
        order_ms=_order_milliseconds(mask, shape.heads, head_dim),
        cudnn_ms=cudnn,
        flash_ms=dense["flash"],
        flex_ms=flex,
        speedup=speedup,
        saved=speedup * mask.density if speedup else None,
        over_flex=flex / ours if flex else None,
    )


def _milliseconds(call: Any, inputs: list[Tensor], grad: Tensor | None, repeats: int) -> float | None:
    """The median time of a call, with its backward pass where there is a gradient; None where it cannot run."""
    import torch

    if call is None:
        return None

    def once() -> None:
        output = call(*inputs)
        if grad is not None:
            torch.autograd.grad(output, inputs, grad)

    try:
        for _ in range(2):
            once()
        return median(_event_time(once) for _ in range(repeats))
    except (torch.OutOfMemoryError, RuntimeError) as error:
        print(f"left out: {str(error).splitlines()[0]}", flush=True)
        return None


def _event_time(call: Callable[[], object]) -> float:
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _dense(name: str) -> Any:
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


def _order_milliseconds(mask: BlockMask, heads: int, head_dim: int) -> float:
    """What bringing query, key and value into kernel order costs; 0 where the order is the model's own."""
    import torch

    from dattn.backends.triton_lists import lists_of

    order = lists_of(mask).orders[0]
    if order is None:
        return 0.0
    tensor = torch.empty(1, order.shape[-1], heads, head_dim, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
    move = lambda: [tensor.index_select(2, order[0]) for _ in range(3)]
    move()
    return median(_event_time(move) for _ in range(10))


def _flex(mask: BlockMask) -> Any:
    """FlexAttention with the same lists, in the same order; None where its blocks cannot be ours."""
    import torch
    from torch.nn.attention import flex_attention as flex

    whole = bool((mask.key.lengths == FLEX_BLOCK).all()) and mask.block_size == FLEX_BLOCK
    if mask.tail or not whole:
        return None
    rows, columns = mask.num_blocks
    table, rule = _flex_rule(mask, rows, columns)
    counts_and_indices = (*_flex_lists(table >= 0), *_flex_lists(table == -1))
    blocks = flex.BlockMask.from_kv_blocks(*counts_and_indices, BLOCK_SIZE=FLEX_BLOCK, mask_mod=rule)
    order = mask.query.order[0, 0]
    back = order.argsort()
    compiled = torch.compile(flex.flex_attention, dynamic=False)

    def call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (t.index_select(2, order) for t in (query, key, value))
        return compiled(q, k, v, block_mask=blocks).index_select(2, back)

    return call


def _flex_rule(mask: BlockMask, rows: int, columns: int) -> tuple[Tensor, Any]:
    """int32 [rows, columns] of tile numbers (-1 whole, -2 skipped), and the element rule that reads it."""
    import torch

    kinds = torch.full((rows, columns), -2, dtype=torch.int32, device="cuda")
    whole = mask.full.rows(0, 0, 0, rows, columns)
    kinds[whole] = -1
    kinds[mask.partial.rows(0, 0, 0, rows, columns)] = mask.tile[0, 0]
    tiles = mask.unpacked_tiles()

    def rule(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return tiles[kinds[query // FLEX_BLOCK, key // FLEX_BLOCK], query % FLEX_BLOCK, key % FLEX_BLOCK]

    return kinds, rule


def _flex_lists(visited: Tensor) -> tuple[Tensor, Tensor]:
    """Counts [1, 1, rows] and indices [1, 1, rows, columns] as FlexAttention has them."""
    order = visited.int().argsort(dim=-1, descending=True, stable=True)
    return visited.sum(-1).int()[None, None], order.int()[None, None]
