"""Tensors of every layer in a safetensors file: trained gates, calibrated centroids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor


def check_file(what: str, path: str) -> None:
    """Raise ``ValueError`` unless there is such a file."""
    if not Path(path).is_file():
        raise ValueError(f"{what} {path!r}: no such file; give a safetensors file")


def layer_tensors(what: str, path: str, layer: int, names: Sequence[str], like: Tensor) -> list[Tensor]:
    """The tensors ``layers.I.NAME`` of one layer, of the dtype and on the device of ``like``.

    Raises:
        ValueError: no such tensor in the file.
    """
    from safetensors import safe_open

    found = []
    with safe_open(path, "pt") as file:
        there = set(file.keys())
        for name in (f"layers.{layer}.{name}" for name in names):
            if name not in there:
                raise ValueError(
                    f"{what} {path}: it has no {name}; it was made for another model, or without this layer"
                )
            found.append(file.get_tensor(name).to(like))
    return found
