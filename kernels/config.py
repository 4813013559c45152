"""Tile sizes, warps and stages of every kernel, by architecture and head dim: a plain table, no tuning at run time."""

from __future__ import annotations

from typing import NamedTuple


class Config(NamedTuple):
    """``M`` queries and ``N`` keys at a time; both are at most the block size."""

    M: int
    N: int
    warps: int
    stages: int

    def within(self, size: int) -> Config:
        """The same for blocks of ``size`` slots; small tiles need no more than four warps."""
        m, n = min(self.M, size), min(self.N, size)
        return Config(m, n, self.warps if (m, n) == (self.M, self.N) else min(self.warps, 4), self.stages)


# architecture -> widest head -> (forward, grad_query, grad_key). Chosen by compiling: none of these spills registers
# up to a head dim of 128, and those of architecture 80 fit in the 99 KiB of shared memory that 89 and 120 have.
TABLE: dict[int, dict[int, tuple[Config, Config, Config]]] = {
    80: {
        64: (Config(128, 64, 8, 3), Config(128, 64, 8, 2), Config(64, 64, 8, 2)),
        128: (Config(128, 64, 8, 2), Config(64, 64, 4, 2), Config(64, 64, 8, 2)),
        256: (Config(64, 32, 8, 2), Config(32, 32, 4, 2), Config(32, 32, 4, 2)),
    },
    90: {
        64: (Config(128, 64, 8, 3), Config(128, 64, 8, 2), Config(64, 128, 8, 2)),
        128: (Config(128, 64, 8, 3), Config(128, 64, 8, 2), Config(32, 128, 8, 2)),
        256: (Config(64, 32, 4, 2), Config(32, 32, 4, 2), Config(32, 32, 4, 2)),
    },
}
TABLE[89] = TABLE[120] = TABLE[80]
TABLE[100] = TABLE[90] | {128: (Config(128, 64, 8, 3), Config(64, 64, 4, 2), Config(64, 128, 8, 2))}
FLOAT32 = (Config(32, 32, 4, 1), Config(32, 32, 4, 1), Config(32, 32, 4, 1))


def pick(architecture: int, width: int, size: int, half: bool) -> tuple[Config, Config, Config]:
    """Configurations of the forward pass, the gradient of queries and that of keys.

    Args:
        architecture: CUDA compute capability, 10 · major + minor.
        width: the head dim, padded to a power of two.
        size: slots in a block.
        half: 16-bit inputs; float32 takes small tiles.
    """
    known = max((a for a in TABLE if a <= architecture), default=80)
    row = TABLE[known][next(limit for limit in TABLE[known] if width <= limit)] if half else FLOAT32
    forward, query, key = (config.within(size) for config in row)
    return forward, query, key
