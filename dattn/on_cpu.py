"""What a CPU does in its own way: sorting and searching along the last axis by NumPy, a fraction of PyTorch's time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

CACHED = 1 << 18  # numbers: half of what a second cache of 2 MiB holds


def at_once(numbers: int, device: torch.device) -> int:
    """How many numbers to work on at a time where there is memory for ``numbers``."""
    return min(numbers, CACHED) if device.type == "cpu" else numbers


def falling(values: Tensor) -> Tensor:
    """The same values along the last axis, the largest first; without gradient."""
    if values.device.type == "cpu" and values.dtype != torch.bfloat16:  # which NumPy lacks
        negative = (-values.detach()).numpy()
        negative.sort(axis=-1)
        return torch.from_numpy(negative).neg_()
    return values.detach().sort(dim=-1, descending=True).values


def group(labels: Tensor, count: int) -> Tensor:
    """int64 like ``labels`` int64 [..., n], from 0 to below ``count``: what sorts them; equal ones stay in order."""
    if labels.device.type == "cpu" and count <= 1 << 16:  # 16 bits are sorted by their digits
        return torch.from_numpy(np.argsort(labels.numpy().astype(np.uint16), axis=-1, kind="stable"))
    return labels.argsort(dim=-1, stable=True)


def argsort(values: Tensor) -> Tensor:
    """int64 like ``values``: what sorts them; of equal ones any may be first."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.argsort(values.numpy(), axis=-1))
    return values.argsort(dim=-1, stable=True)


def argmin(values: Tensor) -> Tensor:
    """int64 [...]: where the first of the least values [..., n] is."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.argmin(values.numpy(), axis=-1))
    return values.argmin(-1)
