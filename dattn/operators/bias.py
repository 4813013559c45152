"""Additive biases of low rank on the logits, as extra channels of queries and keys.

FlashBias (Wu et al., 2025, arXiv 2505.12044): a bias B = Φq Φkᵀ of rank R needs no matrix of its own, because

    s · q·k + φq·φk  =  s · [q, φq / s] · [k, φk]

In bfloat16 and float16 the channels are split in two, φ = hi + lo, and the three larger products hi·hi + hi·lo + lo·hi
are kept: 3 R channels, as exact as float32 needs.

``RadialBias`` is -α |p - q|², p and q the places of query and key on the grid: -α|p|² + 2α p·q - α|q|², one channel
per axis that is longer than one token and two for the squares.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from dattn.attention import attend, masks_in
from dattn.block_mask import MaskCache
from dattn.grid import TokenGrid
from dattn.patterns.dense import Dense
from dattn.spec import Call, OverPattern, Spec


@dataclass(frozen=True)
class ChannelBias(OverPattern):
    """Base of biases that are a product of channels, over the mask of a static pattern."""

    pattern: Spec = field(default=Dense(), kw_only=True)

    @property
    def untuned(self) -> str:
        """A bias changes every weight."""
        return "another function than the pretrained one: fine-tune the model for it"

    def channels(self, grid: TokenGrid, device: torch.device, masks: MaskCache) -> tuple[Tensor, Tensor]:
        """φq and φk: [tokens, rank], or [heads, tokens, rank]."""
        raise NotImplementedError

    def compute(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """Output and LSE."""
        phi_query, phi_key = self.channels(call.grid, call.query.device, masks_in(call.state))
        query, key = _joined(call.query, phi_query / call.scale, False), _joined(call.key, phi_key, True)
        width = call.value.shape[-1]
        value = pad(call.value, (0, max(query.shape[-1] - width, 0)))
        options = {**call.options, "state": call.state, "return_lse": True}
        output, lse = attend(query, key, value, self.pattern, call.grid, **options)
        return output[..., :width], lse

    def cost(self, grid: TokenGrid, head_dim: int, masks: MaskCache) -> float:
        """The mask's, and the channels'."""
        mask = masks.get(self.pattern, grid, "cpu")
        rank = self.channels(grid, torch.device("cpu"), masks)[0].shape[-1]
        return (mask.density + mask.tail_share) * (1 + rank / head_dim)


def _joined(tokens: Tensor, phi: Tensor, is_key: bool) -> Tensor:
    """[batch, heads, tokens, head_dim + channels]: tokens with their channels, split where they are short.

    Raises:
        ValueError: channels for other heads, or too large for the dtype.
    """
    if phi.ndim == 3 and len(phi) not in (1, tokens.shape[1]):
        raise ValueError(f"phi for {len(phi)} heads on {tokens.shape[1]}: give one for each, or none for all alike")
    if tokens.dtype == torch.float16 and phi.abs().max() > torch.finfo(torch.float16).max:
        raise ValueError(f"a bias with factors up to {phi.abs().max():.0f}: too large for float16; use bfloat16")
    if tokens.dtype in (torch.float32, torch.float64):
        parts = [phi.to(tokens.dtype)]
    else:
        high = phi.to(tokens.dtype)
        low = (phi - high.to(phi.dtype)).to(tokens.dtype)
        parts = [high, low, high] if is_key else [high, high, low]
    shape = *tokens.shape[:3], phi.shape[-1]
    return torch.cat([tokens, *(part.expand(shape) for part in parts)], -1)


@dataclass(frozen=True, eq=False)
class Bias(ChannelBias):
    """FlashBias: a bias given by its factors, which may be parameters that learn.

    Args:
        phi_q, phi_k: [tokens or visual, rank], or with leading heads; numbers or tensors. Where they are given for
            visual tokens only, text has no bias.
        pattern: the static pattern under it.

    Raises:
        ValueError: factors that do not fit each other; or the grid, when it is met.
    """

    phi_q: Any
    phi_k: Any

    __eq__ = object.__eq__  # tensors compare element by element
    __hash__ = object.__hash__

    def __post_init__(self) -> None:
        for name in ("phi_q", "phi_k"):
            given = getattr(self, name)
            object.__setattr__(self, name, given if isinstance(given, Tensor) else torch.tensor(given))
        if self.phi_q.shape != self.phi_k.shape or self.phi_q.ndim not in (2, 3):
            shapes = tuple(self.phi_q.shape), tuple(self.phi_k.shape)
            raise ValueError(f"phi_q and phi_k of {shapes}: both are [tokens, rank], or both [heads, tokens, rank]")
        super().__post_init__()

    def for_heads(self, heads: tuple[int, ...], of: int) -> Spec:
        """With the factors of these heads."""
        own = [phi if phi.ndim == 2 or len(phi) == 1 else phi[list(heads)] for phi in (self.phi_q, self.phi_k)]
        return replace(self, pattern=self.pattern.for_heads(heads, of), phi_q=own[0], phi_k=own[1])

    def channels(self, grid: TokenGrid, device: torch.device, masks: MaskCache) -> tuple[Tensor, Tensor]:
        """The factors, zeros added for text where they lack it."""
        count = self.phi_q.shape[-2]
        if count not in (grid.tokens, grid.visual):
            raise ValueError(
                f"phi_q and phi_k for {count} tokens on a grid of {grid.tokens}, {grid.visual} of them visual: give "
                "one row for each"
            )
        text = (0, 0) if count == grid.tokens else (grid.text_before, grid.text_after)
        phi_q, phi_k = (pad(phi.to(device), (0, 0, *text)) for phi in (self.phi_q, self.phi_k))
        return phi_q, phi_k


@dataclass(frozen=True)
class RadialBias(ChannelBias):
    """A bias that falls with the square of the distance on the grid; text is near to everything.

    Args:
        alpha: how fast, per token squared; above 0.
        pattern: the static pattern under it.

    Raises:
        ValueError: an alpha of 0 or less.
    """

    alpha: float

    def __post_init__(self) -> None:
        if isinstance(self.alpha, bool) or not isinstance(self.alpha, int | float) or not 0 < self.alpha < float("inf"):
            raise ValueError(f"alpha={self.alpha!r}: give a number above 0")
        super().__post_init__()

    def channels(self, grid: TokenGrid, device: torch.device, masks: MaskCache) -> tuple[Tensor, Tensor]:
        """Worked out once for a grid."""
        return masks.keep((self, grid, device), lambda: self._channels(grid, device))

    def _channels(self, grid: TokenGrid, device: torch.device) -> tuple[Tensor, Tensor]:
        """(2 α p, -α |p|², 1) for queries, (p, 1, -α |p|²) for keys; zeros for text."""
        long = [n > 1 for n in grid.shape]
        middle = torch.tensor([(n - 1) / 2 for n in grid.shape], dtype=torch.float64)
        at = (grid.coordinates() - middle)[:, long]
        square, one = -self.alpha * (at**2).sum(-1, keepdim=True), torch.ones(grid.visual, 1, dtype=torch.float64)
        text = (0, 0, grid.text_before, grid.text_after)
        phi_q = torch.cat([2 * self.alpha * at, square, one], -1)
        phi_k = torch.cat([at, one, square], -1)
        return pad(phi_q, text).to(device), pad(phi_k, text).to(device)
