"""The work of ``dattn evaluate``: what is still to make, making it, and the table of what is there."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tqdm import tqdm

from dattn.registry import pattern_from_string

from .cells import Cell, Clip, Store, summary
from .chart import chart
from .loading import Loaded
from .probe import probe
from .publish import figures_line
from .record import fingerprint, provenance, write_json
from .running import Request, run
from .table import table

COLUMNS = {
    "pattern": "pattern",
    "length": "length",
    "clips": "clips",
    "accuracy": "judged right",
    "psnr": "PSNR dB",
    "ssim": "SSIM",
    "seconds": "seconds",
    "denoiser_seconds": "denoiser s",
    "density": "density",
    "pooled_share": "pooled",
    "work": "work",
    "kept": "kept",
    "choosing": "choosing",
    "call": "call",
}
INSIDE, EVERY = ("kept", "choosing", "call"), 4
"""The columns that come from looking inside of layers, and the steps from one look to the next."""


def gather_settings(options: argparse.Namespace, loaded: Loaded, request: Request) -> dict[str, Any]:
    """What must be the same for all cells of a folder."""
    return {
        "model": loaded.name,
        "weights": fingerprint(loaded.folder),
        "lora": fingerprint(options.lora, "*.safetensors"),
        "device": loaded.pipe.device.type,
        "dtype": str(loaded.pipe.dtype).removeprefix("torch."),
        "height": request.height,
        "width": request.width,
        "steps": request.steps,
        "guidance": request.guidance,
        **{name: getattr(options, name) for name in ("dense_steps", "dense_layers", "backend")},
    }


def frames_at(loaded: Loaded, length: int) -> int | None:
    """Frames of a clip ``length`` times the native length, or the pipeline's own default length; None of a picture."""
    if not loaded.makes_video:
        return None
    if loaded.native is not None:
        return loaded.native.frames_at(length)
    default = inspect.signature(loaded.pipe.__call__).parameters["num_frames"].default
    return 1 + (default - 1) * length


def missing(store: Store, cells: Sequence[Cell], clips: Sequence[Clip]) -> Iterator[tuple[Cell, Clip]]:
    """What is still to make, clip by clip, so that an early stop leaves even rows; stock comes first."""
    done = {cell: store.rows(cell).keys() for cell in cells}
    for length in dict.fromkeys(cell.length for cell in cells):
        for clip in clips:
            for cell in cells:
                if cell.length == length and clip not in done[cell]:
                    yield cell, clip


def fill(
    store: Store,
    loaded: Loaded,
    request: Request,
    cells: Sequence[Cell],
    clips: Sequence[Clip],
    options: dict[str, Any],
) -> None:
    """Make and measure every clip that is not there yet."""
    todo = list(missing(store, cells, clips))
    done = len(cells) * len(clips) - len(todo)
    print(f"{len(cells)} cells of {len(clips)} clips: {done} clips are there, {len(todo)} to make", flush=True)
    bar = tqdm(todo, desc="clips", unit="clip", disable=not sys.stderr.isatty())
    for cell, clip in bar:
        line = one(store, loaded, request, cell, clip, options)
        bar.write(line)


def one(store: Store, loaded: Loaded, request: Request, cell: Cell, clip: Clip, options: dict[str, Any]) -> str:
    """Make, measure and note one clip; what it says on the screen."""
    asked = replace(request, prompt=clip.caption, seed=clip.seed, frames=frames_at(loaded, cell.length))
    result = run(loaded, asked, cell.pattern, options)
    if cell.pattern == "stock":
        store.keep_reference(cell.length, clip, result.clip)
    else:
        result.compare(_stock(store, loaded, asked, cell.length, clip))
    store.add(cell, clip, result)
    return f"{cell.length}x  {cell.pattern}  {clip.caption!r} seed {clip.seed}: {figures_line(result)}"


def _stock(store: Store, loaded: Loaded, asked: Request, length: int, clip: Clip) -> np.ndarray:
    """The stock clip to compare with; made anew where it was lost."""
    reference = store.reference(length, clip)
    if reference is None:
        reference = run(loaded, asked, "stock").clip
        store.keep_reference(length, clip, reference)
    return reference


def look_inside(store: Store, loaded: Loaded, request: Request, cells: Sequence[Cell], clip: Clip) -> None:
    """Probe what is not probed yet, in one dense clip of each length: patterns that need no files of their own."""
    known = store.inside()
    new = [c for c in cells if c.pattern != "stock" and c.contents is None and c.file not in known]
    for length in dict.fromkeys(cell.length for cell in new):
        here = {cell.pattern: cell for cell in new if cell.length == length}
        asked = replace(request, prompt=clip.caption, seed=clip.seed, frames=frames_at(loaded, length))
        rows = probe(loaded, {name: pattern_from_string(name) for name in here}, [asked], EVERY)
        store.add_inside({here[row["pattern"]].file: row for row in rows})


def report(
    store: Store, cells: Sequence[Cell], clips: Sequence[Clip], settings: dict[str, Any], argv: Sequence[str]
) -> None:
    """Print the table; write ``results.json`` and ``results.png``."""
    wanted = set(clips)
    inside = store.inside()
    rows = [
        summary(c, [row for clip, row in store.rows(c).items() if clip in wanted])
        | {name: inside.get(c.file, {}).get(name) for name in INSIDE}
        for c in cells
    ]
    content = {
        **provenance("evaluate", argv),
        "settings": settings,
        "captions": list(dict.fromkeys(clip.caption for clip in clips)),
        "seeds": sorted({clip.seed for clip in clips}),
        "rows": rows,
    }
    write_json(store.folder / "results.json", content)
    title = f"{settings['model']}, {settings['steps']} steps, {len(clips)} clips for each point"
    chart(rows, store.folder / "results.png", title)
    shown = [name for name in COLUMNS if name not in INSIDE or any(row[name] is not None for row in rows)]
    print(f"\n{table([COLUMNS[name] for name in shown], [[row[name] for name in shown] for row in rows])}\n")
    print(f"written: {store.folder / 'results.json'}, {store.folder / 'results.png'}")
