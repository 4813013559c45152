"""Wan: the model's own processor, with our backend at the heart of it."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from dattn.processors.base import Processor
from dattn.processors.dispatch import attending, dattn_backend
from dattn.processors.layer import Layer


class WanProcessor(Processor):
    """Runs the model's own processor: on our backend where the layer is active, on the user's elsewhere.

    Projections, norms, rotary embedding, LoRA and fused weights are therefore the model's. A shallow copy of the
    stock processor carries our backend, so the stock one is never written to.
    """

    def __init__(self, layer: Layer | None = None, stock: Any = None) -> None:
        super().__init__(layer)
        self._sparse: Any = None
        if stock is not None:
            self.adopt(stock)

    @classmethod
    def accepts(cls, stock: Any) -> str:
        """Any plain processor on the dispatcher."""
        if isinstance(stock, nn.Module) or not hasattr(stock, "_attention_backend"):
            return f"its processor {type(stock).__name__} does not use Diffusers' attention dispatcher"
        return ""

    def adopt(self, stock: Any) -> None:
        """Stand in for another processor of the model's own."""
        self.stock = stock
        self._sparse = copy.copy(stock)
        self._sparse._attention_backend = dattn_backend()

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
        layer, stock = self.layer, self.own(attn)
        if layer is None or not layer.active:
            return stock(attn, *call)
        if not layer.expects(hidden_states.shape[1], attention_mask, encoder_hidden_states):
            return stock(attn, *call)
        with attending(layer):
            return self._sparse(attn, *call)
