"""``dattn probe``: how near patterns come to dense attention inside a model, layer by layer; no clips are made of them.

The model runs with dense attention. In some steps every layer also computes the patterns on its queries, keys and
values, and notes the error of the output and the share of the attention's weight that the pattern keeps. What an
operator keeps from step to step it keeps from one probed step to the next.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from .arguments import Parser, add_model_options, at_least, writable_folder
from .table import table
from .timing import seconds

if TYPE_CHECKING:
    from torch import Tensor

    from dattn.spec import Spec

    from .loading import Loaded
    from .running import Request

EXAMPLES = """\
  dattn probe --patterns "Radial(block_size=64)" "Agent(0.75)" "TokenMerge(0.5)"
  dattn probe --patterns "Radial(block_size=64)" --tails --output outputs/tails.json
  dattn probe --model assets/models/shapes-flux --patterns "Grouped(4, 'cross')" "MultiAxis(4, 'grid')" """
COLUMNS = ("pattern", "work", "choosing", "call", "error", "kept", "worst layer")


@dataclass
class Figures:
    """What was noted of one pattern: error ‖o - dense‖ / ‖dense‖ and kept weight, a pair per layer and step.

    ``choosing`` is the time that a pattern takes to look at queries and keys, ``call`` that of its whole call, over
    that of dense attention beside it.
    """

    work: list[float] = field(default_factory=list)
    choosing: list[float] = field(default_factory=list)
    call: list[float] = field(default_factory=list)
    error: dict[int, list[float]] = field(default_factory=dict)
    kept: list[float] = field(default_factory=list)

    def row(self, name: str) -> dict[str, Any]:
        """Means over everything, and the layer whose mean error is largest."""
        layers = {layer: fmean(errors) for layer, errors in self.error.items()}
        worst = max(layers, key=lambda layer: layers[layer])
        return {
            "pattern": name,
            "work": fmean(self.work),
            "choosing": fmean(self.choosing) if self.choosing else None,
            "call": fmean(self.call),
            "error": fmean(layers.values()),
            "kept": fmean(self.kept) if self.kept else None,
            "worst layer": f"{worst} ({layers[worst]:.3f})",
            "error of layers": layers,
        }


def parser() -> Parser:
    """The command's options."""
    p = Parser("probe", "Compare patterns with dense attention inside a model.", EXAMPLES)
    p.add_argument("--patterns", nargs="+", required=True, metavar="PATTERN", help="patterns and operators")
    p.add_argument("--tails", action="store_true", help="ways to stand in for what each pattern skips as well")
    p.add_argument("--prompts", nargs="+", metavar="PROMPT", help="(default: the demo model's)")
    p.add_argument("--frames", type=at_least(1), help="of a clip (default: the demo's, four times its native length)")
    p.add_argument("--steps", type=at_least(1), default=12, help="denoising steps (default: %(default)s)")
    p.add_argument("--every", type=at_least(1), default=4, help="probe every so many steps (default: %(default)s)")
    p.add_argument(
        "--seeds", nargs="+", type=at_least(0), default=[0], metavar="SEED", help="of each prompt (default: 0)"
    )
    p.add_argument("--output", type=Path, help="write the figures to this JSON file")
    add_model_options(p)
    return p


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    options = parser().parse_args(argv)
    if options.output:
        writable_folder(options.output.parent)
    from dattn.registry import pattern_from_string, static_from_string

    from .loading import load, resolve
    from .record import provenance, write_json

    specs = {text: pattern_from_string(text) for text in options.patterns}
    if options.tails:
        for text in options.patterns:
            static_from_string(text)
    resolve(options.model)
    loaded = load(options.model, options.device, options.dtype, options.lora)
    rows = probe(loaded, specs, requests(loaded, options), options.every, options.tails)
    print(table(COLUMNS, [[row[name] for name in COLUMNS] for row in rows]))
    print(
        "\nwork: of dense attention; choosing, call: time, beside dense attention's; error: of a layer's output; "
        "kept: of the weight. Pooled keys count in work and kept"
    )
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.output, {**provenance("probe", argv), "rows": rows})
        print(f"written: {options.output}")
    return 0


