"""Model families: one file each, one line each in ``ADAPTERS``."""

from __future__ import annotations

from torch import nn

from dattn.adapters import cogvideox, flux, unet, wan
from dattn.adapters.base import Adapter, Inputs, Site

__all__ = ["ADAPTERS", "Adapter", "Inputs", "Site", "adapter_for"]

ADAPTERS = (wan.ADAPTER, cogvideox.ADAPTER, flux.ADAPTER, unet.ADAPTER)


def adapter_for(model: nn.Module) -> Adapter:
    """The adapter of a model, by the names of its class and base classes.

    Raises:
        ValueError: no adapter knows the model.
    """
    names = {cls.__name__ for cls in type(model).__mro__}
    for adapter in ADAPTERS:
        if names & set(adapter.models):
            return adapter
    known = ", ".join(f"{name} ({adapter.title})" for adapter in ADAPTERS for name in adapter.models)
    raise ValueError(
        f"{type(model).__name__} is not supported; supported: {known}. A new model is one file in "
        "dattn/adapters and one line in its table: CONTRIBUTING.md shows how"
    )
