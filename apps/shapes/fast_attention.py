"""Wan's attention written for training a small model on a CPU: the same numbers in about 60 % of the time.

A few hundred tokens in heads of 32 are too small for the flash kernels, whose backward pass is slow there: plain
matrix products are faster. RoPE is one complex product, and norms run in the precision of their input.
For training only: a processor is no part of a saved model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_wan import WanAttention


class FastAttention:
    """Processor for self- and cross-attention; ``bias`` is added to the scores of cross-attention alone."""

    def __init__(self) -> None:
        self.bias: torch.Tensor | None = None

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Attention of ``[batch, tokens, width]`` over itself, or over ``encoder_hidden_states``."""
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        scale = (attn.inner_dim // attn.heads) ** -0.5
        query = _norm(attn.to_q(hidden_states), attn.norm_q, scale).unflatten(2, (attn.heads, -1))
        key = _norm(attn.to_k(source), attn.norm_k).unflatten(2, (attn.heads, -1))
        value = attn.to_v(source).unflatten(2, (attn.heads, -1))
        if rotary_emb is not None:
            query, key = _rotate(query, *rotary_emb), _rotate(key, *rotary_emb)
        scores = query.transpose(1, 2) @ key.permute(0, 2, 3, 1)
        if encoder_hidden_states is not None and self.bias is not None:
            scores = scores + self.bias.to(scores.dtype)
        mixed = scores.softmax(-1).to(value.dtype) @ value.transpose(1, 2)
        return attn.to_out[0](mixed.transpose(1, 2).flatten(2))


def _norm(x: torch.Tensor, norm: torch.nn.RMSNorm, scale: float = 1.0) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:], (norm.weight * scale).to(x.dtype), norm.eps)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE of ``[batch, tokens, heads, dim]`` as a complex product."""
    turn = torch.complex(cos[..., ::2].float(), sin[..., ::2].float())
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn).flatten(3).to(x.dtype)
