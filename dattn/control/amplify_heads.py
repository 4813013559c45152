"""AmplifyHeads: heads count by how much the text changes them."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

import torch
from torch import Tensor

from dattn.control.base import Call, Control, Layers, Place, Window, among, check_layers, check_window, within


class AmplifyHeads(Control):
    """Multiply the output of every head, for samples that follow the prompt: o'_h = g_h o_h.

    Unless ``weights`` are given, they are measured in the pass itself, which holds a conditional sample c and its
    unconditional one u: r_h = ‖o_h(c) − o_h(u)‖ ÷ ‖o_h(u)‖ over the queries of the picture, and
    g_h = 1 + ``strength`` · (r_h ÷ mean r − 1), for each sample on its own. So the mean of g is 1, and with strength 1
    a head that the text does not change is silent. In joint attention only queries of the picture are changed.

    Args:
        strength: from 0, nothing, to 1.
        weights: g for pairs (layer, head), counted from 0 among the layers that see text; others keep 1. Nothing is
            measured then, so that it also works where guidance branches run one after the other or not at all.
        window: the denoising steps in which it acts.
        layers: numbers among the layers that see text, or a predicate on their names; of those that are measured.

    Raises:
        ValueError: a strength out of bounds, weights that are none; in a call, layers or heads that the model does not
            have, or no unconditional samples to measure by.
    """

    def __init__(
        self,
        strength: float = 1.0,
        weights: Mapping[tuple[int, int], float] | None = None,
        window: Window = 1.0,
        layers: Layers = None,
    ) -> None:
        if not isinstance(strength, int | float) or not 0 <= strength <= 1:
            raise ValueError(f"strength={strength!r}: 0 (off) to 1")
        if weights is not None and (not weights or not all(map(_is_weight, weights, weights.values()))):
            raise ValueError(f"weights={weights!r}: give factors by layer and head, such as {{(3, 0): 1.5}}")
        self.strength, self.weights = float(strength), None if weights is None else dict(weights)
        self.window, self.layers = check_window("window", window), check_layers(layers)

    def acts(self, place: Place) -> bool:
        """In the chosen layers that see text, or those that weights name."""
        if place.kind == "self" or not within(self.window, place.step, place.steps):
            return False
        if self.weights is None:
            return self.strength > 0 and among(self.layers, place)
        wrong = [layer for layer, _ in self.weights if layer >= place.count]
        if wrong:
            raise ValueError(f"weights name layer {wrong[0]}: there are {place.count} that see text, counted from 0")
        return any(layer == place.index for layer, _ in self.weights)

    def edit(self, call: Call) -> Tensor:
        """Attention with its heads multiplied."""
        output = call.attend().clone()
        factors = self._given(call) if self.weights is not None else self._measured(call, output)
        output[call.rows, :, call.place.visual] *= factors[..., None, None].to(output)
        return output

    def _given(self, call: Call) -> Tensor:
        """[heads]."""
        factors, assigned = torch.ones(call.query.shape[1], dtype=torch.float64), self.weights or {}
        for head, weight in ((head, weight) for (layer, head), weight in assigned.items() if layer == call.place.index):
            if head >= len(factors):
                raise ValueError(f"weights name head {head}: {call.place.name} has {len(factors)}, counted from 0")
            factors[head] = weight
        return factors

    def _measured(self, call: Call, output: Tensor) -> Tensor:
        """[samples that follow the prompt, heads]."""
        others = torch.ones(len(output), dtype=torch.bool, device=output.device)
        others[call.rows] = False
        conditional, unconditional = (output[rows][:, :, call.place.visual] for rows in (call.rows, others))
        if len(conditional) != len(unconditional):
            raise ValueError(
                f"AmplifyHeads measures heads where one pass holds conditional and unconditional samples, which this "
                f"has not ({len(conditional)} and {len(unconditional)}): give weights="
            )
        usual = _length(unconditional)
        if (usual == 0).all():
            raise ValueError(
                "AmplifyHeads: samples without the prompt have a text of zeros, as SDXL's have without a negative "
                "prompt, which no head can be compared with: give negative_prompt=, or weights="
            )
        change = _length(conditional - unconditional) / usual
        return 1 + self.strength * ((change / change.mean(1, keepdim=True)).nan_to_num(1) - 1)


def _length(outputs: Tensor) -> Tensor:
    """Of [samples, heads, queries, head_dim], over queries and width: [samples, heads]."""
    return torch.linalg.vector_norm(outputs.to(torch.promote_types(outputs.dtype, torch.float32)), dim=(2, 3))


def _is_weight(where: object, weight: object) -> bool:
    pair = isinstance(where, tuple) and len(where) == 2 and all(isinstance(i, int) and i >= 0 for i in where)
    return pair and isinstance(weight, int | float) and isfinite(weight)
