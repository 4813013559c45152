"""CogVideoX: joint attention over text and video, which its stock processor hands straight to SDPA."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dattn.processors.base import Processor, accepts_named, is_fused, project, project_out

STOCK = frozenset({"CogVideoXAttnProcessor2_0", "FusedCogVideoXAttnProcessor2_0"})
Rotary = tuple[Tensor, Tensor]


class CogVideoXProcessor(Processor):
    """Projects text and video together, rotates the video part, and attends with the layer's pattern."""

    @classmethod
    def accepts(cls, stock: Any) -> str:
        """The plain and the fused stock processor."""
        return accepts_named(stock, STOCK)

    def default(self, attn: Any) -> Any:
        """CogVideoX builds on a generic attention class, so its default is named here."""
        from diffusers.models.attention_processor import CogVideoXAttnProcessor2_0

        return CogVideoXAttnProcessor2_0()

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Video [batch, visual, channels] and text [batch, text, channels]; returns the pair."""
        layer, stock = self.layer, self.own(attn)
        text = encoder_hidden_states.shape[1]
        tokens = text + hidden_states.shape[1]
        if layer is None or not layer.active or not layer.expects(tokens, attention_mask):
            return stock(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        joint = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        query, key, value = project(attn, joint, is_fused(stock))
        if image_rotary_emb is not None:
            query, key = (_rotate(x, text, image_rotary_emb) for x in (query, key))
        out = project_out(attn, layer.attend(query, key, value))
        return out[:, text:], out[:, :text]


def _rotate(heads: Tensor, text: int, rotary: Rotary) -> Tensor:
    """[batch, heads, tokens, head_dim] with the rotary embedding on all but the first ``text`` tokens."""
    from diffusers.models import embeddings

    apply: Any = embeddings.apply_rotary_emb
    return torch.cat([heads[:, :, :text], apply(heads[:, :, text:], rotary)], dim=2)
