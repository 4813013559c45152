"""UNet self-attention, which the stock processors hand straight to SDPA (or spell out, the oldest one)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dattn.processors.base import Processor, accepts_named, is_fused, project, project_out

EXPLICIT_SCALE = frozenset({"AttnProcessor", "SlicedAttnProcessor", "XFormersAttnProcessor"})
STOCK = EXPLICIT_SCALE | {"AttnProcessor2_0", "FusedAttnProcessor2_0"}


class UNetProcessor(Processor):
    """Attends with the layer's pattern; norms, residual and rescaling as the attention module asks for."""

    @classmethod
    def accepts(cls, stock: Any) -> str:
        """The stock processors that compute plain attention, whichever way."""
        return accepts_named(stock, STOCK)

    def default(self, attn: Any) -> Any:
        """SDPA, or the spelled-out processor for modules that do not scale by the head size."""
        from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

        return AttnProcessor2_0() if attn.scale_qk else AttnProcessor()

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """[batch, tokens, channels] or [batch, channels, height, width] in, the same out."""
        layer, stock = self.layer, self.own(attn)
        tokens = hidden_states.shape[1] if hidden_states.ndim == 3 else hidden_states.shape[2:].numel()
        if layer is None or not layer.active or not layer.expects(tokens, attention_mask, encoder_hidden_states):
            return stock(attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs)
        query, key, value = project(attn, _normed_tokens(attn, hidden_states, temb), is_fused(stock))
        scale = attn.scale if type(stock).__name__ in EXPLICIT_SCALE else None
        out = project_out(attn, layer.attend(query, key, value, scale))
        if hidden_states.ndim == 4:
            out = out.transpose(1, 2).reshape(hidden_states.shape)
        if attn.residual_connection:
            out = out + hidden_states
        return out / attn.rescale_output_factor


def _normed_tokens(attn: Any, hidden: Tensor, temb: Tensor | None) -> Tensor:
    """[batch, tokens, channels] after the module's spatial and group norm, where it has them."""
    if attn.spatial_norm is not None:
        hidden = attn.spatial_norm(hidden, temb)
    if hidden.ndim == 4:
        hidden = hidden.flatten(2).transpose(1, 2)
    if attn.group_norm is not None:
        hidden = attn.group_norm(hidden.transpose(1, 2)).transpose(1, 2)
    return hidden
