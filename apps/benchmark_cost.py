"""``dattn bench cost``: what ``dattn tune`` expects of each candidate's time in Wan 2.1 14B, and what a step takes.

The weights are random: a choice made in them says nothing, but times are those of the real shapes. A step with dense
attention is watched as ``dattn tune`` does it, once more for what is compiled at first; then each candidate that was
faster than dense attention serves all layers of a step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from dattn.apps.benchmark_model import CLIPS, CUDNN, WAN_14B, build, denoising, random_inputs
from dattn.apps.table import table
from dattn.apps.timing import DEVICE, gpu_needed

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel

    from dattn.spec import Spec
    from dattn.tuning.watch import Notes

NATIVE = ("480p", "720p")


@dataclass(frozen=True)
class Cost:
    """A candidate in all layers of a step; seconds of the whole step, and ``off``: expected ÷ measured - 1."""

    clip: str
    tokens: int
    layers: int
    pattern: str
    dense_s: float
    expected_s: float
    measured_s: float
    off: float


def cost(options: Any, save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Expected and measured seconds of the candidates, a clip at a time.

    Raises:
        ValueError: there is no CUDA device.
    """
    gpu_needed("cost")
    transformer = build(options.layers, WAN_14B, DEVICE)
    transformer.set_attention_backend(CUDNN)
    rows: list[dict[str, Any]] = []
    for clip in options.clips or NATIVE:
        for row in costs(transformer, clip, CLIPS[clip], options.repeats, options.patterns):
            rows.append(asdict(row))
            print(table(list(rows[-1]), [tuple(rows[-1].values())]), flush=True)
            save({"cost": rows})
    return {"cost": rows}


def costs(
    transformer: WanTransformer3DModel,
    clip: str,
    latent: tuple[int, int, int],
    repeats: int,
    texts: Sequence[str] | None = None,
) -> Iterator[Cost]:
    """Of each candidate that is faster than dense attention; ``texts`` in place of those that ``dattn tune`` has."""
    from dattn.grid import TokenGrid
    from dattn.registry import pattern_from_string
    from dattn.tuning.candidates import DENSE, candidates

    grid = TokenGrid(latent[0], latent[1] // 2, latent[2] // 2)
    specs = {text: pattern_from_string(text) for text in dict.fromkeys((DENSE, *(texts or candidates(grid))))}
    call = denoising(transformer, random_inputs(transformer, latent))
    seconds, notes = _watched(transformer, call, specs)
    expected = _expected(specs, seconds, notes)
    dense = _seconds_under(transformer, call, specs[DENSE], repeats)
    for name, expects in expected.items():
        measured = _seconds_under(transformer, call, specs[name], repeats)
        yield Cost(
            clip=clip,
            tokens=grid.tokens,
            layers=len(transformer.blocks),
            pattern=name,
            dense_s=dense,
            expected_s=expects,
            measured_s=measured,
            off=expects / measured - 1,
        )


def _watched(
    transformer: WanTransformer3DModel, call: Callable[[], object], specs: dict[str, Spec]
) -> tuple[float, Notes]:
    """Seconds of a step with dense attention, and what was noted in it; the second of two, for what compiles."""
    import dattn
    from dattn.tuning.watch import Watch, Watching

    for _ in range(2):
        watching = Watching(specs, (0.0,), stand_in=next(iter(specs)))
        with dattn.apply(transformer, Watch(watching)) as handle:
            handle.step(0, 1)
            seconds = _seconds(call)
    return seconds - watching.notes.spent, watching.notes


def _expected(specs: dict[str, Spec], seconds: float, notes: Notes) -> dict[str, float]:
    """Seconds of a step by candidate, of those that were looked at, as ``dattn tune`` expects them."""
    from dattn.tuning.choose import uniform
    from dattn.tuning.study import LOSSES, figures_of
    from dattn.tuning.tables import Measured

    nothing = dict.fromkeys(LOSSES, 0.0)  # no loss was looked for
    figures = json.loads(json.dumps(figures_of(notes)))  # as a study reads them: layers are text
    parts = [{"layers": [row["layer"] for row in figures["rows"]], "change": [0.0]}]
    measured = Measured(tuple(specs), next(iter(specs)), [figures | {"seconds": seconds, "parts": parts}], [nothing])
    tables = measured.tables(LOSSES[0])
    found = uniform(tables.places, [number for number, _ in tables.keys])
    served = {tables.names[one.heads[0][0]]: tables.other + one.seconds for one in found}
    return {name: expects for name, expects in served.items() if name != tables.names[0]}


def _seconds_under(transformer: WanTransformer3DModel, call: Callable[[], object], spec: Spec, repeats: int) -> float:
    """The median of a few steps, after one that warms up."""
    import dattn

    with dattn.apply(transformer, spec) as handle:
        handle.step(0, 1)
        return median([_seconds(call) for _ in range(repeats + 1)][1:])


def _seconds(call: Callable[[], object]) -> float:
    """Of a call, all of it done."""
    import torch

    began = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began
