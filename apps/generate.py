"""``dattn generate``: one clip with a pattern, the same seed with stock attention, and what differs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .arguments import Parser, add_clip_options, add_model_options, add_schedule_options, writable_folder

EXAMPLES = """\
  dattn generate
  dattn generate --prompt "a blue square moving up" --pattern "Radial(block_size=64, tail=True)"
  dattn generate --pattern "Neighborhood(window=(9, None, None))" --output outputs/window
  dattn generate --model ./my-wan --prompt "a fox in the snow" --frames 81 --dense-steps 0.25 --dense-layers 1
  dattn generate --model stable-diffusion-v1-5/stable-diffusion-v1-5 --prompt "a fox" \\
                 --pattern "Neighborhood(window=17)" """


def parser() -> Parser:
    """The command's options."""
    p = Parser("generate", "Make a video (or a picture) with a pattern, and the same with stock attention.", EXAMPLES)
    p.add_argument("--pattern", help='radial, "Radial(decay=0.2)", recipe.json or stock (default: radial)')
    p.add_argument("--no-stock", action="store_true", help="leave out the stock run")
    p.add_argument("--output", type=Path, default=Path("outputs"), metavar="DIR", help="(default: %(default)s)")
    add_clip_options(p)
    add_schedule_options(p)
    add_model_options(p)
    return p


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    options = parser().parse_args(argv)
    return make(options, [options.pattern], argv, "generate")


def make(options: argparse.Namespace, patterns: list[str | None], argv: Sequence[str], command: str) -> int:
    """Make a clip for each pattern, stock first unless left out; nothing is written before all are made."""
    writable_folder(options.output)
    from .loading import load, resolve
    from .publish import figures_table, publish
    from .record import provenance
    from .running import check, is_stock, read_attention, run

    for pattern in patterns:
        if pattern is not None and not is_stock(pattern):
            read_attention(pattern)
    resolve(options.model)
    loaded = load(options.model, options.device, options.dtype, options.lora)
    request = requested(options, loaded)
    request.call(loaded)
    names = [_default_pattern(loaded) if p is None else p for p in patterns]
    sparse = [name for name in names if not is_stock(name)]
    for name in sparse:
        check(loaded, request, name, apply_options(options))
    stock = not options.no_stock or len(sparse) < len(names)
    results = []
    for name in [*["stock"] * stock, *sparse]:
        print(f"{name}: {loaded.name}, {_what(request)}", flush=True)
        results.append(run(loaded, request, name, apply_options(options)))
        if stock and len(results) > 1:
            results[-1].compare(results[0].clip)
    record = provenance(command, argv) | {"apply": apply_options(options)}
    files = publish(loaded, request, results, options.output, options.fps, record)
    print(f"\n{figures_table(results)}\n\nwritten: {', '.join(map(str, files))}")
    return 0


def requested(options: argparse.Namespace, loaded: Any) -> Any:
    """The request that the options make, filled in for a demo model.

    Raises:
        ValueError: no prompt for a model that is not ours.
    """
    from .running import Request

    if options.prompt is None and loaded.native is None:
        raise ValueError(f"no --prompt: {loaded.name} needs to be told what to show")
    names = ("seed", "frames", "height", "width", "steps", "guidance")
    given = {name: getattr(options, name) for name in names}
    prompt = options.prompt or loaded.native.prompt
    return Request(prompt, **given).filled(loaded)


def apply_options(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of ``dattn.apply`` that the options give; a recipe or preset keeps the others."""
    names = ("dense_steps", "dense_layers", "backend")
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def _default_pattern(loaded: Any) -> str:
    return "radial" if loaded.native is None else loaded.native.pattern


def _what(request: Any) -> str:
    parts = [f'"{request.prompt}"']
    parts += [f"{request.frames} frames"] if request.frames else []
    parts += [f"{request.steps} steps"] if request.steps else []
    return ", ".join([*parts, f"seed {request.seed}"])
