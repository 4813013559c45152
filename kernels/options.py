"""What every launch needs beside its tensors: the tile that a kernel is compiled for, warps, stages, the device."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
import triton
from torch import Tensor

from .arguments import Tile
from .config import Config

P = ParamSpec("P")
R = TypeVar("R")
MOST_HEADS = 65_535  # what CUDA takes as the second axis of a launch


def launcher(launch: Callable[Concatenate[Tensor, P], R]) -> Callable[Concatenate[Tensor, P], R]:
    """A function that launches kernels for every batch row and head of its first argument, on the GPU where that is.

    Triton itself takes the current GPU, which may be another.

    Raises:
        ValueError: more heads in the batch than one launch can serve.
    """

    @wraps(launch)
    def there(tensor: Tensor, *args: P.args, **kwargs: P.kwargs) -> R:
        batch, heads = tensor.shape[:2]
        if batch * heads > MOST_HEADS:
            raise ValueError(f"{batch} samples of {heads} heads: a launch serves at most {MOST_HEADS}; split the batch")
        with torch.cuda.device_of(tensor):
            return launch(tensor, *args, **kwargs)

    return there


def padded_width(dim: int) -> int:
    """The power of two, 16 or more, that a head dim is padded to."""
    return max(16, triton.next_power_of_2(dim))


def precision(dtype: torch.dtype) -> str:
    """Of products: "tf32" where they are of float32 and PyTorch is told to take it for its own, else "ieee"."""
    matmul = torch.backends.cuda.matmul  # not its older allow_tf32: once this one is set, reading that one raises
    return "tf32" if dtype == torch.float32 and matmul.fp32_precision == "tf32" else "ieee"


def options(
    config: Config, tensor: Tensor, size: int = 0, ragged: bool = False, sparse: bool = False
) -> dict[str, Any]:
    """The keyword arguments of a launch on ``tensor`` [..., head_dim]; the others as in ``Tile``."""
    dim = tensor.shape[-1]
    switches = config.lazy, config.specialized
    tile = Tile(config.M, config.N, size, dim, padded_width(dim), ragged, precision(tensor.dtype), sparse, *switches)
    return {"TILE": tile, "num_warps": config.warps, "num_stages": config.stages}


def like_model(tensor: Tensor) -> Tensor:
    """Empty [batch, heads, tokens, head_dim] in memory as models have it: tokens before heads."""
    return torch.empty_like(tensor.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
