"""Weights of normalisation layers that learn beside a LoRA, as in LongLoRA (Chen et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .sharding import divided, whole

PREFIX = "norms."
"""Of their names in a checkpoint."""


def normalising(model: nn.Module) -> dict[str, nn.Module]:
    """The normalisation layers of a model that have weights of their own, by name.

    Raises:
        ValueError: it has none.
    """
    found = {name: module for name, module in model.named_modules() if "Norm" in type(module).__name__}
    found = {name: module for name, module in found.items() if any(True for _ in module.parameters(recurse=False))}
    if not found:
        raise ValueError(f"--train_norms: {type(model).__name__} has no weights in its normalisation; leave it out")
    return found


class Norms:
    """The weights of a model's normalisation layers, in float32 while they learn.

    Args:
        model: frozen, with LoRA.
        rate: learning rate; None for the LoRA's.

    Attributes:
        parameters: by name; those that learn.

    Raises:
        ValueError: a model whose normalisation layers have no weights.
    """

    def __init__(self, model: nn.Module, rate: float | None = None) -> None:
        modules = normalising(model)
        self.parameters = {
            f"{name}.{own}": parameter
            for name, module in modules.items()
            for own, parameter in module.named_parameters(recurse=False)
        }
        self.rate = rate
        self._was = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self._widened: list[nn.Module] = []
        for module in modules.values():
            if next(module.parameters(recurse=False)).dtype != torch.float32:
                vars(module)["forward"] = _in_float32(module.forward)
                self._widened.append(module)
        for parameter in self.parameters.values():
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)

    def follow(self, model: nn.Module) -> None:
        """Take the parameters by their names in a model whose parameters are others now."""
        there = dict(model.named_parameters())
        self.parameters = {name: there[name] for name in self.parameters}

    def weights(self) -> dict[str, Tensor]:
        """Their values by name, whole, on the CPU."""
        return {name: whole(parameter.detach()).cpu().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def restore(self, saved: dict[str, Tensor]) -> None:
        """Put values that ``weights`` gave back."""
        for name, parameter in self.parameters.items():
            parameter.copy_(divided(saved[name], parameter))

    @contextmanager
    def untrained(self) -> Iterator[None]:
        """The model as it was before it learned."""
        trained = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.restore(self._was)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(trained[name])

    def settle(self) -> None:
        """End the learning: the values are in the model's own type, as where it is used."""
        for module in self._widened:
            vars(module).pop("forward", None)
        self._widened.clear()
        for name, parameter in self.parameters.items():
            parameter.data = parameter.data.to(self._was[name].dtype)


def _in_float32(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward pass in float32 of what may be narrower, given back as it came."""

    def wide(given: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return forward(given.float(), *args, **kwargs).to(given.dtype)

    return wide
