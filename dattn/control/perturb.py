"""Perturb: guidance away from what the model says when attention in some of its heads is made worse."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from dattn.control.base import Call, Control, Layers, Place, Window, among, check_layers, check_window, within
from dattn.control.merging import logits_in_parts

Heads = Sequence[int] | Sequence[Sequence[int]] | Mapping[int, Sequence[int]] | None
"""Numbers of heads in every chosen layer, or pairs (layer, head), or the heads of each layer; None is all."""


class Perturb(Control):
    """Go away from a prediction made with worse attention: out + w (out − out_perturbed), in a second forward pass.

    In that pass attention of the chosen heads gives (1 − u) o + u o', and o' is by ``kind``:

    * ``"identity"``: the token's own value (PAG: Ahn et al., "Self-Rectifying Diffusion Sampling with
      Perturbed-Attention Guidance", 2024).
    * ``"uniform"``: the mean of the values; what the model's mask alone would give.
    * ``"mean_query"``: attention of the mean of the picture's queries (SEG, blurred without end: Hong, "Smoothed Energy
      Guidance", 2024).
    * ``"argmax"``: the value of the key with the largest logit.

    Interpolating by u, head by head, makes them SoftPAG, SoftUG, SoftSEG and SoftMG (Ahn et al., "Where and How to
    Perturb", 2025). All are over all keys, also where a sparse pattern attends: u fades from the pattern to them.

    Under classifier-free guidance only the conditional branch is perturbed, and w (c − c_perturbed) is added to both
    branches. The guidance scale s of a pipeline cannot tell the shift: u + s (c − u) becomes u + s (c − u) +
    w (c − c_perturbed) whatever s is, and wherever the pipeline keeps it. Pipelines that then rescale the prediction to
    the size of the conditional one rescale to the size of the shifted one. A branch that runs by itself costs one more
    pass where it is conditional and none where not; branches in one batch are run again together.

    Several of them add up one after the other, each from what the one before it leaves.

    Args:
        kind: what attention becomes.
        strength: u, from 0 to 1.
        scale: w, 0 or more.
        heads: numbers of heads in every chosen layer, pairs (layer, head), or {layer: heads}; None is all.
        layers: numbers of self-attention or joint layers in execution order, or a predicate on their names; None is
            all. Where ``heads`` names layers it is left out.
        window: the denoising steps in which it acts; all of them, as in the papers.
        spare_text: whether in joint attention only queries of the picture are perturbed.

    Raises:
        ValueError: an argument out of bounds; in a call, layers or heads that the model does not have.
    """

    def __init__(
        self,
        kind: str = "identity",
        strength: float = 1.0,
        scale: float = 3.0,
        heads: Heads = None,
        layers: Layers = None,
        window: Window = 1.0,
        spare_text: bool = True,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r}: choose {', '.join(KINDS)}")
        if not _is_number(strength) or not 0 <= strength <= 1:
            raise ValueError(
                f"strength={strength!r}: 0 leaves attention as it is, 1 replaces it; give a number between"
            )
        if not _is_number(scale) or scale < 0:
            raise ValueError(f"scale={scale!r}: give a number, 0 for no guidance or more, such as 3.0")
        self.kind, self.strength, self.scale, self.spare_text = kind, strength, scale, spare_text
        self.heads, self.layers = _by_layer(heads), check_layers(layers)
        if layers is not None and self.heads is not None and None not in self.heads:
            raise ValueError(f"heads={heads!r} names its layers: leave layers={layers!r} out")
        self.window = check_window("window", window)
        self._perturbing, self._reached = False, set[int]()
        self._shift: tuple[tuple[int, int], Tensor] | None = None  # the call and the step that it is of

    def removed(self) -> None:
        """Forget the last call."""
        self._shift = None

    def of(self, pairs: Sequence[Sequence[int]]) -> Perturb:
        """The same for other heads, by layer and head."""
        return Perturb(self.kind, self.strength, self.scale, pairs, None, self.window, self.spare_text)

    def acts(self, place: Place) -> bool:
        """In the second pass, in self-attention and joint attention."""
        chosen = place.kind != "cross" and among(self.layers, place) and self._heads_at(place.index) != []
        return self._perturbing and chosen

    def edit(self, call: Call) -> Tensor:
        """Attention with the chosen heads perturbed, in all samples: nobody looks at the unconditional ones."""
        place, count = call.place, call.query.shape[1]
        chosen = self._heads_at(place.index)
        heads = list(range(count)) if chosen is None else chosen
        if heads[-1] >= count:
            raise ValueError(f"head {heads[-1]}: layer {place.index}, {place.name}, has {count} heads, counted from 0")
        self._reached.add(place.index)
        rows = place.visual if self.spare_text else slice(0, place.grid.tokens)
        other = KINDS[self.kind](_of_heads(call, heads), rows)
        if self.strength == 1 and chosen is None and (rows.start, rows.stop) == (0, call.query.shape[2]):
            return other.expand(-1, -1, rows.stop, -1).contiguous()  # nothing is left of attention: save it
        output = call.attend().clone()
        output[:, heads, rows] = output[:, heads, rows].lerp(other, self.strength)
        return output

    def guided(self, output: Tensor, again: Callable[[], Tensor]) -> Tensor:
        """The output of either branch, shifted away from the perturbed conditional one."""
        stage = self.stage
        if not within(self.window, stage.step, stage.steps):
            return output
        rows, now = stage.rows(len(output)), (stage.calls, stage.step)
        led_from = stage.branch.startswith("uncond") or stage.texts[0].weaker
        if rows.start < rows.stop and not led_from:
            self._shift = now, self.scale * (output - self._perturbed(again))[rows]
        if self._shift is None or self._shift[0] != now:
            raise ValueError("the unconditional branch came before the conditional one: run them the other way round")
        shift = self._shift[1]
        if len(output) % len(shift):
            raise ValueError(f"{len(shift)} of {len(output)} samples follow a prompt: guide by one or two branches")
        return output + torch.cat([shift] * (len(output) // len(shift)))

    def _perturbed(self, again: Callable[[], Tensor]) -> Tensor:
        """The second pass, in which every layer that was asked for is reached."""
        self._perturbing, self._reached = True, set()
        try:
            output = again()
        finally:
            self._perturbing = False
        missing = self._named() - self._reached
        if missing or not self._reached:
            raise ValueError(
                f"layers {sorted(missing) or self.layers}: the model has no self-attention or joint attention there; "
                "print(handle.report()) lists its layers"
            )
        return output

    def _named(self) -> set[int]:
        """The layers that were asked for by number."""
        by_number = [] if callable(self.layers) else self.layers or []
        return {*by_number, *(layer for layer in self.heads or () if layer is not None)}

    def _heads_at(self, layer: int) -> list[int] | None:
        """The heads of a layer, in order; None is all."""
        return None if self.heads is None else self.heads.get(layer, self.heads.get(None, []))


def _identity(call: Call, rows: slice) -> Tensor:
    return call.value[:, :, rows]


def _uniform(call: Call, rows: slice) -> Tensor:
    return _of_one_query(call, torch.zeros_like(call.query[:, :, :1]), rows)


def _mean_query(call: Call, rows: slice) -> Tensor:
    return _of_one_query(call, call.query[:, :, call.place.visual].mean(2, keepdim=True), rows)


def _argmax(call: Call, rows: slice) -> Tensor:
    logits = logits_in_parts(call.query[:, :, rows], call.key, call.scale, _mask_of(call, rows))
    best = torch.cat([part.argmax(-1) for part in logits], 2)
    return call.value.take_along_dim(best[..., None], 2)


KINDS = {"identity": _identity, "uniform": _uniform, "mean_query": _mean_query, "argmax": _argmax}


def _of_one_query(call: Call, query: Tensor, rows: slice) -> Tensor:
    """Dense attention of one query in place of all: one row, or as many as the mask tells apart."""
    mask = _mask_of(call, rows)
    count = 1 if mask is None else mask.shape[2]
    return replace(call, query=query.expand(-1, -1, count, -1), mask=mask).aside()[0]


def _mask_of(call: Call, rows: slice) -> Tensor | None:
    """The mask of some queries."""
    return call.mask if call.mask is None or call.mask.shape[2] == 1 else call.mask[:, :, rows]


def _of_heads(call: Call, heads: list[int]) -> Call:
    """The same for some heads."""
    mask = call.mask if call.mask is None or call.mask.shape[1] == 1 else call.mask[:, heads]
    return replace(call, query=call.query[:, heads], key=call.key[:, heads], value=call.value[:, heads], mask=mask)


def _by_layer(heads: Heads) -> dict[int | None, list[int]] | None:
    """Heads by the number of their layer; those of every chosen layer under None.

    Raises:
        ValueError: none, or what are no numbers.
    """
    if heads is None:
        return None
    if isinstance(heads, Mapping):
        given: list[Any] = [(layer, head) for layer, some in heads.items() for head in some]
    else:
        given = list(heads) if isinstance(heads, Iterable) else [heads]
    pairs = [pair if isinstance(pair, Sequence) else (None, pair) for pair in given]
    if not pairs or not all(map(_is_pair, pairs)) or len({layer is None for layer, _ in pairs}) > 1:
        raise ValueError(
            f"heads={heads!r}: give numbers of heads such as [0, 3], pairs (layer, head) such as [(7, 0), (9, 3)], or "
            "{layer: heads}"
        )
    layers = {layer for layer, _ in pairs}
    return {layer: sorted({head for own, head in pairs if own == layer}) for layer in layers}


def _is_pair(pair: Sequence[Any]) -> bool:
    """Whether it is a layer, or None for all, and a head."""
    return len(pair) == 2 and (pair[0] is None or _is_index(pair[0])) and _is_index(pair[1])


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
