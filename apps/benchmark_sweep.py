"""``dattn bench sweep``: the configuration table of the Triton kernels, measured anew on the GPU at hand.

First the tiles, warps and stages of every kernel; then, on the fastest ones of the forward kernel, its switches, alone
and together, so that the record says what each of them buys.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import unified_diff
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dattn.apps.timing import DEVICE, gpu_needed, milliseconds
from dattn.kernels.config import SWITCHES, TABLE, Config, Row, key_of

if TYPE_CHECKING:
    from torch import Tensor

GRID = (15, 33, 31)  # nothing divides it: the last blocks are ragged
HEADS = 16
PATTERNS = ("Radial(decay=0.2, block_size={block})", "Neighborhood((7, 17, 17), tile=({frames}, 8, 8))")
TILES = ((128, 128), (128, 64), (128, 32), (64, 128), (64, 64), (64, 32), (32, 128), (32, 64), (32, 32))
STAGES = (2, 3, 4)
ACCUMULATED = 4096  # float32 numbers that a warp can hold: 128 registers of each thread
WORTH_8_WARPS = 128 * 64  # pairs of a tile
Timer = Callable[["Row"], float | None]
Note = Callable[[dict[str, Any]], None]
Save = Callable[[dict[str, Any]], None]


def sweep(options: Any, save: Save) -> dict[str, Any]:
    """Time every configuration of every kernel, row by row of the table; print what would change.

    Raises:
        ValueError: there is no CUDA device.
    """
    import torch

    gpu_needed("sweep")
    major, minor = torch.cuda.get_device_capability()
    trials: list[dict[str, Any]] = []
    rows: list[str] = []
    found: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    record: dict[str, Any] = {"sweep": trials, "table": rows, "rows": found, "failed": failed}
    for head_dim, block in product(options.head_dims, options.blocks):
        key = key_of(10 * major + minor, head_dim, block)
        old = TABLE[key]
        timers = _timers(key, head_dim, block, options.repeats)
        place = {"row": list(key), "head_dim": head_dim}
        note = partial(_note, trials, place, lambda: save(record))
        new = with_switches(best_row(old, timers, block, head_dim, note), timers["forward"], key[0], note)
        rows.append(line(key, new))
        found.append({"row": key, "configs": new})
        failed += [trial for trial in trials if trial["row"] == list(key) and _is_a_failure_of(old, trial)]
        print(difference(key, old, new), flush=True)
        save(record)
    return record


def _is_a_failure_of(row: Row, trial: dict[str, Any]) -> bool:
    """Whether a configuration of this row, the table's, did not run: a finding, where it is none of the others."""
    return trial["ms"] is None and trial["config"] == list(getattr(row, trial["kernel"]))


def use_rows(path: Path) -> None:
    """Put the rows that a sweep found into the table, for this process.

    Raises:
        ValueError: a file that no sweep wrote.
    """
    try:
        rows = json.loads(path.read_text())["rows"]
        found = {tuple(row["row"]): Row(*(Config(*config) for config in row["configs"])) for row in rows}
    except (KeyError, TypeError, json.JSONDecodeError):
        raise ValueError(
            f"--rows {path}: no rows of a sweep; they come from: dattn bench sweep --output FILE"
        ) from None
    TABLE.update(found)


def _note(trials: list[dict[str, Any]], place: dict[str, Any], save: Callable[[], None], trial: dict[str, Any]) -> None:
    """Keep a trial at once: a run that is stopped loses none."""
    trials.append(place | trial)
    save()


def best_row(row: Row, timers: dict[str, Timer], block: int, head_dim: int, note: Note) -> Row:
    """The row with the fastest configuration of every kernel; ``note`` is told of all that was tried.

    A kernel keeps its configuration unless another one is faster; ``timers`` give milliseconds, or None where a
    configuration does not run.
    """
    best = row
    for kernel, timer in timers.items():
        tried = dict.fromkeys([getattr(row, kernel), *candidates(block, head_dim)])
        best = _fastest(best, kernel, tried, _timed(best, kernel, timer), note)
    return best


