"""Checks of a block mask before a kernel follows it blindly: nothing may point outside of the tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from dattn.block_mask import BlockList, BlockMask
from dattn.grid import Layout


def check_lists(mask: BlockMask) -> None:
    """Look through all that a kernel reads of a mask.

    Raises:
        ValueError: lists, tiles, lengths or an order that would lead outside.
    """
    levels = ((f"levels[{i}]", level.blocks) for i, level in enumerate(mask.levels))
    for name, blocks in (("full", mask.full), ("partial", mask.partial), *levels):
        _check_rows(name, blocks, *mask.num_blocks)
    for run in mask.pools:
        if run < 1 or mask.block_size % run:
            raise ValueError(f"runs of {run} keys: they divide the block size {mask.block_size}")
    _check_range("tile", mask.tile, len(mask.tiles), "tiles in the table")
    for name, side in (("query", mask.query), ("key", mask.key)):
        _check_layout(name, side, mask.block_size)


def _check_rows(name: str, blocks: BlockList, rows: int, columns: int) -> None:
    offsets, entries = blocks.offsets, blocks.index.shape[-1]
    if offsets.shape[-1] != rows + 1 or (offsets[..., 0] != 0).any() or (offsets.diff(dim=-1) < 0).any():
        raise ValueError(f"{name}.offsets: {rows + 1} numbers for {rows} query blocks, from 0 on, never falling")
    if (offsets[..., -1] > entries).any():
        raise ValueError(f"{name}.offsets: end at {int(offsets.max())}, past the {entries} entries of {name}.index")
    used = torch.arange(entries, device=offsets.device) < offsets[..., -1:]
    _check_range(f"{name}.index", blocks.index[used.expand_as(blocks.index)], columns, "key blocks")


def _check_layout(name: str, side: Layout, size: int) -> None:
    tokens = side.order.shape[-1]
    if (side.lengths < 0).any() or (side.lengths > size).any() or (side.lengths.sum(-1) != tokens).any():
        raise ValueError(f"{name}.lengths: each at most the block size {size}, and {tokens} tokens in all")
    _check_range(f"{name}.order", side.order, tokens, "tokens")


def _check_range(name: str, numbers: Tensor, end: int, what: str) -> None:
    if numbers.numel() and not (int(numbers.min()) >= 0 and int(numbers.max()) < end):
        raise ValueError(f"{name}: {int(numbers.min())} to {int(numbers.max())}, but there are {end} {what}")
