"""``dattn evaluate``: the quality table, patterns x lengths, against stock attention of the same seed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import (
    Parser,
    add_model_options,
    add_schedule_options,
    at_least,
    writable_folder,
)
from .generate import apply_options

if TYPE_CHECKING:
    from .loading import Loaded
    from .running import Request

EXAMPLES = """\
  dattn evaluate --preset screening --patterns "Radial(block_size=64)" "Radial(block_size=64, decay=0.5)"
  dattn evaluate --preset final --output outputs/final
  dattn evaluate --model ./my-wan --captions captions.txt --lengths 1 2 --steps 30
  dattn evaluate --model assets/models/shapes-flux --patterns "Grouped(4, 'cross')" "Agent(0.75)"

A row may have a LoRA of its own, of dattn train-lora or others: "Radial() + my-lora", "stock + my-lora",
and "Radial() + my-lora from 0.25" where it is to act in the last three quarters of the steps alone.
Interrupted, it goes on where it stopped: run the same command again. More patterns, lengths, captions or
seeds add to what is there."""
PATTERNS = (
    "Radial(block_size=64)",
    "Radial(block_size=64, tail=True)",
    "Neighborhood(window=(11, None, None))",
)
MAX_CELLS = 40


@dataclass(frozen=True)
class Preset:
    """A budget: screening finds what is worth a final."""

    lengths: tuple[int, ...]
    captions: int
    steps: int | None
    patterns: int  # beside stock


PRESETS = {"screening": Preset((4,), 8, 12, MAX_CELLS - 1), "final": Preset((1, 4, 8), 24, None, 6)}


def parser() -> Parser:
    """The command's options."""
    p = Parser("evaluate", "Measure patterns against stock attention over captions and lengths.", EXAMPLES)
    p.add_argument("--preset", choices=PRESETS, default="final", help="a budget (default: %(default)s)")
    p.add_argument(
        "--patterns",
        nargs="+",
        default=list(PATTERNS),
        metavar="PATTERN",
        help="stock is always there; PATTERN + LORA adds one",
    )
    p.add_argument("--lengths", nargs="+", type=at_least(1), metavar="N", help="multiples of the native length")
    p.add_argument("--captions", metavar="N_OR_FILE", help="the first N of ours, or a file with one on each line")
    p.add_argument("--seeds", nargs="+", type=at_least(0), default=[0], metavar="SEED", help="(default: 0)")
    p.add_argument("--steps", type=at_least(1), help="denoising steps (default: by preset, or the model's)")
    p.add_argument("--guidance", type=float, help="guidance scale (default: the model's)")
    p.add_argument(
        "--probe",
        action="store_true",
        help="also what patterns keep of the weight and the time of a call, in one dense clip of each length",
    )
    p.add_argument(
        "--output", type=Path, default=Path("outputs/evaluate"), metavar="DIR", help="(default: %(default)s)"
    )
    add_schedule_options(p)
    add_model_options(p)
    return p


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    options = parser().parse_args(argv)
    preset = PRESETS[options.preset]
    writable_folder(options.output)
    from .adapted import parts
    from .cells import Cell, Clip, Store
    from .loading import load, resolve
    from .running import check, is_stock, read_attention
    from .study import fill, gather_settings, look_inside, report

    sparse = list(dict.fromkeys(name for name in options.patterns if not is_stock(name)))
    if len(sparse) > preset.patterns:
        raise ValueError(
            f"{len(sparse)} patterns beside stock: the budget of {options.preset!r} is {preset.patterns}; "
            f"find out with --preset screening which are worth it"
        )
    for name in sparse:
        applied = parts(name).attention
        if not is_stock(applied):
            read_attention(applied)
    resolve(options.model)
    loaded = load(options.model, options.device, options.dtype, options.lora)
    lengths = chosen_lengths(options.lengths, preset, loaded)
    contents = {name: _contents(name) for name in sparse}
    cells = [Cell(name, length, contents.get(name)) for length in lengths for name in ["stock", *sparse]]
    if len(cells) > MAX_CELLS:
        raise ValueError(f"{len(cells)} cells (rows x lengths): at most {MAX_CELLS}; ask for fewer")
    captions = chosen_captions(options.captions, preset, loaded)
    request = base_request(options, preset, loaded)
    for name in sparse:
        check(loaded, request, name, apply_options(options))
    settings = gather_settings(options, loaded, request)
    store = Store(options.output)
    store.begin(settings)
    clips = [Clip(caption, seed) for seed in options.seeds for caption in captions]
    fill(store, loaded, request, cells, clips, apply_options(options))
    if options.probe:
        look_inside(store, loaded, request, cells, clips[0])
    report(store, cells, clips, settings, argv)
    return 0


