"""Tile sizes, warps and stages of every kernel, by architecture, head dim and block: a plain table.

Nothing is tuned while a model runs; ``dattn bench sweep`` measures the rows anew on the GPU at hand.
"""

from __future__ import annotations

from typing import NamedTuple


class Config(NamedTuple):
    """``M`` queries and ``N`` keys at a time; both are at most the block size.

    The switches are of the forward kernel and off until a sweep has shown that they pay on the GPU at hand.

    Attributes:
        lazy: rescale what is summed only where a maximum has risen.
        descriptors: read keys and values of blocks through tensor descriptors: Hopper's tensor memory accelerator.
        specialized: give loads and products warps of their own; Triton does so on Blackwell.
    """

    M: int
    N: int
    warps: int
    stages: int
    lazy: bool = False
    descriptors: bool = False
    specialized: bool = False

    def within(self, size: int) -> Config:
        """The same for blocks of ``size`` slots; small tiles need no more than four warps."""
        m, n = min(self.M, size), min(self.N, size)
        return self._replace(M=m, N=n, warps=self.warps if (m, n) == (self.M, self.N) else min(self.warps, 4))


SWITCHES = {"lazy": 80, "descriptors": 90, "specialized": 100}  # from which architecture on they can pay


class Row(NamedTuple):
    """The configurations of the three kernels that take the time."""

    forward: Config
    grad_query: Config
    grad_key: Config


