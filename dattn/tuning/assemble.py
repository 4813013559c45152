"""A choice as a pattern: one for each range of steps, layer and group of heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dattn.operators.per_head import PerHead
from dattn.operators.per_layer import PerLayer
from dattn.operators.per_step import PerStep
from dattn.patterns import Dense
from dattn.spec import Spec

Heads = tuple[Spec, ...]


def assembled(chosen: Mapping[tuple[int, int], Heads], begins: Sequence[float]) -> Spec:
    """The pattern that does what was chosen.

    Args:
        chosen: (range, layer) -> what each head has; a layer that is not named is dense, a range goes on as the one
            before.
        begins: of the ranges, as shares of the steps; the first is 0.
    """
    steps: dict[float, Spec] = {}
    for number in sorted({number for number, _ in chosen}):
        spec = _of_layers({layer: heads for (n, layer), heads in chosen.items() if n == number})
        if not steps or spec != list(steps.values())[-1]:
            steps[begins[number] or 0] = spec
    return steps[0] if len(steps) == 1 else PerStep(steps)


def _of_layers(chosen: Mapping[int, Heads]) -> Spec:
    """One for all layers where they have the same."""
    layers: dict[Spec, list[int]] = {}
    for layer, heads in sorted(chosen.items()):
        layers.setdefault(_of_heads(heads), []).append(layer)
    layers.pop(Dense(), None)
    if not layers:
        return Dense()
    if len(layers) == 1 and len(chosen) == len(next(iter(layers.values()))):
        return next(iter(layers))
    return PerLayer({tuple(numbers): spec for spec, numbers in layers.items()})


def _of_heads(heads: Heads) -> Spec:
    """One for all heads where they have the same; else as few equal groups of neighbours as there can be."""
    for groups in range(1, len(heads) + 1):
        size = len(heads) // groups
        if len(heads) % groups == 0 and all(heads[h] == heads[h // size * size] for h in range(len(heads))):
            some = heads[::size]
            return some[0] if groups == 1 else PerHead(some)
    raise AssertionError("every head is a group of its own at last")
