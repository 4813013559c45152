"""Several results side by side: clips, contact sheet, report and the table on the screen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .loading import Loaded
from .media import write_clip
from .record import write_json
from .running import Request, Result
from .sheet import sheet
from .table import show, table

HEADER = ("attention", "seconds", "denoiser s", "density", "pooled", "work", "PSNR dB", "SSIM", "judge")


def slug(name: str) -> str:
    """A file name for a pattern: ``Radial(decay=0.2)`` becomes ``radial-decay-0.2``."""
    stem = Path(name).stem if name.endswith(".json") else name
    return re.sub(r"[^a-z0-9.]+", "-", stem.lower()).strip("-.") or "pattern"


def figures_table(results: Sequence[Result]) -> str:
    """One line for each result, then what the judge saw."""
    against_stock = any(r.name == "stock" for r in results)
    said = "".join(f"\njudge on {r.name}: {r.verdict}" for r in results if r.verdict)
    return table(HEADER, [_row(r, against_stock) for r in results]) + ("\n" + said if said else "")


def _row(r: Result, against_stock: bool) -> tuple[object, ...]:
    same = against_stock and r.name != "stock" and r.ssim is not None and r.psnr is None
    likeness = "equal" if same else r.psnr
    return (
        r.name,
        r.seconds,
        r.denoiser_seconds,
        r.density,
        r.pooled_share,
        r.work,
        likeness,
        r.ssim,
        r.judged,
    )


def publish(
    loaded: Loaded,
    request: Request,
    results: Sequence[Result],
    folder: Path,
    fps: int,
    record: dict[str, Any],
) -> list[Path]:
    """Write every clip, ``sheet.png`` and ``report.json`` into a folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [write_clip(r.clip, folder, slug(r.name), fps) for r in results]
    sheet({f"{r.name}   {figures_line(r)}": r.clip for r in results}, request.prompt).save(folder / "sheet.png")
    rows = [{**r.figures(), "file": path.name, "report": r.report} for r, path in zip(results, written, strict=True)]
    report = {**record, "model": loaded.name, "request": asdict(request), "results": rows}
    write_json(folder / "report.json", report)
    return [*written, folder / "sheet.png", folder / "report.json"]


def figures_line(r: Result) -> str:
    """The figures of one result in a line."""
    parts = [f"{show(r.seconds)} s"]
    parts += [f"density {r.density:.2f}"] if r.density is not None else []
    parts += [f"PSNR {r.psnr:.1f} dB"] if r.psnr is not None else []
    parts += [] if r.judged is None else [f"judge: {show(r.judged)}"]
    return "   ".join(parts)
