"""The order in which examples are seen: a function of seed and position, so that nothing about it need be saved."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import torch


class Order:
    """Batches of equal size without end; every epoch all examples once, shuffled.

    Args:
        sizes: of every example; a batch has one size.
        batch: examples in a batch, fewer at the end of a size.
        seed: of the shuffles.
    """

    def __init__(self, sizes: Sequence[Hashable], batch: int, seed: int) -> None:
        self._groups: dict[Hashable, list[int]] = defaultdict(list)
        for index, size in enumerate(sizes):
            self._groups[size].append(index)
        self._batch, self._seed = batch, seed
        self.per_epoch = sum(-(-len(group) // batch) for group in self._groups.values())
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    def __getitem__(self, number: int) -> list[int]:
        """The examples of a batch, counted from 0 over all epochs."""
        epoch, position = divmod(number, self.per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = epoch, self._shuffled(epoch)
        return self._epoch[1][position]

    def _shuffled(self, epoch: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(hash((self._seed, epoch)) % 2**63)
        batches = []
        for group in self._groups.values():
            mixed = [group[i] for i in torch.randperm(len(group), generator=generator).tolist()]
            batches += [mixed[i : i + self._batch] for i in range(0, len(mixed), self._batch)]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
