"""Regions: a prompt for each part of the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dattn.control.base import Call, Control, Layers, Place, Window, among, check_layers, check_window, within
from dattn.control.region import Region
from dattn.control.region_attention import cross, joint, within_picture
from dattn.control.region_plan import Plan, plan
from dattn.control.region_prompts import Encoded, check_model, encode, extended


class Regions(Control):
    """Parts of the picture follow prompts of their own, beside the pipeline's, the base prompt.

    The regions' prompts become text tokens behind the base prompt's. With c_r(i) the share of token i of the picture
    that lies in region r, m_r = c_r ÷ max(1, Σ_s c_s) and β the base ratio, the picture's output is that of the map

        A = (1 − β) · Σ_r m_r ⊙ A_r + (1 − (1 − β) · Σ_r m_r) ⊙ A_base

    So regions that overlap share a token in proportion, one that no region covers follows the base prompt alone, and
    one that is covered in part follows it in part. A_r is the softmax over the tokens of text r (cross-attention) or
    over those and the picture's (joint attention). In joint attention every text's queries see that text and the
    picture, the regions' with c_r as a factor of its weights: where masks are hard, only their own part of it.

    A pattern underneath says which tokens of a picture see each other; text is always seen. Attention within the
    picture runs once, however many regions there are. Every text is asked by the tokens that follow it alone. Nothing
    of a call is kept for the next.

    Samples that follow no prompt have the regions' negative prompts in the same way, and the pipeline's own where
    a region has none; they are left alone if none has.

    Args:
        regions: prompts and where they hold.
        base_ratio: how much of the base prompt there is within them, 0 to 1.
        isolate: whether tokens of one region do not see those of another, in self-attention and in joint attention.
            Each kind of tokens then runs with its own keys alone. A static pattern runs once, on its block lists
            without the pairs of blocks that hide from each other. With a tail, and where blocks are chosen by what is
            in them, it runs once for each kind with the other keys hidden, which saves nothing: means and choices are
            of the keys that a kind sees.
        window: the denoising steps in which it acts; outside of it the model is given the base prompt alone.
        layers: numbers of layers among those of their kind, or a predicate on their names; in the others the
            picture follows the base prompt alone.

    Raises:
        ValueError: no regions, or a base ratio outside of 0 to 1. When the pipeline is called: a model whose text
            tokens have positions, reference pictures, or other controls given before it where attention is joint or
            isolated.
    """

    def __init__(
        self,
        regions: Sequence[Region],
        base_ratio: float = 0.2,
        isolate: bool = False,
        window: Window = 1.0,
        layers: Layers = None,
    ) -> None:
        self.regions = tuple(regions)
        if not self.regions or not all(isinstance(region, Region) for region in self.regions):
            raise ValueError(
                f'regions={regions!r}: give one or more, such as Region("a red circle", box=(0, 0, 0.5, 1))'
            )
        if not isinstance(base_ratio, int | float) or not 0 <= base_ratio <= 1:
            raise ValueError(
                f"base_ratio={base_ratio!r}: from 0, the regions' prompts alone, to 1, the base prompt alone"
            )
        self.base_ratio, self.isolate = float(base_ratio), isolate
        self.window, self.layers = check_window("window", window), check_layers(layers)
        self.start()

    def start(self) -> None:
        """A denoising call starts: no prompt is encoded, no mask resized."""
        self._encoded: tuple[Encoded, Encoded] | None = None
        self._plans: dict[Any, Plan] = {}
        self._base = 0  # text tokens of the base prompt; 0 where no others are there

    @property
    def _opposed(self) -> list[int]:
        """The regions that have a negative prompt."""
        return [i for i, region in enumerate(self.regions) if region.negative is not None]

    def inputs(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """The model's arguments with the regions' prompts behind the base prompt."""
        text = arguments.get("encoder_hidden_states")
        self._base, stage = 0, self.stage
        if not within(self.window, stage.step, stage.steps) or not isinstance(text, Tensor):
            return arguments
        rows = stage.rows(len(text))
        if rows.start == rows.stop and not self._opposed:
            return arguments
        if self._encoded is None:
            check_model(stage.pipeline, arguments)
            self._encoded = self._encode()
        self._base = text.shape[1]
        return extended(arguments, rows, *self._encoded)

    def _encode(self) -> tuple[Encoded, Encoded]:
        """Prompts and negative prompts; where there is none of these, something of the same length."""
        follow = [region.prompt for region in self.regions]
        avoid = [region.prompt if region.negative is None else region.negative for region in self.regions]
        found, mask = encode(self.stage, [*follow, *avoid])
        masks = (None, None) if mask is None else mask.chunk(2)
        one, other = found.chunk(2)
        return (one, masks[0]), (other, masks[1])

    def acts(self, place: Place) -> bool:
        """Wherever text is seen, for there is more than the model knows of; elsewhere to isolate."""
        apart = self.isolate and place.grid.tokens == place.grid.visual and among(self.layers, place)
        return self._base > 0 and (place.kind != "self" or apart)

    def edit(self, call: Call) -> Tensor:
        """Attention with every part of the picture following its own texts."""
        if call.place.kind != "cross" and not call.runs.alone:
            raise ValueError(
                "Regions after other controls: it takes attention within the picture apart, which they would not know; "
                "give it first"
            )
        follows = torch.zeros(len(call.query), dtype=torch.bool)
        follows[call.rows] = True
        found, order = [], []
        for rows, acting in ((follows, range(len(self.regions))), (~follows, self._opposed)):
            if rows.any():
                order.append(rows.nonzero().flatten())
                own = call if rows.all() else call.take(order[-1].to(call.query.device))
                own = replace(own, rows=slice(0, len(order[-1]) if rows is follows else 0))
                found.append(self._edit(own, self._plan(call, tuple(acting))))
        return found[0] if len(found) == 1 else torch.cat(found)[torch.cat(order).argsort().to(call.query.device)]

    def _edit(self, call: Call, plan: Plan) -> Tensor:
        """``edit`` for samples that follow the same texts."""
        if call.place.kind == "self":
            return within_picture(call, plan)[0]
        return (cross if call.place.kind == "cross" else joint)(call, plan, self._texts(call))

    def _plan(self, call: Call, acting: tuple[int, ...]) -> Plan:
        """The plan for a place; made once in a denoising call."""
        grid, here = call.place.grid, among(self.layers, call.place)
        place = grid.shape, acting, here, call.value.dtype, call.value.device
        if place not in self._plans:
            covers = torch.stack([region.cover(grid).to(call.value.device) for region in self.regions])
            weight = (1 - self.base_ratio) * here
            self._plans[place] = plan(covers, acting, weight, self.isolate and here, call.value)
        return self._plans[place]

    def _texts(self, call: Call) -> list[Tensor]:
        """The positions among the keys of the base prompt and of every region's.

        Raises:
            ValueError: keys that are neither text nor picture.
        """
        text, place = call.place.text, call.place
        if place.kind == "joint" and text.stop - text.start + place.grid.visual != call.key.shape[2]:
            raise ValueError("Regions beside reference pictures: it knows sequences of text and one picture")
        every = torch.arange(text.start, text.stop, device=call.key.device)
        return [every[: self._base], *every[self._base :].chunk(len(self.regions))]
