"""Agent attention: a few agents look at all keys, and all queries look at the agents.

Agent Attention (Han et al., ECCV 2024, arXiv 2312.08874), in its form for pretrained diffusion models. With s the scale
of the logits (head_dim^-1/2), agents A and exponent p,

    O = softmax(s^p · Q Aᵀ) · [softmax(s · A Kᵀ) · V] + c · V

The agents are the queries themselves, most of them merged into others that are like them: two ordinary calls of
attention on q, k and v alone. Text tokens are agents of their own and see all keys exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dattn.attention import masks_in
from dattn.backends.torch_blocks import dense
from dattn.block_mask import MaskCache
from dattn.grid import TokenGrid
from dattn.operators.merging import Merging, check_ratio, merged_away
from dattn.spec import Call, Spec, TorchOperator, together


@dataclass(frozen=True)
class Agent(TorchOperator):
    """Agent attention over merged queries; cheaper than dense attention where ``ratio`` is above one half.

    Args:
        ratio: the share of the visual queries that is merged away; the others are the agents.
        scale_power: p, flattens how queries look at agents; 1 is the scale of the first stage.
        shortcut: c, how much of its own value a token adds; nothing of a key that nobody sees.

    Raises:
        ValueError: a ratio outside of (0, 1), or a negative number elsewhere.
    """

    ratio: float
    scale_power: float = 0.3
    shortcut: float = 0.075

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        for name in ("scale_power", "shortcut"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(f"{name}={value!r}: give a number of 0 or more")

    def for_heads(self, heads: tuple[int, ...], of: int) -> Spec:
        """Nothing: tokens are alike or not in all heads together.

        Raises:
            ValueError: always.
        """
        raise together(self)

    def compute(self, call: Call) -> tuple[Tensor, None]:
        """There is no LSE."""
        query, key, value, grid = call[:4]
        merging = Merging.of(query, grid, self.ratio, masks_in(call.state))
        agents = merging.merge(query)
        seen = dense(agents, key, value, call.scale, call.key_mask)
        visual = slice(grid.text_before, grid.text_before + grid.visual)
        out = merging.unmerge(seen)  # right for text, whose agents stand alone
        scale = call.scale**self.scale_power
        broadcast = dense(query[:, :, visual], agents, seen, scale, merging.kept(call.key_mask))
        own = value if call.key_mask is None else value.masked_fill(~call.key_mask[:, None, :, None], 0)
        broadcast = broadcast + self.shortcut * own[:, :, visual]
        return torch.cat([out[:, :, : visual.start], broadcast, out[:, :, visual.stop :]], 2), None

    def cost(self, grid: TokenGrid, head_dim: int, masks: MaskCache) -> float:
        """Both stages: twice the share of agents."""
        return 2 * (1 - merged_away(grid, self.ratio) / grid.tokens)
