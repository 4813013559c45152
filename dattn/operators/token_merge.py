"""Token merging: attention among fewer tokens, whose outputs are handed back to all that were merged.

ToMe for diffusion (Bolya and Hoffman, 2023, arXiv 2303.17604), on queries, keys and values: tokens with like keys are
averaged, attention runs on what is left, and every token gets the output of the token that it went into.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dattn.attention import masks_in
from dattn.backends.torch_blocks import dense
from dattn.block_mask import MaskCache
from dattn.grid import TokenGrid
from dattn.operators.merging import Merging, check_ratio, merged_away
from dattn.spec import Call, Spec, TorchOperator, together


@dataclass(frozen=True)
class TokenMerge(TorchOperator):
    """ToMe: a share of the visual tokens is merged away for the time of the attention.

    Args:
        ratio: that share; half of the tokens cost a quarter of the attention.

    Raises:
        ValueError: a ratio outside of (0, 1).
    """

    ratio: float

    def __post_init__(self) -> None:
        check_ratio(self.ratio)

    def for_heads(self, heads: tuple[int, ...], of: int) -> Spec:
        """Nothing: tokens are alike or not in all heads together.

        Raises:
            ValueError: always.
        """
        raise together(self)

    def compute(self, call: Call) -> tuple[Tensor, None]:
        """There is no LSE."""
        merging = Merging.of(call.key, call.grid, self.ratio, masks_in(call.state))
        few = [merging.merge(t) for t in call[:3]]
        return merging.unmerge(dense(few[0], few[1], few[2], call.scale, merging.kept(call.key_mask))), None

    def cost(self, grid: TokenGrid, head_dim: int, masks: MaskCache) -> float:
        """The square of the share of tokens that is left."""
        return (1 - merged_away(grid, self.ratio) / grid.tokens) ** 2
