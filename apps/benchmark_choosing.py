"""``dattn bench choosing``: what dynamic patterns take to look at queries and keys, beside dense attention on them."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Any

from dattn.apps.table import table
from dattn.apps.timing import seconds

if TYPE_CHECKING:
    from torch import Tensor

    from dattn.grid import TokenGrid
    from dattn.patterns import Dynamic

FRAME = (16, 16)  # tokens per frame
PATTERNS = (
    "Selected(Pooled(), TopK(0.2))",
    "Selected(Pooled(), TopK(0.2), Curve())",
    "MeanSim(0.2)",
    "Selected(Antidiagonal(16), TopK(0.2))",
    "Selected(Antidiagonal(8), TopK(0.2))",
    "Selected(Sampled(0.25), TopK(0.2))",
    "ProxyHeads(threshold=0.3)",
    "Routing((1, 8, 8), 0.2)",
    "VMoBA(share=0.2, votes=0.5)",
    "SparseVideoGen(0.2)",
    "Alike(0.2)",
    "Clustered(64, 128, top_p=0.2, first_steps=2)",
    "Pyramid((0.1, 0.25, 0.4, 0.75), by='blocks')",
    "Anchor(0.5, step=4)",
)


def choosing_defaults() -> dict[str, Any]:
    """What is looked at where nothing is named: on a GPU the attention of a clip of 81 frames at 720p."""
    import torch

    return {"tokens": [75_600], "heads": 40} if torch.cuda.is_available() else {}


def choosing(options: Any, save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Time masks and whole calls of attention: in float32 on one core of a CPU, in bfloat16 beside cuDNN on a GPU."""
    from dattn.apps.timing import one_thread

    with one_thread():
        return _choosing(options, save)


def _choosing(options: Any, save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    import torch
    from tqdm import tqdm

    from dattn.grid import TokenGrid

    dtypes = {"cpu": torch.float32, "cuda": torch.bfloat16}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows: list[dict[str, Any]] = []
    auto: list[dict[str, Any]] = []
    for tokens in options.tokens:
        grid = TokenGrid(max(1, tokens // (FRAME[0] * FRAME[1])), *FRAME)
        for head_dim in options.head_dims:
            torch.manual_seed(0)
            shape, dtype = (1, grid.tokens, options.heads, head_dim), dtypes[device]
            tensors = [torch.randn(shape, dtype=dtype, device=device).transpose(1, 2) for _ in range(3)]
            for text in tqdm(PATTERNS, desc=f"{grid.tokens} tokens", leave=False, disable=None):
                case = {"pattern": text, "tokens": grid.tokens, "head_dim": head_dim}
                rows.append(case | _row(text, grid, tensors, options.repeats))
                save({"choosing": rows, "device": device})
            auto.append({"tokens": grid.tokens, "head_dim": head_dim} | _auto(grid, tensors, options.repeats))
    for found in (rows, auto):
        print(table(list(found[0]), [tuple(row.values()) for row in found]))
    return {"choosing": rows, "auto": auto, "device": device}


def _row(text: str, grid: TokenGrid, tensors: list[Tensor], repeats: int) -> dict[str, Any]:
    """Dense attention, choosing and the whole call take turns; the shares are medians over the turns."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from dattn.apps.benchmark_gpu import dense
    from dattn.attention import attention
    from dattn.block_mask import MaskCache
    from dattn.registry import pattern_from_string

    pattern: Any = pattern_from_string(text).at(2, 3, 0, 1)  # the third layer, where VMoBA's regions are boxes
    chooser: Dynamic = pattern.fit(grid)[0]
    query, key, value = tensors
    stock = dense("cudnn") if query.is_cuda else scaled_dot_product_attention
    masks = MaskCache()  # what follows from the grid is worked out once, as under a handle
    calls: list[Callable[[], object]] = [
        lambda: stock(query, key, value),
        lambda: chooser.mask_for(query, key, grid, {"masks": masks}),
        lambda: attention(query, key, value, chooser, grid),
    ]
    with torch.no_grad():
        for call in calls:
            call()
        turns = [[seconds(call, query)[1] for call in calls] for _ in range(repeats)]
    mask = chooser.mask_for(query, key, grid)
    return {
        "density": mask.density,
        "means": mask.tail_share,
        "dense_s": median(turn[0] for turn in turns),
        "choosing": median(turn[1] / turn[0] for turn in turns),
        "whole call": median(turn[2] / turn[0] for turn in turns),
    }


def _auto(grid: TokenGrid, tensors: list[Tensor], repeats: int) -> dict[str, float]:
    """What ``"auto"`` adds to a layer in its last dense step, over a dense call, where no pattern comes near."""
    import torch

    from dattn.attention import attend
    from dattn.block_mask import MaskCache
    from dattn.patterns import Dense, Radial
    from dattn.spec import Call, State
    from dattn.tuning.auto import Looking, observed

    state: State = {"masks": MaskCache()}
    query, key, value = tensors
    call = Call(query, key, value, grid, state, query.shape[-1] ** -0.5, None, "auto")
    looking: Any = Looking(observed(Radial(block_size=64), video=True)).fit(grid)[0]
    with torch.no_grad():
        looking.compute(call)
        turns = [
            (
                seconds(lambda: attend(query, key, value, Dense(), grid, state=state), query)[1],
                seconds(lambda: looking.compute(call), query)[1],
            )
            for _ in range(repeats)
        ]
    return {"a look": median(looked / dense - 1 for dense, looked in turns)}