# (architecture, widest head dim, largest block): chosen by compiling, not yet by timing. With Triton 3.9 none spills
# registers on 80, 90 and 100 at head dims up to 128, whatever the mask; what the assembler gives up for occupancy is
# another with each version. Those of 80 fit in the 99 KiB of shared memory that 89 and 120 have.
TABLE: dict[tuple[int, int, int], Row] = {
    (80, 32, 64): Row(Config(64, 64, 4, 2), Config(64, 32, 4, 2), Config(32, 32, 4, 2)),
    (80, 32, 128): Row(Config(128, 64, 8, 2), Config(128, 32, 8, 2), Config(32, 64, 4, 2)),
    (80, 64, 64): Row(Config(64, 64, 4, 2), Config(32, 64, 4, 2), Config(32, 64, 4, 2)),
    (80, 64, 128): Row(Config(128, 64, 8, 3), Config(128, 64, 8, 2), Config(32, 64, 4, 2)),
    (80, 96, 64): Row(Config(64, 64, 8, 3), Config(64, 64, 8, 2), Config(32, 64, 8, 2)),
    (80, 96, 128): Row(Config(64, 64, 8, 3), Config(64, 32, 4, 2), Config(32, 64, 8, 2)),
    (80, 128, 64): Row(Config(64, 64, 8, 2), Config(64, 64, 8, 2), Config(32, 64, 8, 2)),
    (80, 128, 128): Row(Config(64, 64, 8, 3), Config(64, 32, 8, 2), Config(64, 64, 8, 2)),
    (80, 256, 64): Row(Config(64, 32, 8, 2), Config(32, 32, 4, 2), Config(32, 32, 4, 2)),
    (80, 256, 128): Row(Config(64, 32, 8, 2), Config(32, 32, 4, 2), Config(32, 32, 4, 2)),
    (89, 32, 64): Row(Config(64, 64, 4, 2), Config(64, 32, 4, 2), Config(32, 32, 4, 2)),
    (89, 32, 128): Row(Config(128, 64, 8, 2), Config(128, 32, 8, 2), Config(32, 64, 4, 2)),
    (89, 64, 64): Row(Config(64, 64, 4, 2), Config(32, 64, 4, 2), Config(32, 64, 4, 2)),
    (89, 64, 128): Row(Config(128, 64, 8, 3), Config(128, 64, 8, 2), Config(32, 64, 4, 2)),
    (89, 96, 64): Row(Config(64, 64, 8, 3), Config(64, 64, 8, 2), Config(32, 64, 8, 2)),
    (89, 96, 128): Row(Config(64, 64, 8, 3), Config(64, 32, 4, 2), Config(32, 64, 8, 2)),
    (89, 128, 64): Row(Config(64, 64, 8, 2), Config(64, 64, 8, 2), Config(32, 64, 8, 2)),
    (89, 128, 128): Row(Config(64, 64, 8, 3), Config(64, 32, 8, 2), Config(64, 64, 8, 2)),
    (89, 256, 64): Row(Config(64, 32, 8, 2), Config(32, 32, 4, 2), Config(32, 32, 4, 2)),
    (89, 256, 128): Row(Config(64, 32, 8, 2), Config(32, 32, 4, 2), Config(32, 32, 4, 2)),
    (90, 16, 16): Row(Config(16, 16, 4, 3), Config(16, 16, 4, 2), Config(16, 16, 2, 2)),
    (90, 64, 64): Row(Config(64, 64, 4, 3), Config(64, 64, 4, 2), Config(32, 64, 4, 2)),
    (90, 64, 128): Row(Config(128, 64, 8, 3), Config(128, 64, 8, 2), Config(64, 128, 8, 2)),
    (90, 96, 16): Row(Config(16, 16, 4, 3), Config(16, 16, 4, 2), Config(16, 16, 4, 2)),
    (90, 128, 64): Row(Config(64, 64, 4, 2), Config(64, 64, 8, 2), Config(64, 64, 8, 2)),
    (90, 128, 128): Row(Config(128, 64, 8, 3), Config(128, 64, 8, 2), Config(32, 128, 8, 2)),
    (90, 256, 64): Row(Config(64, 32, 4, 2), Config(32, 32, 4, 2), Config(32, 32, 4, 2)),
    (90, 256, 128): Row(Config(64, 32, 4, 2), Config(32, 32, 4, 2), Config(32, 32, 4, 2)),
    (100, 16, 64): Row(Config(64, 64, 4, 3), Config(64, 64, 4, 2), Config(32, 64, 4, 2)),
    (100, 32, 64): Row(Config(64, 32, 4, 2), Config(32, 64, 4, 2), Config(64, 64, 4, 2)),
    (100, 32, 128): Row(Config(128, 64, 8, 3), Config(64, 64, 4, 2), Config(64, 128, 8, 2)),
    (100, 64, 64): Row(Config(64, 64, 4, 2), Config(64, 64, 4, 2), Config(64, 64, 4, 2)),
    (100, 64, 128): Row(Config(128, 64, 8, 3), Config(128, 64, 8, 2), Config(64, 128, 8, 2)),
    (100, 96, 16): Row(Config(16, 16, 4, 3), Config(16, 16, 2, 2), Config(16, 16, 4, 2)),
    (100, 96, 64): Row(Config(64, 64, 4, 3), Config(64, 64, 4, 3), Config(64, 64, 4, 2)),
    (100, 96, 128): Row(Config(128, 64, 8, 3), Config(64, 128, 8, 2), Config(64, 128, 8, 2)),
    (100, 128, 64): Row(Config(64, 64, 4, 3), Config(64, 32, 4, 3), Config(64, 64, 4, 2)),
    (100, 128, 128): Row(Config(128, 64, 8, 3), Config(64, 64, 4, 2), Config(64, 128, 8, 2)),
    (100, 256, 64): Row(Config(64, 32, 4, 2), Config(32, 32, 4, 2), Config(32, 32, 4, 2)),
    (100, 256, 128): Row(Config(64, 32, 4, 2), Config(32, 32, 4, 2), Config(32, 32, 4, 2)),
    (120, 32, 64): Row(Config(64, 64, 4, 2), Config(64, 32, 4, 2), Config(32, 32, 4, 2)),
    (120, 32, 128): Row(Config(128, 64, 8, 2), Config(128, 32, 8, 2), Config(32, 64, 4, 2)),
    (120, 64, 64): Row(Config(64, 64, 4, 2), Config(32, 64, 4, 2), Config(32, 64, 4, 2)),
    (120, 64, 128): Row(Config(128, 64, 8, 3), Config(128, 64, 8, 2), Config(32, 64, 4, 2)),
    (120, 96, 64): Row(Config(64, 64, 8, 3), Config(64, 64, 8, 2), Config(32, 64, 8, 2)),
    (120, 96, 128): Row(Config(64, 64, 8, 3), Config(64, 32, 4, 2), Config(32, 64, 8, 2)),
    (120, 128, 64): Row(Config(64, 64, 8, 2), Config(64, 64, 8, 2), Config(32, 64, 8, 2)),
    (120, 128, 128): Row(Config(64, 64, 8, 3), Config(64, 32, 8, 2), Config(64, 64, 8, 2)),
    (120, 256, 64): Row(Config(64, 32, 8, 2), Config(32, 32, 4, 2), Config(32, 32, 4, 2)),
    (120, 256, 128): Row(Config(64, 32, 8, 2), Config(32, 32, 4, 2), Config(32, 32, 4, 2)),
}
# What takes the place of a row's where a mask has padded keys, tiles and means together: each of them takes registers.
CROWDED: dict[tuple[int, int, int], dict[str, Config]] = {
    (80, 64, 128): {"forward": Config(128, 32, 8, 3)},
    (89, 64, 128): {"forward": Config(128, 32, 8, 3)},
    (90, 128, 64): {"forward": Config(64, 32, 4, 2), "grad_query": Config(64, 32, 4, 2)},
    (120, 64, 128): {"forward": Config(128, 32, 8, 3)},
}
# (precision of products, widest head dim), for all three kernels on every architecture: the widest heads in the 99 KiB
# of 89 and 120 too, and few registers spilled, as products outside of the tensor cores hold whole rows in them.
FLOAT32: dict[tuple[str, int], Config] = {
    ("ieee", 64): Config(32, 32, 8, 1),
    ("ieee", 256): Config(16, 16, 4, 1),
    ("tf32", 128): Config(32, 32, 4, 1),
    ("tf32", 256): Config(16, 16, 4, 1),
}


def key_of(architecture: int, dim: int, size: int) -> tuple[int, int, int]:
    """The row of the table that serves such a GPU, head dim and block."""
    known = max((key[0] for key in TABLE if key[0] <= architecture), default=80)
    return min(key for key in TABLE if key[0] == known and key[1] >= dim and key[2] >= size)


def pick(architecture: int, dim: int, size: int, float32: str | None = None, crowded: bool = False) -> Row:
    """The configurations to launch with.

    Args:
        architecture: CUDA compute capability, 10 · major + minor.
        dim: the head dim.
        size: slots in a block.
        float32: the precision of products where inputs are of 32 bits, "ieee" or "tf32"; those take small tiles.
        crowded: whether the mask has padded keys, tiles and means together.
    """
    if float32 is None:
        key = key_of(architecture, dim, size)
        row = TABLE[key]
        if crowded:
            row = row._replace(**CROWDED.get(key, {}))
    else:
        row = Row(*[FLOAT32[float32, min(w for p, w in FLOAT32 if p == float32 and w >= dim)]] * 3)
    return Row(*(config.within(size) for config in row))
