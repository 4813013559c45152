"""A block mask that would lead a kernel outside of its tensors is refused before any launch."""

from dataclasses import replace

import pytest
import torch

from dattn import Anchor, Neighborhood, TokenGrid
from dattn.backends.list_check import check_lists
from dattn.block_mask import BlockList

MASK = Neighborhood(3, tile=(2, 3, 4)).mask(TokenGrid(3, 5, 7, text=4))


def changed(tensor, place, value):
    out = tensor.clone()
    out[0, 0, place] = value
    return out


def with_full(offsets=None, index=None):
    full = MASK.full
    full = BlockList(full.offsets if offsets is None else offsets, full.index if index is None else index)
    return replace(MASK, full=full)


BAD = {
    "a block that is not there": (with_full(index=changed(MASK.full.index, 0, 99)), r"full\.index: .* 99, but there"),
    "a negative block": (with_full(index=changed(MASK.full.index, 0, -1)), r"full\.index: -1 to"),
    "more entries than there are": (
        with_full(offsets=changed(MASK.full.offsets, -1, 1000)),
        r"full\.offsets: end at 1000",
    ),
    "rows that fall": (with_full(offsets=changed(MASK.full.offsets, 1, -5)), r"full\.offsets: .*never falling"),
    "too few rows": (with_full(offsets=MASK.full.offsets[..., :-1]), r"full\.offsets: \d+ numbers"),
    "a tile that is not there": (replace(MASK, tile=changed(MASK.tile, 0, 12345)), r"tile: 0 to 12345"),
    "a block too long": (
        replace(MASK, query=replace(MASK.query, lengths=changed(MASK.query.lengths, 0, 33))),
        r"query\.lengths: each at most the block size 32",
    ),
    "tokens that are missing": (
        replace(MASK, key=replace(MASK.key, lengths=changed(MASK.key.lengths, 0, 0))),
        r"key\.lengths: .* 109 tokens",
    ),
    "a token that is named twice": (
        replace(MASK, query=replace(MASK.query, order=changed(MASK.query.order, 0, int(MASK.query.order[0, 0, 1])))),
        r"query\.order: its first 109 places",
    ),
    "an order as long as it leads": (
        replace(MASK, key=replace(MASK.key, order=torch.nn.functional.pad(MASK.key.order, (0, 9), value=115))),
        r"key\.order: \d+ to 115, but there are 109 tokens",
    ),
    "tiles of another block": (
        replace(MASK, tiles=torch.nn.functional.pad(MASK.tiles, (0, 1))),
        r"tiles: .* \[tiles, 32, 1\]",
    ),
    "tiles that are not packed": (replace(MASK, tiles=MASK.unpacked_tiles()), r"tiles: torch\.bool"),
    "fewer tiles than entries": (replace(MASK, tile=MASK.tile[..., 1:]), r"tile of .*: one tile of each entry"),
    "an order that leads outside": (
        replace(MASK, key=replace(MASK.key, order=changed(MASK.key.order, 0, 109))),
        r"key\.order: \d+ to 109, but there are 109 tokens",
    ),
}


def test_a_sound_mask_passes():
    check_lists(MASK)
    junk = torch.nn.functional.pad(MASK.full.index, (0, 3), value=10**6)  # past the last offset: means nothing
    check_lists(with_full(index=junk))


def test_keys_that_are_listed_again_pass():
    grid, pattern = TokenGrid(3, 5, 7, text=(3, 4)), Anchor(1.2, 1, keep=(), block_size=32)
    query, key = torch.randn(2, 2, 2, grid.tokens, 16, generator=torch.Generator().manual_seed(0))
    mask = pattern.mask_for(query, key, grid)
    assert mask.repeats
    check_lists(mask)


@pytest.mark.parametrize("what", BAD)
def test_what_leads_outside_is_refused(what):
    mask, message = BAD[what]
    with pytest.raises(ValueError, match=message):
        check_lists(mask)
