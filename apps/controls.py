"""``dattn controls``: what controls do on the demo models, judged by program, before and after."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from dattn.registry import pattern_from_string

from .arguments import STOCK, Parser, add_model_options, add_schedule_options, at_least
from .generate import apply_options
from .loading import Loaded, load
from .record import fingerprint, provenance, write_json
from .shapes.control_cases import CASES, names_for
from .shapes.edits import Case, Maker
from .shapes.pictures import FRAMES
from .sheet import pictures, sheet
from .table import table

EXAMPLES = """\
  dattn controls
  dattn controls --model shapes-sd --only "Replace, colour" AStar --cases 8
  dattn controls --pattern "Radial(block_size=64)" """

COLUMNS = ("control", "under", "wanted", "before", "after", "cases", "plain s", "control s")
SCHEDULE = ("dense_steps", "dense_layers")
SHOWN = 4
"""Cases of each control on its contact sheet."""


def parser() -> Parser:
    """The command's options."""
    p = Parser("controls", "Judge controls on a demo model: the same noise without and with each.", EXAMPLES)
    p.add_argument("--only", nargs="+", metavar="CONTROL", help=f"some of {', '.join(CASES)}")
    p.add_argument("--pattern", default="stock", help="what runs under the controls (default: %(default)s)")
    p.add_argument("--cases", type=at_least(1), default=24, help="of each control (default: %(default)s)")
    p.add_argument("--steps", type=at_least(1), help="denoising steps (default: the model's own)")
    p.add_argument("--frames", type=at_least(5), help="frames of a video (default: the model's own)")
    p.add_argument("--guidance", type=float, help="guidance scale; 1 is none (default: the model's own)")
    folder = Path("outputs/controls")
    p.add_argument("--output", type=Path, default=folder, metavar="DIR", help="(default: %(default)s)")
    add_schedule_options(p)
    add_model_options(p)
    return p


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    options = parser().parse_args(argv)
    pattern = None if options.pattern in STOCK else pattern_from_string(options.pattern)
    loaded = load(options.model, options.device, options.dtype, options.lora)
    if loaded.native is None:
        raise ValueError(f"{loaded.name} is no demo model: only pictures of Moving Shapes can be judged")
    names = options.only or names_for(loaded.makes_video)
    for name in names:
        if name not in names_for(loaded.makes_video):
            raise ValueError(
                f"control {name!r}: on {loaded.name} choose from {', '.join(names_for(loaded.makes_video))}"
            )
    loaded.pipe.set_progress_bar_config(disable=True)
    options.output.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for name in names:
        rows += _judged(name, loaded, pattern, options)
        _note(rows, loaded, options, argv)
    print(table(COLUMNS, [[row[column] for column in COLUMNS] for row in rows]))
    return 0


def _note(rows: Sequence[dict[str, Any]], loaded: Loaded, options: Any, argv: Sequence[str]) -> None:
    """Write the rows; those of other controls of this model, made with the same weights, stay in the file."""
    path = options.output / f"{loaded.name}-{_slug(_under(options))}.json"
    weights, made = fingerprint(loaded.folder), {row["control"] for row in rows}
    held = json.loads(path.read_text()) if path.is_file() else {}
    others = [row for row in held.get("rows", ()) if row["control"] not in made]
    kept = others if held.get("weights") == weights else []
    write_json(path, {"model": loaded.name, "weights": weights, "rows": [*kept, *rows], **provenance("controls", argv)})


def _under(options: Any) -> str:
    """What runs under the controls, in words."""
    dense = [f"{name.replace('_', ' ')} {value:g}" for name in SCHEDULE if (value := getattr(options, name))]
    guided = [] if options.guidance is None else [f"guidance {options.guidance:g}"]
    return ", ".join([options.pattern, *dense, *guided])


def _judged(name: str, loaded: Loaded, pattern: Any, options: Any) -> list[dict[str, Any]]:
    """A row for each thing that a control is wanted to do, and its contact sheet."""
    native = loaded.native
    assert native is not None
    call = {"height": native.height, "width": native.width, "num_inference_steps": options.steps or native.steps}
    guidance = native.guidance if options.guidance is None else options.guidance
    call |= native.extra | ({} if guidance is None else {"guidance_scale": guidance})
    if loaded.makes_video:
        call["num_frames"] = options.frames or native.frames
    make = Maker(
        loaded.pipe,
        call,
        None if loaded.makes_video else FRAMES,
        pattern,
        {} if pattern is None else apply_options(options),
    )
    cases = list(_counted(CASES[name](make, options.cases), name, options.cases))
    plain, controlled = (median(make.seconds[kind]) if make.seconds[kind] else None for kind in (False, True))
    _draw(cases[:SHOWN], name, options.output / f"{loaded.name}-{_slug(_under(options))}-{_slug(name)}.png")
    return [
        {
            "control": name,
            "under": _under(options),
            "wanted": wanted,
            "before": fmean(case.before[wanted] for case in cases) if wanted in cases[0].before else "",
            "after": fmean(case.after[wanted] for case in cases),
            "cases": len(cases),
            "steps": call["num_inference_steps"],
            "plain s": plain,
            "control s": controlled,
        }
        for wanted in cases[0].after
    ]


def _counted(cases: Iterator[Case], name: str, count: int) -> Iterator[Case]:
    """The cases, with a progress bar."""
    from tqdm import tqdm

    yield from tqdm(cases, desc=name, total=count, unit="case")


def _draw(cases: Sequence[Case], title: str, path: Path) -> None:
    """A contact sheet of some cases."""
    seen = [
        {label: (np.clip(clip, 0, 1) * 255).round().astype(np.uint8) for label, clip in c.clips.items()} for c in cases
    ]
    if all((clip == clip[:1]).all() for case in seen for clip in case.values()):
        pictures([{label: clip[0] for label, clip in case.items()} for case in seen], title).save(path)
    else:
        named = {f"{number}: {label}": clip for number, case in enumerate(seen) for label, clip in case.items()}
        sheet(named, title, cell=96).save(path)


def _slug(text: str) -> str:
    """A text as part of a file's name."""
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())
