"""A block mask that would lead a kernel outside of its tensors is refused before any launch."""

from dataclasses import replace

import pytest
import torch

from dattn import Neighborhood, TokenGrid
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
    "an order that leads outside": (
        replace(MASK, key=replace(MASK.key, order=changed(MASK.key.order, 0, 109))),
        r"key\.order: \d+ to 109, but there are 109 tokens",
    ),
}


def test_a_sound_mask_passes():
    check_lists(MASK)
    junk = torch.nn.functional.pad(MASK.full.index, (0, 3), value=10**6)  # past the last offset: means nothing
    check_lists(with_full(index=junk))


@pytest.mark.parametrize("what", BAD)
def test_what_leads_outside_is_refused(what):
    mask, message = BAD[what]
    with pytest.raises(ValueError, match=message):
        check_lists(mask)