def with_switches(row: Row, timer: Timer, architecture: int, note: Note) -> Row:
    """The row with the fastest switches of its forward kernel; ``note`` is told what each set of them takes."""
    plain = row.forward._replace(**dict.fromkeys(SWITCHES, False))
    tried = [plain, *switched(plain, architecture)]

    def told(trial: dict[str, Any]) -> None:
        note(trial)
        print(f"forward, {_written(Config(*trial['config']))}: {trial['ms']} ms", flush=True)

    return _fastest(row, "forward", tried, _timed(row, "forward", timer), told)


def _timed(row: Row, kernel: str, timer: Timer) -> Callable[[Config], float | None]:
    """What times a configuration of one kernel."""
    return lambda config: timer(row._replace(**{kernel: config}))


def switched(config: Config, architecture: int) -> Iterator[Config]:
    """The same with every set of the switches that can pay on an architecture, but the empty one."""
    known = [name for name, since in SWITCHES.items() if architecture >= since]
    for values in list(product((False, True), repeat=len(known)))[1:]:
        yield config._replace(**dict(zip(known, values, strict=True)))


def _fastest(row: Row, kernel: str, tried: Iterable[Config], time: Callable[[Config], float | None], note: Note) -> Row:
    """The row with the configuration of a kernel that takes the least; as it is where none runs."""
    times: dict[Config, float] = {}
    for config in tried:
        ms = time(config)
        note({"kernel": kernel, "config": list(config), "ms": ms})
        if ms is not None:
            times[config] = ms
    return row._replace(**{kernel: min(times, key=lambda config: times[config])}) if times else row


def candidates(block: int, head_dim: int) -> Iterator[Config]:
    """Configurations worth a try: tiles within the block, and warps enough to hold them."""
    for (m, n), warps, stages in product(TILES, (4, 8), STAGES):
        fits = max(m, n) <= block and m * max(n, head_dim) <= ACCUMULATED * warps
        if fits and (warps == 4 or m * n >= WORTH_8_WARPS):
            yield Config(m, n, warps, stages)


def line(key: Sequence[int], row: Row) -> str:
    """A row as it stands in the table's source."""
    return f"({', '.join(map(str, key))}): Row({', '.join(map(_written, row))}),"


def _written(config: Config) -> str:
    """A configuration in source; switches that are off are left out."""
    on = [f"{name}=True" for name in SWITCHES if getattr(config, name)]
    return f"Config({', '.join([*map(str, config[:4]), *on])})"


def difference(key: Sequence[int], old: Row, new: Row) -> str:
    """What would change in the table, as a diff; or that nothing would."""
    if old == new:
        return f"{line(key, old)}  # unchanged"
    return "\n".join(list(unified_diff([line(key, old)], [line(key, new)], lineterm="", n=0))[3:])


def _timers(key: tuple[int, int, int], head_dim: int, block: int, repeats: int) -> dict[str, Timer]:
    """For every kernel, what times it under a row: the forward pass, or the backward pass as a whole."""
    import torch

    from dattn.backends import load
    from dattn.backends.problem import Problem
    from dattn.grid import TokenGrid
    from dattn.registry import static_from_string

    grid, backend = TokenGrid(*GRID), load("triton")
    shape = 1, grid.tokens, HEADS, head_dim
    query, key_, value, grad = (
        torch.randn(shape, device=DEVICE, dtype=torch.bfloat16).transpose(1, 2) for _ in range(4)
    )
    problems = []
    for text in PATTERNS:
        mask = static_from_string(text.format(block=block, frames=block // 64)).mask(grid).to(DEVICE)
        problems.append(Problem(query, key_, value, mask, head_dim**-0.5))

    @cache
    def results() -> list[tuple[Tensor, Tensor]]:
        """By the first forward configuration that runs."""
        return [backend.forward(problem) for problem in problems]

    def forward() -> None:
        for problem in problems:
            backend.forward(problem)

    def backward() -> None:
        for problem, (output, lse) in zip(problems, results(), strict=True):
            backend.backward(problem, output, lse, grad, torch.zeros_like(lse))

    passes = {"forward": forward, "grad_query": backward, "grad_key": backward}

    def timer(call: Callable[[], object]) -> Timer:
        def under(row: Row) -> float | None:
            kept, TABLE[key] = TABLE[key], row
            try:
                return milliseconds(call, repeats, may_fail=True)
            finally:
                TABLE[key] = kept

        return under

    return {name: timer(call) for name, call in passes.items()}
