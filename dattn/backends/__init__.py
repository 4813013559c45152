"""Backends: the same attention, computed in different ways. A new one is one file and one line in the table."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, cast

import torch
from torch import Tensor

from dattn.block_mask import BlockMask


class Backend(Protocol):
    """A backend is a module with this function."""

    def run(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: BlockMask,
        *,
        scale: float,
        key_mask: Tensor | None,
        return_lse: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; shapes as in ``dattn.attention``; the LSE where asked for."""


@dataclass(frozen=True)
class Choice:
    """Which backend runs, and why."""

    name: str
    reason: str


BACKENDS = {
    "reference": "naive and dense, for checking on small grids",
    "torch": "block by block, on any device",
}
MODULES = {"reference": "reference", "torch": "torch_blocks"}


def choose(backend: str, device: torch.device | str, dtype: torch.dtype, head_dim: int) -> Choice:
    """The backend for these inputs: the one asked for, or with "auto" the fastest that can run them.

    Raises:
        ValueError: an unknown backend, or one that cannot run these inputs.
    """
    if backend == "auto":
        return Choice("torch", "auto: the only blockwise backend so far")
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}: choose auto, {' or '.join(BACKENDS)}")
    return Choice(backend, "asked for")


def load(name: str) -> Backend:
    """The backend's module, imported on first use."""
    return cast(Backend, import_module(f"dattn.backends.{MODULES[name]}"))
