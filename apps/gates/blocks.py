"""Gates that choose blocks (SeerAttention, Gao et al. 2024, arXiv 2410.13276), each taught by its own layer.

The pipeline runs with dense attention. Every layer's gate is shown the layer's queries and keys and learns to say what
weights each pair of blocks has: KL(true weights || gate), both normalised over a row; the largest of a pair, as the
authors have it, or their sum. These come from the backend that computed the attention, block by block from its LSE: no
map is built. The gate begins as the product of mean queries and mean keys. Two details of the authors' recipe are left
out for good reasons: they drop the first quarter of the rows, which under a causal mask see little, and there is none
here; and they weigh the loss by 10, which Adam divides out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dattn.attention import attend, masks_in, weights_over
from dattn.block_mask import BlockMask
from dattn.grid import text_blocks
from dattn.orders import Partition, Raster
from dattn.patterns.dense import Dense
from dattn.patterns.dynamic import Given
from dattn.patterns.selected import sides_of
from dattn.scores.base import Sides
from dattn.scores.gate import gate_logits
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

    def learn(self, sides: Sides, truth: Tensor, rate: float) -> None:
        """One step on queries and keys, and the true weights [batch, heads, blocks, blocks], whose rows sum to 1."""
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


def every_block(partition: Partition) -> BlockMask:
    """The mask of a partition's blocks where each sees all, text too."""
    everything = torch.ones(1, 1, len(partition.blocks), len(partition.lengths), dtype=torch.bool)
    return partition.mask(everything.to(partition.key.device))


@dataclass(frozen=True, eq=False)
class TeachBlocks(Operator):
    """Dense attention whose queries and keys teach a gate.

    Args:
        block_size: 16, 32, 64 or 128.
        target: what gates learn to say of a pair of blocks: its "largest" weight or their "total".
        rate: the first learning rate; it falls to 0 along a cosine.
        progress: how much of the training is done.
        gates: by layer; made when a layer is first met.
    """

    block_size: int
    target: str
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
        options = {**call.options, "return_lse": True}
        output, lse = attend(*call[:3], Dense(), call.grid, **options, state=call.state)
        falling = 0.5 * (1 + math.cos(math.pi * self.progress.share))
        self.gates[layer].learn(sides, self._truth(call, sides.partition, lse), self.rate * falling)
        return output, lse

    def _truth(self, call: Call, partition: Partition, lse: Tensor) -> Tensor:
        """The weights of all pairs of visual blocks, over the sum of their row."""
        key = (every_block, call.grid, self.block_size, call.query.device)
        mask = masks_in(call.state).keep(key, lambda: every_block(partition))
        largest, total = weights_over(mask, call, lse)
        before, count = text_blocks(call.grid, self.block_size)[0], len(partition.blocks)
        visual = slice(before, before + count)
        weights = (largest if self.target == "largest" else total)[:, :, visual, visual]
        return weights / weights.sum(-1, keepdim=True)

    def save(self, path: Path) -> None:
        """Write what ``dattn.LearnedGate`` reads."""
        tensors = {
            f"layers.{layer}.{side}": matrix.detach().float().cpu().contiguous()
            for layer, gate in self.gates.items()
            for side, matrix in zip(("query", "key"), gate.matrices, strict=True)
        }
        save_file(tensors, path, {"block_size": str(self.block_size)})
