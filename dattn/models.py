"""The models inside a pipeline."""

from __future__ import annotations

from typing import Any

from torch import nn

COMPONENTS = ("transformer", "transformer_2", "unet")


def models_of(target: Any) -> dict[str, nn.Module]:
    """The models of a pipeline by component name, or a bare model under the name ``""``.

    Raises:
        ValueError: neither a pipeline with such a model, nor a model.
    """
    models = components_of(target)
    if not models:
        raise ValueError(
            f"{type(target).__name__} is neither a model nor a pipeline with one of {', '.join(COMPONENTS)}: pass "
            "the pipeline, or the model inside it"
        )
    return models


def components_of(target: Any) -> dict[str, nn.Module]:
    """As ``models_of``; none where it raises."""
    if isinstance(target, nn.Module):
        return {"": _bare(target)}
    found = {name: getattr(target, name, None) for name in COMPONENTS}
    return {name: _bare(model) for name, model in found.items() if isinstance(model, nn.Module)}


def _bare(model: nn.Module) -> nn.Module:
    """The model behind ``torch.compile`` or ``DistributedDataParallel``."""
    for wrapper in ("_orig_mod", "module"):
        inner = model._modules.get(wrapper)
        if isinstance(inner, nn.Module):
            return _bare(inner)
    return model
