"""What a measurement depends on, so that one that was made with something else is not taken for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from dattn.shelf import identity

RESERVED = ("prompt", "generator", "output_type")
PROBED = 8
"""Values of a parameter that its fingerprint takes."""


def check_call(call: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for an argument that ``tune`` gives the pipeline itself."""
    for name in RESERVED:
        if name in call:
            raise ValueError(f"{name}={call[name]!r}: dattn.tune gives it itself, from prompts and seed; leave it out")


def plain(call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that JSON can hold."""
    return {name: value for name, value in call.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def made_with(pipe: Any, models: Iterable[nn.Module], call: Mapping[str, Any]) -> dict[str, Any]:
    """Models, weights, LoRAs, scheduler, precision, machine and arguments, ready for JSON."""
    models = list(models)
    tensor = next(models[0].parameters())
    scheduler = {name: value for name, value in pipe.scheduler.config.items() if not name.startswith("_")}
    device = torch.cuda.get_device_name(tensor.device) if tensor.is_cuda else tensor.device.type
    return {
        "model": type(models[0]).__name__,
        "config": identity(*models),
        "weights": fingerprint(models),
        "scheduler": {"class": type(pipe.scheduler).__name__} | plain(scheduler),
        "dtype": str(tensor.dtype),
        "device": device,
        "torch": torch.__version__,
        "call": {name: value if _is_plain(value) else type(value).__name__ for name, value in call.items()},
    }


def fingerprint(models: Iterable[nn.Module]) -> str:
    """A short hash of a few values of every parameter, those of LoRAs included."""
    digest = hashlib.sha256()
    for model in models:
        for name, parameter in model.named_parameters():
            digest.update(name.encode())
            if not parameter.is_meta:
                digest.update(str(parameter.detach().flatten()[:PROBED].double().tolist()).encode())
    return digest.hexdigest()[:16]
