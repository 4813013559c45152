"""Gates that choose blocks (SeerAttention, Gao et al. 2024, arXiv 2410.13276), each taught by its own layer.

The pipeline runs with dense attention. Every layer's gate is shown the layer's queries and keys and learns to say what
weights each pair of blocks has: KL(true weights || gate), both normalised over a row; the largest of a pair, as the
authors have it, or their sum. It begins as the product of mean queries and mean keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dattn.attention import attend
from dattn.orders import Raster
from dattn.patterns.dense import Dense
from dattn.patterns.dynamic import Given
from dattn.patterns.selected import sides_of
from dattn.scores.base import Sides
from dattn.scores.gate import gate_logits
from dattn.scores.true_weights import TrueWeights
from dattn.spec import Call, Operator

from .progress import Progress


@dataclass
class LayerGate:
    """The gate of one layer, its optimiser, and the loss of each of its steps."""

    matrices: tuple[Tensor, Tensor]
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)

    @classmethod
    def fresh(cls, like: Tensor, rate: float) -> LayerGate:
        """One that multiplies means, for queries like [batch, heads, tokens, head_dim]."""
        heads, width = like.shape[1], like.shape[-1]
        same = torch.eye(width, device=like.device).expand(heads, -1, -1)
        nothing = torch.zeros_like(same)
        matrices = nn.Parameter(same.clone()), nn.Parameter(torch.cat([nothing, nothing, same], 1))
        return cls(matrices, torch.optim.AdamW(matrices, lr=rate, weight_decay=0.0))

    def learn(self, sides: Sides, target: TrueWeights, rate: float) -> None:
        """One step on queries and keys."""
        with torch.no_grad():
            truth = target.of(sides)
        with torch.enable_grad():
            loss = divergence(truth, gate_logits(sides, *self.matrices))
            loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(loss.item())


def divergence(truth: Tensor, logits: Tensor) -> Tensor:
    """KL(truth || softmax of the logits) over the last axis, the mean over all others."""
    return nn.functional.kl_div(logits.log_softmax(-1), truth, reduction="none").sum(-1).mean()


@dataclass(frozen=True, eq=False)
class TeachBlocks(Operator):
    """Dense attention whose queries and keys teach a gate.

    Args:
        block_size: 16, 32, 64 or 128.
        target: what gates learn to say.
        rate: the first learning rate; it falls to 0 along a cosine.
        progress: how much of the training is done.
        gates: by layer; made when a layer is first met.
    """

    block_size: int
    target: TrueWeights
    rate: float
    progress: Progress
    gates: dict[int, LayerGate] = field(default_factory=dict)

    def compute(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """Output and LSE of dense attention."""
        factor = call.scale * call.query.shape[-1] ** 0.5
        given = Given(call.query, call.key, call.grid, call.state, factor, None, call.key_mask)
        sides = sides_of(given, Raster(), self.block_size)
        layer = call.state["layer"]
        if layer not in self.gates:
            self.gates[layer] = LayerGate.fresh(sides.query, self.rate)
        falling = 0.5 * (1 + math.cos(math.pi * self.progress.share))
        self.gates[layer].learn(sides, self.target, self.rate * falling)
        options = {**call.options, "return_lse": True}
        result: tuple[Tensor, Tensor] = attend(*call[:3], Dense(), call.grid, **options, state=call.state)
        return result

    def save(self, path: Path) -> None:
        """Write what ``dattn.LearnedGate`` reads."""
        tensors = {
            f"layers.{layer}.{side}": matrix.detach().float().cpu().contiguous()
            for layer, gate in self.gates.items()
            for side, matrix in zip(("query", "key"), gate.matrices, strict=True)
        }
        save_file(tensors, path, {"block_size": str(self.block_size)})
