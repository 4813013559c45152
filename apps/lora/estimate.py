"""What a run would cost, before it runs: tokens, FLOPs dense and sparse, memory."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from dattn import presets
from dattn.adapters import Adapter, adapter_for
from dattn.adapters.base import Inputs
from dattn.control.base import check_window
from dattn.grid import TokenGrid

from .adapting import targets
from .asking import Manner, Size, listen
from .latents import takes_clips
from .live import peak
from .run import STEPS as OF_A_RUN
from .subject import STEPS, subject_of

LINEAR, ATTENTION = 2.0, 3.5
"""Forward and backward pass in forward passes: frozen weights need no gradient; attention's backward has 5 products."""
OF_ACTIVATIONS = 16
"""Numbers that a layer keeps for its backward pass, for each token and channel: an estimate, not measured."""
GIB = 2**30


class Cost(NamedTuple):
    """Of one example and step.

    Attributes:
        tokens: in the first layer's self-attention.
        linear, dense, sparse: FLOPs of linear layers, of dense attention, and of attention under the pattern.
    """

    tokens: int
    linear: float
    dense: float
    sparse: float


def cost_of(
    model: nn.Module,
    manner: Manner,
    attention: Any,
    again: bool = False,
    taught: float = 0.0,
    window: tuple[float, float] = (0.0, 1.0),
) -> Cost:
    """What a step on one example costs, forward and backward.

    Args:
        attention: a pattern or operator; one that changes over the denoising steps counts with their mean.
        window: the denoising steps that are trained, as shares.
        again: the forward pass is computed twice, by gradient checkpointing.
        taught: the share of the steps with a forward pass of the stock model besides.
    """
    adapter = adapter_for(model)
    grids = _grids(adapter, model, manner)
    dense = sparse = 0.0
    sites = adapter.sites(model)
    for number, site in enumerate(sites):
        grid = grids[site.level]
        if not isinstance(grid, TokenGrid):
            continue
        width = _projection(site.module).out_features
        whole = 4.0 * grid.tokens**2 * width
        still = attention is None or site.why
        density = 1.0 if still else _mean_density(attention, number, len(sites), window, grid)
        dense, sparse = dense + whole, sparse + whole * density
    tokens = next(grid for grid in grids.values() if isinstance(grid, TokenGrid)).tokens
    linear = 2.0 * tokens * sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    passes, teacher = ATTENTION + again, taught * dense
    return Cost(tokens, (LINEAR + again + taught) * linear, passes * dense + teacher, passes * sparse + teacher)


def _grids(adapter: Adapter, model: nn.Module, manner: Manner) -> Mapping[str, Any]:
    told = {name: tensor[:1] for name, tensor in manner.sample.items()}
    arguments = manner.arguments(torch.zeros(1, *manner.shape), torch.zeros(1), told)
    return adapter.grids(model, Inputs((), arguments))


def _mean_density(attention: Any, layer: int, layers: int, window: tuple[float, float], grid: TokenGrid) -> float:
    """Over the denoising steps of a window, in one layer."""
    first, last = (int(share * STEPS) for share in window)
    over = Counter(attention.at(layer, layers, step, STEPS) for step in range(first, max(last, first + 1)))
    return sum(count * _density(pattern, grid) for pattern, count in over.items()) / over.total()


def _density(attention: Any, grid: TokenGrid) -> float:
    """The share of pairs that a pattern visits; 1 where it does not fit the grid or does not say."""
    try:
        return float(attention.mask(grid).density)
    except AttributeError:
        return float(getattr(attention, "density", 1.0))
    except ValueError:
        return 1.0


def lines(options: Any, attention: Any, buckets: Sequence[Size], files: int) -> list[str]:
    """What to print."""
    subject = subject_of(options, attention, "cpu", "float32")
    model = subject.model
    adapter = adapter_for(model)
    pattern = (
        None if attention is None else presets.resolve(attention, adapter.family, type(model).__name__, 0, 0).attention
    )
    weights = sum(p.numel() for p in model.parameters())
    lora = sum(_lora(model.get_submodule(name), options.rank) for name in targets(model, options.target_modules))
    parts = f"{weights / 1e6:,.1f} M parameters, {lora / 1e6:,.2f} M to train (rank {options.rank})"
    told = [f"{type(model).__name__}: {parts}; {files} files"]
    window = check_window("train_window", tuple(options.train_window))
    for size in buckets:
        manner = listen(subject.pipeline, model, size, subject.call)
        cost = cost_of(model, manner, pattern, options.gradient_checkpointing, _taught(options, files), window)
        dense, sparse = (_passes(options) * (cost.linear + attended) for attended in (cost.dense, cost.sparse))
        memory = {
            "preparation": _preparation(subject.pipeline, size, adapter.video) / GIB,
            "training": _training(model, cost.tokens, lora, options) / GIB,
        }
        told += [
            f"{'x'.join(map(str, size))}: {cost.tokens:,} tokens",
            f"  FLOPs for each example: dense {dense:.3g} ({cost.dense / (cost.linear + cost.dense):.0%} attention), "
            f"under {options.attention} {sparse:.3g}: at most {dense / sparse:.2f} x faster",
            f"  memory (estimate, bf16): {max(memory.values()):.1f} GiB, the larger of "
            + " and ".join(f"{gib:.1f} in {when}" for when, gib in memory.items()),
        ]
    return told


def _passes(options: Any) -> int:
    """How often an example is seen in a step: with its caption, and without where guidance is matched."""
    return 2 if options.distill_guidance else 1


def _taught(options: Any, files: int) -> float:
    """The share of the steps in which the teacher is asked."""
    if not options.distill or not options.teach_epochs:
        return float(options.distill)
    learned = options.train_batch_size * options.gradient_accumulation_steps * (options.max_train_steps or OF_A_RUN)
    return min(1.0, options.teach_epochs * files / learned)


def _projection(attention: nn.Module) -> nn.Linear:
    """The one that makes queries."""
    found = (m for name, m in attention.named_modules() if name in ("to_q", "to_qkv") and isinstance(m, nn.Linear))
    return next(found)


def _lora(layer: Any, rank: int) -> int:
    return rank * (int(layer.in_features) + int(layer.out_features))


def _preparation(pipeline: Any, size: Size, video: bool) -> float:
    """Bytes of the whole pipeline, whose autoencoder encodes a clip in float32; text takes less than that."""
    weights = 2.0 * sum(p.numel() for part in _modules(pipeline) for p in part.parameters())
    vae = copy.deepcopy(pipeline.vae).to("meta", torch.float32)
    frames, height, width = size
    shape = (1, 3, frames, height, width) if video or takes_clips(vae) else (1, 3, height, width)
    made = peak(lambda: vae.encode(torch.zeros(shape, device="meta")))
    return weights + 2.0 * sum(p.numel() for p in vae.parameters()) + made


def _modules(pipeline: Any) -> list[nn.Module]:
    return [part for part in pipeline.components.values() if isinstance(part, nn.Module)]


def _training(model: nn.Module, tokens: int, lora: int, options: Any) -> float:
    """Bytes of weights, of LoRA with its optimiser, and of what the backward pass needs."""
    weights = 2.0 * sum(p.numel() for p in model.parameters())
    sites = adapter_for(model).sites(model)
    layers, width = len(sites), max(_projection(site.module).in_features for site in sites)
    kept = 2.0 * tokens * width * options.train_batch_size * _passes(options)
    activations = kept * (layers + OF_ACTIVATIONS) if options.gradient_checkpointing else kept * layers * OF_ACTIVATIONS
    return weights + 16.0 * lora + activations
