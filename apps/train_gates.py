"""``dattn train-gates``: let a pipeline teach gates that choose blocks, or tell which heads need all tokens."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from .arguments import Parser, add_model_options, at_least, writable_folder

if TYPE_CHECKING:
    from .loading import Loaded
    from .running import Request

EXAMPLES = """\
  dattn train-gates blocks --prompts "a red circle moving right" "a blue square moving up" --output gate.safetensors
  dattn train-gates heads --local "Radial(block_size=64)" --dense 0.5 --output heads.json

The pipeline makes the prompts by stock attention; gates learn from what its layers see. Afterwards:
  dattn generate --pattern "LearnedGate('gate.safetensors', topk=0.2)"
  dattn generate --pattern heads.json"""


def parser() -> Parser:
    """The command's options."""
    p = Parser("train-gates", "Train gates of attention while a pipeline runs; no data are needed.", EXAMPLES)
    p.add_argument("kind", choices=("blocks", "heads"), help="SeerAttention's blocks or DuoAttention's heads")
    p.add_argument("--prompts", nargs="+", metavar="PROMPT", help="(default: the demo model's)")
    p.add_argument("--rounds", type=at_least(1), default=1, help="times that every prompt is made (default: 1)")
    p.add_argument("--frames", type=at_least(1), help="of a clip (default: the demo's, four times its native length)")
    p.add_argument("--height", type=at_least(1), help="pixels")
    p.add_argument("--width", type=at_least(1), help="pixels")
    p.add_argument("--steps", type=at_least(1), help="denoising steps (default: the model's)")
    p.add_argument("--seed", type=at_least(0), default=0, help="of the first clip (default: %(default)s)")
    p.add_argument("--learning_rate", type=float, help="(default: 1e-3 for blocks, 0.02 for heads)")
    p.add_argument(
        "--block_size", type=int, choices=(16, 32, 64, 128), default=64, help="of blocks (default: %(default)s)"
    )
    p.add_argument(
        "--target", choices=("largest", "total"), default="largest", help="of blocks' weights (default: %(default)s)"
    )
    p.add_argument("--local", default="Radial(block_size=64)", metavar="PATTERN", help="(default: %(default)s)")
    p.add_argument("--dense", type=float, default=0.5, help="share of heads that stay dense (default: %(default)s)")
    p.add_argument("--penalty", type=float, default=0.5, help="of heads that stay dense (default: %(default)s)")
    p.add_argument("--gradient_checkpointing", action="store_true", help="heads: less memory, a third more time")
    p.add_argument("--output", type=Path, help="(default: gate.safetensors for blocks, heads.json for heads)")
    add_model_options(p)
    return p


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    options = parser().parse_args(argv)
    if not 0 <= options.dense <= 1:
        raise ValueError(f"--dense {options.dense}: a share of the heads, from 0 to 1")
    blocks = options.kind == "blocks"
    options.output = options.output or Path("gate.safetensors" if blocks else "heads.json")
    ending = ".safetensors" if blocks else ".json"
    if options.output.suffix != ending:
        raise ValueError(f"--output {options.output}: {options.kind} are written as {ending}; give such a name")
    if options.learning_rate is None:
        options.learning_rate = 1e-3 if blocks else 0.02
    if not options.learning_rate > 0:
        raise ValueError(f"--learning_rate {options.learning_rate}: above 0")
    writable_folder(options.output.parent)
    from .loading import load
    from .running import Request

    loaded = load(options.model, options.device, options.dtype, options.lora)
    if len(loaded.denoisers) != 1:
        raise ValueError(f"{loaded.name} has {len(loaded.denoisers)} models that take turns: gates are for one")
    prompts = options.prompts or ([loaded.native.prompt] if loaded.native else [])
    if not prompts:
        raise ValueError("--prompts is missing: give a few prompts such as you will use")
    request = Request(prompts[0], options.seed, options.frames, options.height, options.width, options.steps).filled(
        loaded
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    (train_blocks if blocks else train_heads)(loaded, request, prompts, options)
    return 0


def train_blocks(loaded: Loaded, request: Request, prompts: Sequence[str], options: argparse.Namespace) -> None:
    """Train a gate for every layer and write them."""
    import dattn

    from .gates.blocks import TeachBlocks
    from .gates.progress import run_along

    progress = _progress(request, prompts, options)
    teach = TeachBlocks(options.block_size, options.target, options.learning_rate, progress)
    latest = lambda: f"loss {fmean(gate.losses[-1] for gate in teach.gates.values()):.4f}"
    with dattn.apply(loaded.pipe, teach, backend=options.backend):
        run_along(loaded, request, prompts, options.rounds, progress, latest)
    teach.save(options.output)
    for layer, gate in sorted(teach.gates.items()):
        part = max(1, len(gate.losses) // 10)
        print(f"layer {layer}: loss {fmean(gate.losses[:part]):.4f} at first, {fmean(gate.losses[-part:]):.4f} at last")
    pattern = f"LearnedGate({str(options.output)!r}, topk=0.2, block_size={options.block_size})"
    print(f'written: {options.output}; use it with --pattern "{pattern}"')


def train_heads(loaded: Loaded, request: Request, prompts: Sequence[str], options: argparse.Namespace) -> None:
    """Train a gate for every head and write a recipe."""
    import dattn
    from dattn.registry import pattern_from_string

    from .gates.heads import HeadGates, Mixed
    from .gates.progress import run_along

    (model,) = loaded.denoisers
    local = pattern_from_string(options.local)
    gates = HeadGates(options.learning_rate, options.penalty)
    progress = _progress(request, prompts, options)
    if options.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    latest = lambda: f"error {gates.errors[-1]:.4f}, mean gate {gates.mean().item():.2f}"
    with dattn.apply(loaded.pipe, Mixed(local, gates), backend=options.backend), gates.learning(model):
        run_along(loaded, request, prompts, options.rounds, progress, latest)
    for layer, row in sorted(gates.values.items()):
        print(f"layer {layer}: {' '.join(f'{gate:.2f}' for gate in row.tolist())}")
    _write_recipe(loaded, request, gates.recipe(local, options.dense), options)
    print(f"written: {options.output}; use it with --pattern {options.output}")


def _progress(request: Request, prompts: Sequence[str], options: argparse.Namespace) -> Any:
    from .gates.progress import Progress

    return Progress((request.steps or 50) * len(prompts) * options.rounds)


def _write_recipe(loaded: Loaded, request: Request, attention: Any, options: argparse.Namespace) -> None:
    """The recipe, with the grid of the clips that were made."""
    import dattn

    from .running import run_to_the_grid

    with dattn.apply(loaded.pipe, attention, dense_steps=0, dense_layers=0, backend=options.backend) as handle:
        run_to_the_grid(loaded, request)
        handle.save_recipe(options.output)
