"""Wan: video tokens in self-attention, nothing else."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dattn.processors.dispatched import DispatchedProcessor


class WanProcessor(DispatchedProcessor):
    """Wan's own processor around our attention."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """[batch, tokens, channels] in and out."""
        call = hidden_states, encoder_hidden_states, attention_mask, rotary_emb
        return self.run(attn, hidden_states.shape[1], attention_mask, encoder_hidden_states, call)
