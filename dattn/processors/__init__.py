"""Diffusers attention processors: small ones of our own, and a wrapper around a model's own."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dattn.processors.base import Processor, unwrap
from dattn.processors.cogvideox import CogVideoXProcessor
from dattn.processors.flux import FluxProcessor
from dattn.processors.layer import Layer
from dattn.processors.unet import UNetProcessor
from dattn.processors.wan import WanProcessor

__all__ = ["PROCESSORS", "Layer", "Processor", "register_with_guidance", "unwrap"]

PROCESSORS: dict[str, type[Processor]] = {
    cls.__name__: cls for cls in (WanProcessor, CogVideoXProcessor, FluxProcessor, UNetProcessor)
}


def register_with_guidance() -> None:
    """Tell Diffusers' guidance hooks what skipping one of our processors returns; they look it up by class."""
    from diffusers.hooks._helpers import AttentionProcessorMetadata, AttentionProcessorRegistry

    for cls in PROCESSORS.values():
        skip: Any = _skip_joint if cls in (CogVideoXProcessor, FluxProcessor) else _skip
        AttentionProcessorRegistry.register(cls, AttentionProcessorMetadata(skip_processor_output_fn=skip))


def _skip(module: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden_states


def _skip_joint(
    module: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor | tuple[Tensor, Tensor]:
    return hidden_states if encoder_hidden_states is None else (hidden_states, encoder_hidden_states)
