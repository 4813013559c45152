"""Head groups: which heads share one set of block lists."""

from __future__ import annotations

from itertools import pairwise


def head_groups(heads: int, groups: int) -> list[slice]:
    """The heads of each group: group g of G serves the heads h with ⌊h·G/H⌋ = g, a run of consecutive heads.

    Raises:
        ValueError: more groups than heads.
    """
    if groups > heads:
        raise ValueError(f"{groups} head groups for {heads} heads: at most one group per head; give fewer patterns")
    first = [-(-g * heads // groups) for g in range(groups + 1)]
    return [slice(a, b) for a, b in pairwise(first)]
