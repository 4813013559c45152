"""Where tokens differ most: principal components of many small sets at once."""

from __future__ import annotations

import torch
from torch import Tensor


def leading(tokens: Tensor, dims: int) -> tuple[Tensor, Tensor]:
    """Tokens in the directions in which all of them differ most, and where iterations begin there.

    Args:
        tokens: [heads, tokens, head_dim].
        dims: directions to keep; all that there are, as they are, where they are no more.

    Returns:
        [heads, tokens, dims], at least float32, up to a constant; and a fixed direction of the whole space, [heads,
        dims]: wherever the directions point that span the same space, iterations from there go the same way.
    """
    rows = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    start = torch.randn(rows.shape[-1], generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(rows)
    if rows.shape[-1] <= dims:
        return rows, start.expand(len(rows), -1)
    total = rows.sum(1)
    covariance = rows.mT @ rows - total[:, :, None] * total[:, None] / rows.shape[1]
    basis = torch.linalg.eigh(covariance.nan_to_num(0, 0, 0)).eigenvectors[..., -dims:]
    return rows @ basis, start @ basis


def along(parts: Tensor, lengths: Tensor, start: Tensor, steps: int) -> Tensor:
    """[heads, parts, longest]: how far along the first principal component of its part every token lies.

    Up to a constant in each part, which sorts nothing.

    Args:
        parts: [heads, parts, longest, dims], 0 where there is no token.
        lengths: int64 [parts], tokens in each.
        start: [heads, dims], the direction to begin with.
        steps: power iterations.
    """
    total = parts.sum(2)
    covariance = parts.mT @ parts - total[..., None] * (total / lengths[:, None])[..., None, :]
    direction = start[:, None].expand_as(total)[..., None]
    for _ in range(steps):
        direction = torch.nn.functional.normalize(covariance @ direction, dim=-2)
    return (parts @ direction)[..., 0].nan_to_num()