def requests(loaded: Loaded, options: argparse.Namespace) -> list[Request]:
    """A clip for every prompt and seed."""
    from .running import Request

    prompts = options.prompts or [loaded.native.prompt if loaded.native else ""]
    asked = product(prompts, options.seeds)
    return [Request(prompt, seed, options.frames, steps=options.steps).filled(loaded) for prompt, seed in asked]


def probe(
    loaded: Loaded, specs: Mapping[str, Spec], requests: Sequence[Request], every: int, tails: bool = False
) -> list[dict[str, Any]]:
    """Run the pipeline for every request with every layer probed; a row of figures for each pattern.

    Args:
        loaded: a model.
        specs: patterns and operators, by the name of their row.
        requests: the clips, complete, all of as many steps.
        every: so many steps from one probed step to the next.
        tails: whether ways to stand in for what each pattern skips have rows too.
    """
    import torch

    import dattn

    found: dict[str, Figures] = {}
    probing = _probe_class()(tuple(specs.items()), requests[0].steps, every, tails, found)
    with torch.no_grad(), dattn.apply(loaded.pipe, probing):
        loaded.pipe.set_progress_bar_config(desc="probing", leave=False, disable=None)
        for request in requests:
            loaded.pipe(**request.call(loaded))
    return [figures.row(name) for name, figures in found.items()]


def _probe_class() -> Any:
    """The operator, defined on use: the command's help imports no PyTorch."""
    from dattn.attention import attend
    from dattn.operators.per_head import cost_of
    from dattn.patterns import Dense, Dynamic
    from dattn.spec import VISITED, Call, Operator

    from .tails import variants

    def _attend(call: Call, spec: Spec, state: Any, lse: bool) -> Any:
        options = {**call.options, "backend": "auto", "return_lse": lse}
        return attend(*call[:3], spec, call.grid, **options, state=state)

    @dataclass(frozen=True, eq=False)
    class Probe(Operator):
        """Dense attention that notes, every so often, what patterns would have said."""

        specs: tuple[tuple[str, Spec], ...]
        steps: int
        every: int
        tails: bool
        found: dict[str, Figures]

        def compute(self, call: Call) -> Any:
            """Output and LSE of dense attention."""
            state = call.state
            dense = partial(_attend, call, Dense(), {"masks": state["masks"]})
            full, lse = dense(True)
            step = state["calls"] = state.get("calls", -1) + 1
            if step % self.every == 0:
                _, unit = seconds(partial(dense, False), call.query)
                for name, spec in self._placed(state, step, call.grid):
                    known = state.setdefault(name, {"masks": state["masks"]})
                    known["step"] = step // self.every  # probed steps count as neighbours
                    self._note(self.found.setdefault(name, Figures()), spec, call, known, unit, full, lse)
            return full, lse

        def _note(
            self, figures: Figures, spec: Any, call: Call, known: Any, unit: float, full: Tensor, lse: Tensor
        ) -> None:
            query, key, _, grid, state = call[:5]
            if isinstance(spec, Dynamic):
                _, took = seconds(partial(spec.mask_for, query, key, grid, dict(known)), query)
                figures.choosing.append(took / unit)
            has_lse = spec.static or isinstance(spec, Dynamic)
            result, took = seconds(partial(_attend, call, spec, known, has_lse), query)
            figures.call.append(took / unit)
            output, sums = result if has_lse else (result, None)
            cost = known.pop(VISITED, None) or (cost_of(spec, grid, query.shape[-1], state["masks"]),)
            figures.work.append(sum(cost))
            error = (output - full).float().norm() / full.float().norm()
            figures.error.setdefault(state["layer"], []).append(error.item())
            if sums is not None:
                figures.kept.append((sums - lse).exp().mean().item())

        def _placed(self, state: Any, step: int, grid: Any) -> Any:
            for name, spec in self.specs:
                placed: Any = spec.at(state["layer"], state["layers"], step, self.steps).fit(grid)[0]
                yield name, placed
                if self.tails:
                    for tail in variants(placed, placed.mask(grid).block_size):
                        yield tail.title.replace(str(placed), name), tail

    return Probe
