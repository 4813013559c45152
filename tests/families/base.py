"""How a test builds, calls and checks one model family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dattn.grid import TokenGrid

Inputs = dict[str, Any]


def random(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Normal numbers, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def ready(model: nn.Module) -> nn.Module:
    """Random weights large enough that attention matters, the same on every call."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            else:
                parameter.copy_(0.1 * noise + (0 if name.endswith("bias") else 1))
    return model.eval()


def halved(model: nn.Module) -> nn.Module:
    """The model in bfloat16, but for what ``from_pretrained`` keeps in float32."""
    kept = set(model._keep_in_fp32_modules or ())
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point() and not kept & set(name.split(".")):
            tensor.data = tensor.data.to(torch.bfloat16)
    return model


@dataclass(frozen=True)
class Family:
    """A family under test.

    Attributes:
        name: that of its file in ``dattn/adapters``, with a variant behind a dash where there are several.
        model: builds it, tiny and random; keyword arguments change its configuration.
        inputs: keyword arguments of a forward pass, from a batch size, a seed and ``latent=``. Batch 2 has texts of two
            lengths where the family pads text.
        grids: those of its self-attention layers for the default inputs, each of another number of tokens.
        other: another value of ``latent``.
        stock: parts of the names of layers that are left alone, with a part of the reason.
        cannot: what the family itself cannot do, by the name of a condition in ``tests/test_families.py``, and why.
        joint: whether text and picture share a sequence.
        compiler: a backend of ``torch.compile`` that the stock model works with.
    """

    name: str
    model: Callable[..., nn.Module]
    inputs: Callable[..., Inputs]
    grids: tuple[TokenGrid, ...]
    other: tuple[int, ...]
    stock: Mapping[str, str] = field(default_factory=dict)
    cannot: Mapping[str, str] = field(default_factory=dict)
    joint: bool = False
    compiler: str = "aot_eager"

    def run(self, model: nn.Module, batch: int = 1, seed: int = 0, **shape: object) -> Tensor:
        """The model's output without gradients."""
        with torch.no_grad():
            return self.call(model, self.inputs(batch, seed, **shape))

    def call(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """The model's output on some inputs; of a list, each sample as a row of numbers."""
        output = model(**inputs, return_dict=False)
        output = output[0] if isinstance(output, tuple) else output
        return torch.stack([sample.flatten() for sample in output]) if isinstance(output, list) else output

    def run_in(self, model: nn.Module, dtype: torch.dtype) -> Tensor:
        """Like ``run``, with inputs of another precision; tables of positions stay as they are."""
        with torch.no_grad():
            return self.call(model, {name: _cast(value, dtype) for name, value in self.inputs().items()})


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, dict):
        return {name: _cast(item, dtype) for name, item in value.items()}
    if isinstance(value, list):
        return [_cast(item, dtype) for item in value]
    if isinstance(value, tuple):
        return tuple(item if isinstance(item, Tensor) and item.ndim < 3 else _cast(item, dtype) for item in value)
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