def _contents(name: str) -> str | None:
    """What tells the files that a row names, a recipe or a LoRA, from others in their places; None of no files."""
    from .adapted import parts
    from .record import fingerprint

    row = parts(name)
    recipe = Path(row.attention)
    found = [fingerprint(recipe) if recipe.is_file() else None, fingerprint(row[1], "*.safetensors")]
    return "-".join(filter(None, found)) or None


def chosen_lengths(wish: list[int] | None, preset: Preset, loaded: Loaded) -> list[int]:
    """The lengths to make; a picture has none.

    Raises:
        ValueError: lengths for a model that makes pictures.
    """
    if loaded.makes_video:
        return sorted(set(wish or preset.lengths))
    if wish not in (None, [1]):
        raise ValueError(f"lengths {wish}: {loaded.name} makes pictures, which have no length; leave --lengths out")
    return [1]


def chosen_captions(wish: str | None, preset: Preset, loaded: Loaded) -> list[str]:
    """The captions to make.

    Raises:
        ValueError: an unreadable or empty file, or none for a model that is not of Moving Shapes.
    """
    if wish is not None and not wish.isdecimal():
        try:
            lines = [line.strip() for line in Path(wish).read_text().splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"captions {wish}: neither a number nor a readable file ({error})") from None
        if not any(lines):
            raise ValueError(f"captions {wish}: the file is empty; write one caption on each line")
        return list(dict.fromkeys(line for line in lines if line))
    if loaded.native is None:
        raise ValueError(f"captions: ours are of Moving Shapes, {loaded.name} is not; give a file with --captions")
    count = preset.captions if wish is None else int(wish)
    every = all_captions() if loaded.makes_video else picture_captions()
    if not 1 <= count <= len(every):
        raise ValueError(f"captions {count}: there are 1 to {len(every)}; give a number in that range or a file")
    return every[:count]


def all_captions() -> list[str]:
    """Every caption of a single object, in a fixed order whose beginnings hold all kinds evenly."""
    from .shapes.captions import COLORS, MOTIONS, SHAPES

    motions = list(MOTIONS)
    total = len(COLORS) * len(SHAPES) * len(motions)
    words = ((COLORS[i % 6], SHAPES[(i + i // 6) % 3], motions[i % 5]) for i in range(total))
    return [f"a {color} {shape} {motion}" for color, shape, motion in words]


def picture_captions() -> list[str]:
    """Captions of pictures, a single object and a pair in turn; their beginnings hold all kinds evenly."""
    from .shapes.captions import COLORS, RELATIONS, SHAPES

    objects = [f"a {COLORS[i % 6]} {SHAPES[(i + i // 6) % 3]}" for i in range(len(COLORS) * len(SHAPES))]
    relations = list(RELATIONS)
    others = [f"a {COLORS[(i + 1 + i // 6) % 6]} {SHAPES[(i + 1) % 3]}" for i in range(len(objects))]
    pairs = [f"{a} {relations[i % 4]} {b}" for i, (a, b) in enumerate(zip(objects, others, strict=True))]
    return [caption for both in zip(objects, pairs, strict=True) for caption in both]


def base_request(options: argparse.Namespace, preset: Preset, loaded: Loaded) -> Request:
    """The request of every clip, but for caption, seed and frames.

    Raises:
        ValueError: the pipeline takes no such argument.
    """
    from .running import Request

    request = Request("", steps=options.steps or preset.steps, guidance=options.guidance).filled(loaded)
    request.call(loaded)
    return request
