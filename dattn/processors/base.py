"""What every processor of ours does: hold the model's own one, and step aside for it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dattn.processors.layer import Layer


class Processor:
    """An attention processor that runs a layer's pattern, or else the model's own processor.

    Without a layer (Diffusers sometimes builds a processor from the class of the one in place) it is the
    module's default processor. The backend and parallel settings that Diffusers keeps on a processor are those
    of the model's own one, so setting them works before and after ``apply``.

    Args:
        layer: the layer it serves.
        stock: the model's own processor.
    """

    def __init__(self, layer: Layer | None = None, stock: Any = None) -> None:
        self.layer = layer
        self.stock = stock

    @classmethod
    def accepts(cls, stock: Any) -> str:
        """Why a processor cannot be stood in for; ``""`` if it can."""
        raise NotImplementedError

    def adopt(self, stock: Any) -> None:
        """Stand in for another processor of the model's own."""
        self.stock = stock

    def own(self, attn: Any) -> Any:
        """The model's own processor; the default one of the module's class where there is none."""
        if self.stock is None:
            self.adopt(self.default(attn))
        return self.stock

    def default(self, attn: Any) -> Any:
        """The processor that the module's class starts with."""
        return type(attn)._default_processor_cls()

    @property
    def _attention_backend(self) -> Any:
        return self.stock._attention_backend

    @_attention_backend.setter
    def _attention_backend(self, backend: Any) -> None:
        self.stock._attention_backend = backend
        self.adopt(self.stock)

    @property
    def _parallel_config(self) -> Any:
        return self.stock._parallel_config

    @_parallel_config.setter
    def _parallel_config(self, config: Any) -> None:
        self.stock._parallel_config = config
        self.adopt(self.stock)


def unwrap(processor: Any) -> Any:
    """The model's own processor behind one of ours; any other as it is."""
    while isinstance(processor, Processor):
        processor = processor.stock
    return processor


def project(attn: Any, hidden: Tensor, fused: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value [batch, heads, tokens, head_dim] of [batch, tokens, channels], normed per head."""
    parts = attn.to_qkv(hidden).chunk(3, dim=-1) if fused else (attn.to_q(hidden), attn.to_k(hidden), attn.to_v(hidden))
    query, key, value = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in parts)
    query = query if attn.norm_q is None else attn.norm_q(query)
    key = key if attn.norm_k is None else attn.norm_k(key)
    return query, key, value


def project_out(attn: Any, hidden: Tensor) -> Tensor:
    """[batch, heads, tokens, head_dim] through the output projection: [batch, tokens, channels]."""
    return attn.to_out[1](attn.to_out[0](hidden.transpose(1, 2).flatten(2)))


def is_fused(processor: Any) -> bool:
    """Whether a stock processor reads the fused projections."""
    return type(processor).__name__.startswith("Fused")


def accepts_named(stock: Any, names: frozenset[str]) -> str:
    """``""`` if the class of ``stock`` is one of ``names``, otherwise why not."""
    name = type(stock).__name__
    if name in names:
        return ""
    return f"its processor {name} does more than plain attention; known: {', '.join(sorted(names))}"
