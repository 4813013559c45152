"""``dattn bench``: block-sparse attention beside dense attention, on a CPU; on a GPU in ``benchmark_*``."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from dattn.apps.arguments import Parser, at_least, writable_folder
from dattn.apps.benchmark_chart import chart
from dattn.apps.benchmark_choosing import choosing, choosing_defaults
from dattn.apps.benchmark_compiled import compiled
from dattn.apps.benchmark_cost import cost
from dattn.apps.benchmark_gpu import SHAPES, gpu
from dattn.apps.benchmark_model import CLIPS, PASSES, model
from dattn.apps.benchmark_selection import selection
from dattn.apps.benchmark_sweep import sweep, use_rows
from dattn.apps.benchmark_training import LENGTHS, training
from dattn.apps.record import provenance, write_json
from dattn.apps.table import table

if TYPE_CHECKING:
    from dattn.grid import TokenGrid
    from dattn.patterns import Pattern

EXAMPLES = """\
  dattn bench cpu                    attention on the CPU, and the time to build masks
  dattn bench memory                 the memory of a call (Linux)
  dattn bench choosing --tokens 8192 what dynamic patterns take to choose
  dattn bench compiled               registers and memory of the kernels, compiled for GPUs that need not be here
  dattn bench training --repeats 3   a training step of a LoRA on the demo model, at lengths
  dattn bench gpu                    our kernels beside cuDNN, FlashAttention and FlexAttention
  dattn bench selection              choosing blocks from queries and keys
  dattn bench model --repeats 2      a denoising and a training step of Wan 2.1 14B
  dattn bench cost --clips 720p      what tune expects of candidates' time in Wan 2.1 14B, and what they take
  dattn bench sweep --head-dims 128  the kernels' configurations, measured anew
  dattn bench gpu --quick --rows outputs/sweep.json
  dattn bench gpu --shapes wan-720p --output assets/benchmarks/gpu.json
  dattn bench memory --tokens 8192 16384 32768 65536
  dattn bench cpu --tokens 2048 8192 --dtypes float32 --output outputs/cpu.json"""
Save = Callable[[dict[str, Any]], None]
FRAME = (16, 16)  # tokens per frame: the benchmark's clips grow in time, as long videos do
PATTERNS = ("Radial()", "Neighborhood((6, 8, None), stride=(2, 8, 1), tile=(2, 8, 8))", "Neighborhood((5, 9, 9))")
DEFAULTS: dict[str, dict[str, Any]] = {"sweep": {"head_dims": [64, 128, 256], "blocks": [64, 128]}}
QUICK: dict[str, dict[str, Any]] = {
    "gpu": {
        "head_dims": [128],
        "shapes": ["wan-720p", "wan-720p-4x"],
        "patterns": ["Radial(decay=0.2)", "Neighborhood((9, 25, 40), stride=(3, 5, 8), tile=(3, 5, 8))"],
        "repeats": 3,
    },
    "selection": {"head_dims": [128], "repeats": 3},
    "choosing": {"head_dims": [128], "repeats": 3},
    "cost": {"layers": 2, "clips": ["480p"], "repeats": 1},
    "model": {"layers": 2, "clips": ["720p"], "repeats": 2},
    "sweep": {"head_dims": [128], "blocks": [128], "repeats": 3},
}
CALL_ROWS = (64, 128, 256, 512, 1024)
CALL_KEYS = 1024
GRIDS = {"21x45x80": (21, 45, 80), "84x45x80": (84, 45, 80)}
MASKS = ("Radial()", "Neighborhood((9, 25, 36), stride=(3, 5, 4))", "Neighborhood((9, 21, 32))")


@dataclass(frozen=True)
class Speed:
    """One row: ``efficiency`` is speed-up x block density, 1 where skipped work is saved in full."""

    pattern: str
    tokens: int
    head_dim: int
    dtype: str
    density: float
    elements: float
    dense_s: float
    sparse_s: float
    speedup: float
    efficiency: float
    element_efficiency: float


def main(argv: Sequence[str]) -> int:
    """Run ``dattn bench``; see ``--help``. 1 where a row failed."""
    options = _options(argv)
    if options.rows:
        use_rows(Path(options.rows))
    if options.output:
        writable_folder(Path(options.output).parent)

    def save(record: dict[str, Any]) -> None:
        """Written after every row: a long run that is stopped keeps what it has."""
        if options.output:
            heads = {"heads": options.heads} if options.what in ("cpu", "memory", "choosing") else {}
            settings = {"batch": 1, **heads, "repeats": options.repeats}
            Path(options.output).parent.mkdir(parents=True, exist_ok=True)
            write_json(Path(options.output), record | {"settings": settings} | provenance("bench", argv))
            if options.what == "gpu":
                chart(record["attention"], Path(options.output).with_suffix(".png"))

    record = BENCHMARKS[options.what](options, save)
    save(record)
    for failure in record.get("failed", []):
        print("failed:", *failure.values())
    return int(bool(record.get("failed")))


def _options(argv: Sequence[str]) -> Any:
    """What was asked for; the rest as the benchmark has it, or as its quick run has."""
    parser = _parser()
    asked = parser.parse_args(argv)
    if asked.quick and asked.what not in QUICK:
        parser.error(f"--quick: {', '.join(QUICK)} have a short run; name what {asked.what} is to measure")
    parser.set_defaults(**DEFAULTS.get(asked.what, {}))
    if asked.what == "choosing":
        parser.set_defaults(**choosing_defaults())
    if asked.quick:
        parser.set_defaults(**QUICK[asked.what])
    return parser.parse_args(argv)


def _cpu(options: Any, save: Save) -> dict[str, Any]:
    """Seconds to build masks, and dense against sparse attention."""
    from tqdm import tqdm

    print("building masks …")
    masks = [_mask_time(text, name) for name in GRIDS for text in MASKS]
    print(table(["pattern", "grid", "tokens", "density", "seconds"], [tuple(m.values()) for m in masks]))
    calls = [_call_rate(rows, head_dim, options) for head_dim in options.head_dims for rows in CALL_ROWS]
    head = ["rows of a call", "head_dim", "share of the dense rate", "with a mask"]
    print(table(head, [tuple(c.values()) for c in calls]))
    cases = list(_cases(options))
    speeds = [_speed(options, *case) for case in tqdm(cases, desc="attention", disable=None)]
    print(table(list(Speed.__dataclass_fields__), [tuple(asdict(s).values()) for s in speeds]))
    return {"masks": masks, "calls": calls, "attention": [asdict(s) for s in speeds]}


def _memory(options: Any, save: Save) -> dict[str, Any]:
    """Memory that a first call needs beyond its inputs, each in a process of its own: nothing is reused there."""
    spawn = multiprocessing.get_context("spawn")
    rows = []
    for text in options.patterns or PATTERNS:
        for tokens in options.tokens:
            with spawn.Pool(1) as pool:
                peak = pool.apply(peak_mib, (text, tokens, options.heads, options.head_dims[0]))
            rows.append({"pattern": text, "tokens": tokens, "head_dim": options.head_dims[0], "peak_mib": peak})
    print(table(list(rows[0]), [tuple(row.values()) for row in rows]))
    return {"memory": rows}


def _parser() -> Parser:
    parser = Parser("bench", "Block-sparse attention beside dense attention, in one run.", EXAMPLES)
    parser.add_argument(
        "what", choices=list(BENCHMARKS), help="see below; gpu, selection, model, cost and sweep need a GPU"
    )
    parser.add_argument("--tokens", type=at_least(256), nargs="+", default=[2048, 8192, 16384])
    parser.add_argument("--head-dims", type=at_least(1), nargs="+", default=[64, 128])
    parser.add_argument(
        "--dtypes", nargs="+", choices=["float32", "bfloat16", "float16"], default=["float32", "bfloat16"]
    )
    parser.add_argument("--patterns", nargs="+", metavar="P", help="of cpu, memory, gpu and cost")
    parser.add_argument("--shapes", nargs="+", choices=[s.name for s in SHAPES], help="of gpu (default: all)")
    parser.add_argument("--blocks", type=int, nargs="+", choices=[64, 128], default=[128], help="of sweep and compiled")
    parser.add_argument(
        "--layers", type=at_least(1), default=8, help="of model and cost, all 40 or fewer (default: %(default)s)"
    )
    parser.add_argument("--clips", nargs="+", choices=list(CLIPS), help="of model (default: all) and cost")
    parser.add_argument("--passes", nargs="+", choices=PASSES, help="of model (default: both)")
    parser.add_argument(
        "--lengths", type=at_least(1), nargs="+", default=list(LENGTHS), help="of training, times the native length"
    )
    parser.add_argument("--heads", type=at_least(1), default=4)
    parser.add_argument("--repeats", type=at_least(1), default=5)
    parser.add_argument("--quick", action="store_true", help="a short run of what needs a GPU; what you name counts")
    parser.add_argument("--rows", metavar="FILE", help="launch kernels as a sweep found to be best; its output")
    parser.add_argument("--output", help="write the figures, machine and versions to this JSON file")
    return parser


BENCHMARKS: dict[str, Callable[[Any, Save], dict[str, Any]]] = {
    "cpu": _cpu,
    "memory": _memory,
    "choosing": choosing,
    "compiled": compiled,
    "gpu": gpu,
    "selection": selection,
    "model": model,
    "cost": cost,
    "sweep": sweep,
    "training": training,
}


def _cases(options: Any) -> Iterator[tuple[Pattern, TokenGrid, int, str]]:
    from dattn.registry import static_from_string

    patterns = [static_from_string(text) for text in options.patterns or PATTERNS]
    for dtype in options.dtypes:
        for head_dim in options.head_dims:
            for tokens in options.tokens:
                for pattern in patterns:
                    yield pattern, _clip(tokens), head_dim, dtype


def _speed(options: Any, pattern: Pattern, grid: TokenGrid, head_dim: int, dtype: str) -> Speed:
    """Dense and sparse take turns; the ratio is the median over the pairs, so drift of the machine cancels."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from dattn.attention import attend
    from dattn.block_mask import MaskCache

    torch.manual_seed(0)
    shape = (1, grid.tokens, options.heads, head_dim)
    q, k, v = (torch.randn(shape, dtype=getattr(torch, dtype)).transpose(1, 2) for _ in range(3))  # as models hand over
    masks = MaskCache()
    sparse = lambda: attend(q, k, v, pattern, grid, backend="torch", state={"masks": masks})
    dense = lambda: scaled_dot_product_attention(q, k, v)
    dense(), sparse()
    pairs = [(_seconds(dense), _seconds(sparse)) for _ in range(options.repeats)]
    mask = masks.get(pattern, grid, q.device)
    speedup = median(d / s for d, s in pairs)
    elements = mask.element_density
    return Speed(
        str(pattern),
        grid.tokens,
        head_dim,
        dtype,
        mask.density,
        elements,
        median(d for d, _ in pairs),
        median(s for _, s in pairs),
        speedup,
        speedup * mask.density,
        speedup * elements,
    )


