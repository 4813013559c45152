"""``dattn bench gpu``: our Triton kernels beside PyTorch's dense attention and FlexAttention, in one run.

Every competitor is pinned: dense attention by cuDNN and by FlashAttention, and FlexAttention with the very same
block mask wherever that has no tail. Times are medians of CUDA events; ratios are taken inside the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

from dattn.apps.benchmark_flex import flex_attention
from dattn.apps.table import table
from dattn.apps.timing import DEVICE, gpu_needed, milliseconds

if TYPE_CHECKING:
    from torch import Tensor

    from dattn.block_mask import BlockMask

Clock = Callable[..., float | None]
VIDEO_PATTERNS = (
    "Radial()",
    "Radial(decay=0.2)",
    "Radial(tail=True)",
    "Neighborhood((9, 25, 40), stride=(3, 5, 8), tile=(3, 5, 8))",
    "Neighborhood((9, 21, 32))",
)
IMAGE_PATTERNS = ("Neighborhood((1, 80, 80), stride=(1, 8, 16), tile=(1, 8, 16))", "Neighborhood((1, 80, 80))")
BOTH = "forward + backward"
TARGETS = {"saved": 0.75, "backward_saved": 0.65, "over_flex": 1.25}  # of an H200
TARGET_DIM = 128


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
    """One row. ``rate`` is TFLOP/s on the blocks that are visited, ``saved`` the speed-up over cuDNN x density.

    ``flex_partial`` is the share of FlexAttention's blocks that it looks through element by element. The ``backward``
    ones are of both passes less the forward pass alone. ``target``: "met", or which of ``TARGETS`` are not.
    """

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
    flex_partial: float | None
    speedup: float | None
    saved: float | None
    over_flex: float | None
    backward_ms: float | None = None
    backward_speedup: float | None = None
    backward_saved: float | None = None
    target: str | None = None


def gpu(options: Any, save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Time every shape, head dim and pattern; forward alone, then forward and backward. A row that fails is noted.

    Raises:
        ValueError: there is no CUDA device.
    """
    gpu_needed("gpu")
    names = options.shapes or [shape.name for shape in SHAPES]
    rows: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    for shape in (s for s in SHAPES if s.name in names):
        for head_dim in options.head_dims:
            forward: dict[str, Timing] = {}
            for case in _cases(shape, head_dim, options.repeats):
                for text in options.patterns or shape.patterns:
                    try:
                        timing = _timing(case, text)
                    except Exception as error:  # an hour of rows is worth more than a trace
                        place = {"shape": shape.name, "pattern": text, "head_dim": head_dim, "passes": case.passes}
                        failed.append(place | {"error": f"{type(error).__name__}: {error}"})
                        continue
                    timing = against_targets(with_backward(timing, forward.setdefault(text, timing)))
                    rows.append(asdict(timing))
                    print(table(list(rows[-1]), [tuple(rows[-1].values())]), flush=True)
                    save({"attention": rows, "failed": failed})
    return {"attention": rows, "failed": failed}


def with_backward(both: Timing, forward: Timing) -> Timing:
    """The row of both passes with what the backward one takes; itself where the other is no row of the forward pass."""
    if both.passes == forward.passes:
        return both
    ms = both.ms - forward.ms
    cudnn = both.cudnn_ms - forward.cudnn_ms if both.cudnn_ms and forward.cudnn_ms else None
    speedup = cudnn / ms if cudnn else None
    saved = speedup * both.density if speedup else None
    return replace(both, backward_ms=ms, backward_speedup=speedup, backward_saved=saved)


def against_targets(row: Timing) -> Timing:
    """The row with what it misses of ``TARGETS``, where they ask for something and there is what to compare with."""
    asked = TARGETS.keys() - {"saved" if row.passes == BOTH else "backward_saved"}
    found = {name: getattr(row, name) for name in TARGETS if name in asked and getattr(row, name) is not None}
    missed = [f"{name} {value:.2f} < {TARGETS[name]}" for name, value in found.items() if value < TARGETS[name]]
    return replace(row, target=", ".join(missed) or "met") if found and row.head_dim == TARGET_DIM else row


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

    @property
    def passes(self) -> str:
        """What is timed, in words."""
        return BOTH if self.backward else "forward"


def _cases(shape: Shape, head_dim: int, repeats: int) -> Iterator[Case]:
    """Forward alone, then forward and backward."""
    for backward in (False, True):
        inputs, clock = _clock(shape, shape.tokens, head_dim, backward, repeats)
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
        sparse(*case.inputs)  # a failure of our own is no gap in the table
    ours, (flex, flex_partial) = case.clock(sparse), _flex(case, mask)
    if ours is None:
        raise RuntimeError(f"{text} on {case.shape.name}: our own kernel failed, see the line above")
    flops = 4 * grid.tokens**2 * case.head_dim * case.shape.heads * mask.density * (3.5 if case.backward else 1)
    cudnn = case.dense["cudnn"]
    speedup = cudnn / ours if cudnn else None
    return Timing(
        shape=case.shape.name,
        pattern=text,
        head_dim=case.head_dim,
        passes=case.passes,
        density=mask.density,
        ms=ours,
        rate=flops / ours / 1e9,
        order_ms=_order_milliseconds(mask, case.shape.heads, case.head_dim, case.repeats),
        cudnn_ms=cudnn,
        flash_ms=case.dense["flash"],
        flex_ms=flex,
        flex_partial=flex_partial,
        speedup=speedup,
        saved=speedup * mask.density if speedup else None,
        over_flex=flex / ours if flex else None,
    )


def _clock(shape: Shape, tokens: int, head_dim: int, backward: bool, repeats: int) -> tuple[list[Tensor], Clock]:
    """Random queries, keys and values, and milliseconds of a call on them, with its backward pass if wanted."""
    import torch

    layout = 1, tokens, shape.heads, head_dim
    make = lambda: torch.randn(layout, device=DEVICE, dtype=torch.bfloat16).transpose(1, 2)  # as models hand over
    inputs, grad = [make().requires_grad_(backward) for _ in range(3)], make() if backward else None

    def clock(call: Any, may_fail: bool = False) -> float | None:
        def once() -> None:
            output = call(*inputs)
            if grad is not None:
                torch.autograd.grad(output, inputs, grad)

        return milliseconds(once, repeats, may_fail=may_fail)

    return inputs, clock


def _flex(case: Case, mask: BlockMask) -> tuple[float | None, float | None]:
    """FlexAttention's milliseconds, on as many tokens as the blocks have slots, and its share of partial blocks.

    None where it has no equal.
    """
    flex = flex_attention(mask)
    if flex is None:
        return None, None
    _, clock = _clock(case.shape, len(flex.slots), case.head_dim, case.backward, case.repeats)
    return clock(flex, True), flex.partial


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
