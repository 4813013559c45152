"""Backends: the same attention, computed in different ways. A new one is one file and one line in the table."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from dattn.backends.problem import Problem, check_mask


class Backend(Protocol):
    """A backend is a module with these functions; none is differentiated through."""

    def forward(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """Output like the query, and LSE [batch, heads, tokens]: float32, or float64 for float64 inputs."""

    def backward(
        self, problem: Problem, output: Tensor, lse: Tensor, grad_output: Tensor, grad_lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of query, key and value."""

    def block_weights(self, problem: Problem, lse: Tensor) -> tuple[Tensor, Tensor]:
        """The largest and the summed weight, as ``weights_of_blocks`` has them."""


@dataclass(frozen=True)
class Choice:
    """Which backend runs, and why."""

    name: str
    reason: str


BACKENDS = {
    "reference": "naive and dense, for checking on small grids",
    "torch": "block by block, on any device",
    "triton": "our own kernels, on an NVIDIA GPU from Ampere on",
}
MODULES = {"reference": "reference", "torch": "torch_blocks", "triton": "triton_blocks"}
WIDEST_HEAD = 256
OLDEST_GPU = (8, 0)


def choose(backend: str, device: torch.device | str, dtype: torch.dtype, head_dim: int) -> Choice:
    """The backend for these inputs: the one asked for, or with "auto" the fastest that can run them.

    Raises:
        ValueError: an unknown backend, or one that cannot run these inputs.
    """
    device = torch.device(device)
    if backend == "auto":
        obstacle = "not on a GPU" if device.type != "cuda" else triton_obstacle(device, dtype, head_dim)
        return Choice("torch", f"auto: {obstacle}") if obstacle else Choice("triton", "auto: an NVIDIA GPU")
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}: choose auto, {' or '.join(BACKENDS)}")
    obstacle = triton_obstacle(device, dtype, head_dim) if backend == "triton" else None
    if obstacle:
        raise ValueError(f"backend 'triton': {obstacle}; choose auto or torch")
    return Choice(backend, "asked for")


def triton_obstacle(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why the Triton backend cannot run such inputs, or None where it can."""
    if find_spec("triton") is None:
        return "the package triton is not installed"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" and not interpreted:
        return f"it needs an NVIDIA GPU, and the tensors are on {device}"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < OLDEST_GPU:
        return "it needs an NVIDIA GPU from Ampere (compute capability 8.0) on"
    if dtype == torch.float64:
        return "it computes float32, bfloat16 and float16, and these are float64"
    if dtype == torch.bfloat16 and interpreted:
        return "it is interpreted here, which is wrong in bfloat16: use float32 or float16"
    return f"head dim {head_dim} is above {WIDEST_HEAD}" if head_dim > WIDEST_HEAD else None


def load(name: str) -> Backend:
    """The backend's module, imported on first use."""
    return cast(Backend, import_module(f"dattn.backends.{MODULES[name]}"))


def run(name: str, problem: Problem) -> tuple[Tensor, Tensor]:
    """Output and LSE of a backend, differentiable.

    Raises:
        ValueError: a mask of other tokens, or on another device.
    """
    check_mask(problem)
    return _Attention.apply(*problem, load(name))


@torch.no_grad()
def weights_of_blocks(name: str, problem: Problem, lse: Tensor) -> tuple[Tensor, Tensor]:
    """How much weight attention gives to every pair of blocks that its mask visits: p = exp(q·k · scale - lse).

    Args:
        name: of a backend.
        problem: its mask visits blocks whole or not at all; the value is not looked at.
        lse: [batch, heads, tokens], float32 or float64, as attention returned it; it may be that over more keys.

    Returns:
        The largest and the summed weight, [batch, heads, query blocks, key blocks] like the LSE; 0 where a block is not
        visited. Nothing as large as tokens x tokens is held, but by "reference".

    Raises:
        ValueError: a mask with blocks that are visited in part, or pooled, of other tokens, or on another device.
    """
    check_mask(problem)
    mask = problem.mask
    if mask.partial.index.shape[-1] or mask.pools:
        raise ValueError("weights of blocks: the mask visits some in part or pooled; give one of whole blocks")
    return load(name).block_weights(problem, lse)


class _Attention(torch.autograd.Function):
    """A backend's two passes as one differentiable function."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        """Output and LSE; ``arguments`` are those of a ``Problem``, then the backend."""
        *parts, backend = arguments
        query, key, value, mask, scale, key_mask = parts
        output, lse = backend.forward(Problem(*parts))
        ctx.save_for_backward(query, key, value, key_mask, output, lse)
        ctx.mask, ctx.scale, ctx.backend = mask, scale, backend
        return output, lse

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of query, key and value."""
        query, key, value, key_mask, output, lse = ctx.saved_tensors  # read once: checkpointing allows no more
        problem = Problem(query, key, value, ctx.mask, ctx.scale, key_mask)
        with torch.autocast(grad_output.device.type, enabled=False):
            grads = ctx.backend.backward(problem, output, lse, grad_output, grad_lse)
        return *grads, None, None, None, None
