"""Checks of a block mask before a kernel follows it blindly: nothing may point outside of the tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from dattn.block_mask import WORD, BlockList, BlockMask
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
    _check_tiles(mask)
    for name, side in (("query", mask.query), ("key", mask.key)):
        _check_layout(name, side, mask.block_size, mask.query.order.shape[-1])


def _check_rows(name: str, blocks: BlockList, rows: int, columns: int) -> None:
    offsets, entries = blocks.offsets, blocks.index.shape[-1]
    if offsets.shape[-1] != rows + 1 or (offsets[..., 0] != 0).any() or (offsets.diff(dim=-1) < 0).any():
        raise ValueError(f"{name}.offsets: {rows + 1} numbers for {rows} query blocks, from 0 on, never falling")
    if (offsets[..., -1] > entries).any():
        raise ValueError(f"{name}.offsets: end at {int(offsets.max())}, past the {entries} entries of {name}.index")
    used = torch.arange(entries, device=offsets.device) < offsets[..., -1:]
    _check_range(f"{name}.index", blocks.index[used.expand_as(blocks.index)], columns, "key blocks")


def _check_tiles(mask: BlockMask) -> None:
    size = mask.block_size
    wanted = (size, -(-size // WORD))
    if mask.tiles.dtype != torch.int32 or tuple(mask.tiles.shape[1:]) != wanted:
        raise ValueError(
            f"tiles: {mask.tiles.dtype} {tuple(mask.tiles.shape)}; packed for blocks of {size} they are torch.int32 "
            f"[tiles, {wanted[0]}, {wanted[1]}]"
        )
    if mask.tile.shape != mask.partial.index.shape:
        shapes = (tuple(t.shape) for t in (mask.tile, mask.partial.index))
        raise ValueError("tile of {} for a partial.index of {}: one tile of each entry".format(*shapes))
    _check_range("tile", mask.tile, len(mask.tiles), "tiles in the table")


def _check_layout(name: str, side: Layout, size: int, tokens: int) -> None:
    """Every one of the tokens once; behind all of them, tokens may be listed again (on the side of keys)."""
    order, lengths, places = side.order, side.lengths, side.order.shape[-1]
    total = lengths.sum(-1)
    if (lengths < 0).any() or (lengths > size).any() or (total < tokens).any() or (total > places).any():
        raise ValueError(
            f"{name}.lengths: each at most the block size {size}, and in all from {tokens} tokens to {places} places"
        )
    _check_range(f"{name}.order", order, tokens, "tokens")
    if (order[..., :tokens].sort(-1).values != torch.arange(tokens, device=order.device)).any():
        raise ValueError(f"{name}.order: its first {tokens} places hold every token once")


def _check_range(name: str, numbers: Tensor, end: int, what: str) -> None:
    if numbers.numel() and not (int(numbers.min()) >= 0 and int(numbers.max()) < end):
        raise ValueError(f"{name}: {int(numbers.min())} to {int(numbers.max())}, but there are {end} {what}")
