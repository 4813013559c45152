"""Trained weights of normalisation layers, which Diffusers' LoRA files of most models cannot carry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

NORMS = "pytorch_norm_weights.safetensors"
"""The file beside a LoRA's own."""


class LoadedNorms:
    """Weights that ``load_norms`` put on a pipeline.

    Attributes:
        names: of the parameters, with the component's before them.
    """

    def __init__(self, before: dict[str, tuple[Tensor, Tensor]]) -> None:
        self.names = tuple(before)
        self._before = before

    @torch.no_grad()
    def remove(self) -> None:
        """Put back what was there, bit for bit."""
        for parameter, was in self._before.values():
            parameter.copy_(was)


@torch.no_grad()
def load_norms(pipe: Any, place: str | Path) -> LoadedNorms:
    """Put the weights of normalisation layers that ``dattn train-lora --train_norms`` wrote on a pipeline.

    They belong to the LoRA beside them, which Diffusers loads. Of Flux they are in the LoRA's file itself, and there is
    no other.

    Args:
        pipe: a pipeline of the model that was trained.
        place: the folder, or the file.

    Raises:
        ValueError: no such file, or one for another model; the pipeline is as it was.
    """
    path = Path(place)
    path = path / NORMS if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"norms {path}: no such file; give the folder that dattn train-lora --train_norms wrote")
    saved = load_file(path)
    before: dict[str, tuple[Tensor, Tensor]] = {}
    for name, tensor in saved.items():
        component, _, own = name.partition(".")
        parameter = dict(_parameters(pipe, component)).get(own)
        if parameter is None or parameter.shape != tensor.shape:
            shape = tuple(tensor.shape)
            raise ValueError(f"norms {path}: {type(pipe).__name__} has no {name} of {shape}; it is for another model")
        before[name] = parameter, parameter.detach().clone()
    for name, (parameter, _) in before.items():
        parameter.copy_(saved[name])
    return LoadedNorms(before)


def _parameters(pipe: Any, component: str) -> Any:
    part = getattr(pipe, component, None)
    return part.named_parameters() if isinstance(part, torch.nn.Module) else ()
