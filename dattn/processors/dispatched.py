"""Models on Diffusers' dispatcher: the model's own processor, with our backend at the heart of it."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from dattn.processors.base import Processor
from dattn.processors.dispatch import attending, dattn_backend
from dattn.processors.layer import Layer


class DispatchedProcessor(Processor):
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

    def run(self, attn: Any, tokens: int, mask: Tensor | None, context: Tensor | None, call: tuple[Any, ...]) -> Any:
        """The model's own processor on ``call``, for a sequence of ``tokens``.

        ``mask`` and ``context`` are what a pattern could not honour, see ``Layer.expects``.
        """
        layer, stock = self.layer, self.own(attn)
        if layer is None or not layer.active or not layer.expects(tokens, mask, context):
            return stock(attn, *call)
        with attending(layer):
            return self._sparse(attn, *call)
