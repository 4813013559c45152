"""SplitContext: parts of the prompt for parts of the picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dattn.control.base import Call, Control, Layers, Place, Window, among, check_layers, check_window, within
from dattn.control.hiding import hide
from dattn.control.parts import Where, part
from dattn.control.words import Phrase


class SplitContext(Control):
    """One part of the text for queries inside a mask, another elsewhere (split cross-attention: Yan et al.,
    "ColorizeDiffusion", 2025).

    o_i = Σ_r w_ir o_ir, where o_ir sees the text tokens of part r, not those of the others, and w_ir is how much of
    token i the mask of r covers, times 1 − ``merge``; what is left to 1 goes to the last part. Masks that overlap share
    a token. Text tokens in no part (special ones, padding, other words) are seen by all. In joint attention it is
    queries of the picture that are told apart; they see all of the picture. Attention runs once for each part and once
    more.

    Args:
        masks: for each part but the last a mask, soft ones as they are, a box (left, top, right, bottom) in fractions
            of the picture, or a track of boxes.
        context: the parts, one more than masks: words of the prompt, or positions of text tokens, as where the tokens
            are of a picture. The last is for elsewhere.
        merge: how much of the last part is mixed in inside the masks, from 0 to 1.
        window: the denoising steps in which it acts.
        layers: numbers among the layers that see text, or a predicate on their names.

    Raises:
        ValueError: another number of parts, or something that is no mask or share.
    """

    def __init__(
        self,
        masks: Sequence[Where],
        context: Sequence[Phrase],
        merge: float = 0.0,
        window: Window = 1.0,
        layers: Layers = None,
    ) -> None:
        if not masks or len(context) != len(masks) + 1 or isinstance(context, str):
            raise ValueError(
                f"context={context!r}: {len(masks)} masks need {len(masks) + 1} parts, the last for elsewhere"
            )
        if not isinstance(merge, int | float) or not 0 <= merge <= 1:
            raise ValueError(f"merge={merge!r}: a share of the last part inside the masks, 0 to 1")
        self.masks = [part(f"masks[{i}]", mask) for i, mask in enumerate(masks)]
        self.context, self.merge = list(context), float(merge)
        self.window, self.layers = check_window("window", window), check_layers(layers)

    def acts(self, place: Place) -> bool:
        """In cross-attention and joint attention."""
        return place.kind != "self" and among(self.layers, place) and within(self.window, place.step, place.steps)

    def edit(self, call: Call) -> Tensor:
        """Attention, and for samples that follow the prompt that of each part where it belongs."""
        output = call.attend().clone()
        shares, hidden = self.once(call, lambda: (self._shares(call), self._hidden(call)))
        visual = call.place.visual
        mixed = torch.zeros_like(output[:, :, visual])
        for share, keys in zip(shares, hidden, strict=True):
            mixed += share[:, None] * hide(call, keys).attend()[:, :, visual]
        output[call.rows, :, visual] = mixed[call.rows]
        return output

    def _shares(self, call: Call) -> Tensor:
        """How much each part counts for each query of the picture: [parts, visual]."""
        covers = torch.stack([mask.cover(call.place.grid) for mask in self.masks])
        covers = covers / covers.sum(0).clamp(min=1) * (1 - self.merge)
        return torch.cat([covers, 1 - covers.sum(0, keepdim=True)]).to(call.value)

    def _hidden(self, call: Call) -> Tensor:
        """Which keys are of other parts: bool [parts, batch, keys]."""
        own = torch.zeros(len(self.context), len(call.key), call.key.shape[2], dtype=torch.bool)
        for row, prompt in self.stage.prompt_of(call.rows):
            for number, phrase in enumerate(self.context):
                own[number, row, self.stage.keys(phrase, prompt, call.place.text)] = True
        return (own.any(0) & ~own).to(call.key.device)