def _call_rate(rows: int, head_dim: int, options: Any) -> dict[str, Any]:
    """What short calls can reach: FLOP/s of PyTorch's kernel with ``rows`` queries a call ÷ with all in one call."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    tokens = max(CALL_ROWS)
    one = torch.randn(1, options.heads, tokens, head_dim), torch.randn(1, options.heads, CALL_KEYS, head_dim)
    many = (
        torch.randn(options.heads, tokens // rows, rows, head_dim),
        torch.randn(options.heads, tokens // rows, CALL_KEYS, head_dim),
    )
    mask = torch.zeros(1, 1, rows, CALL_KEYS).expand(-1, tokens // rows, -1, -1)
    whole, calls, masked = (
        lambda: scaled_dot_product_attention(one[0], one[1], one[1]),
        lambda: scaled_dot_product_attention(many[0], many[1], many[1]),
        lambda: scaled_dot_product_attention(many[0], many[1], many[1], attn_mask=mask),
    )
    whole(), calls(), masked()
    times = [(_seconds(whole), _seconds(calls), _seconds(masked)) for _ in range(4 * options.repeats)]
    plain, with_mask = (median(t[0] / t[i] for t in times) for i in (1, 2))
    return {"rows": rows, "head_dim": head_dim, "share": plain, "share_masked": with_mask}


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak_mib(text: str, tokens: int, heads: int, head_dim: int) -> float:
    """MiB that one call of float32 attention needs beyond its inputs: mask, plan, buffers and output."""
    import torch

    from dattn.attention import attention
    from dattn.registry import static_from_string

    grid = _clip(tokens)
    q, k, v = (torch.randn(1, heads, grid.tokens, head_dim) for _ in range(3))
    attention(q[:, :, :256], k[:, :, :256], v[:, :, :256], static_from_string("Radial(block_size=16)"), _clip(256))
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    attention(q, k, v, static_from_string(text), grid)
    return (_status("VmHWM") - before) / 1024


def _clip(tokens: int) -> TokenGrid:
    from dattn.grid import TokenGrid

    return TokenGrid(max(1, tokens // (FRAME[0] * FRAME[1])), *FRAME)


def _status(name: str) -> int:
    """A field of the process's memory status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name + ":")))


def _mask_time(text: str, grid_name: str) -> dict[str, Any]:
    """Seconds to build a mask on one core."""
    import torch

    from dattn.grid import TokenGrid
    from dattn.registry import static_from_string

    grid, threads = TokenGrid(*GRIDS[grid_name]), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pattern = static_from_string(text)
        seconds = min(_seconds(lambda: pattern.mask(grid)) for _ in range(2))
    finally:
        torch.set_num_threads(threads)
    density = pattern.mask(grid).density
    return {"pattern": text, "grid": grid_name, "tokens": grid.tokens, "density": density, "seconds": seconds}
