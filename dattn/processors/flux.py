"""Flux: text and picture in one sequence, joined inside the attention in double blocks, before it in single ones."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dattn.processors.dispatched import DispatchedProcessor


class FluxProcessor(DispatchedProcessor):
    """Flux's own processor around our attention."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        """Picture [batch, visual, channels] and text [batch, text, channels] in and out, or both as one sequence."""
        text = 0 if encoder_hidden_states is None else encoder_hidden_states.shape[1]
        call = hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
        return self.run(attn, text + hidden_states.shape[1], attention_mask, None, call)
