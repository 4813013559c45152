"""Injective linear attention: scores by subtraction instead of softmax, at a cost that grows with the tokens alone.

InLine (Han et al., NeurIPS 2024, arXiv 2412.06590). With N keys and feature map f, the weight of key j for query i is
s/N · f(qᵢ)·f(kⱼ) plus what makes the row sum to one, so that with the means k̄ of f(k) and v̄ of v

    oᵢ = f(qᵢ) · (s/N · Σⱼ f(kⱼ)ᵀ vⱼ) + (1 - s · f(qᵢ)·k̄) · v̄

Of the paper's layer this is the attention; its convolution of v is a layer with weights and belongs to a model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dattn.block_mask import MaskCache
from dattn.grid import TokenGrid
from dattn.spec import Call, TorchOperator

FEATURES = {"identity": lambda x: x, "relu": torch.relu, "exp": torch.exp}


@dataclass(frozen=True)
class InLine(TorchOperator):
    """InLine attention: linear, with weights that sum to one; for training, not for a model that was not.

    Args:
        feature: "identity", "relu" or "exp", applied to every entry of queries and keys.

    Raises:
        ValueError: another feature.
    """

    feature: str = "identity"

    def __post_init__(self) -> None:
        if self.feature not in tuple(FEATURES):
            raise ValueError(f"feature={self.feature!r}: choose one of {', '.join(FEATURES)}")

    @property
    def untuned(self) -> str:
        """Linear attention is another function."""
        return "another function than the pretrained one: fine-tune the model for it"

    def compute(self, call: Call) -> tuple[Tensor, None]:
        """There is no LSE."""
        query, key, value = call[:3]
        wide = torch.promote_types(query.dtype, torch.float32)
        feature = FEATURES[self.feature]
        q, k, v = feature(query.to(wide)), feature(key.to(wide)), value.to(wide)
        count: Tensor | int = key.shape[2]
        if call.key_mask is not None:
            kept = call.key_mask[:, None, :, None]
            k, v = k.masked_fill(~kept, 0), v.masked_fill(~kept, 0)
            count = kept.sum(2, keepdim=True).clamp_min(1)
        mean_key, mean_value = (t.sum(2, keepdim=True) / count for t in (k, v))
        out = (
            q @ (k.mT @ v) * (call.scale / count) + (1 - call.scale * (q * mean_key).sum(-1, keepdim=True)) * mean_value
        )
        return out.to(query.dtype), None

    def cost(self, grid: TokenGrid, head_dim: int, masks: MaskCache) -> float:
        """head_dim x head_dim numbers take the place of tokens x tokens."""
        return head_dim / grid.tokens
