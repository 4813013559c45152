"""Choosing blocks from scores: against sorting and counting by hand."""

from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dattn import selection
from dattn.selection import to_lists, top_k, top_p

SCORES = st.lists(st.floats(0, 10, width=32), min_size=1, max_size=12)


@given(SCORES, st.integers(1, 15))
def test_top_k_are_the_best_and_ties_go_to_the_lower_block(row, count):
    kept = top_k(torch.tensor(row)[None, None, None], count)[0, 0, 0].tolist()
    best = sorted(range(len(row)), key=lambda i: (-row[i], i))[:count]
    assert kept == [i in best for i in range(len(row))]


@given(SCORES, st.floats(0.01, 1), st.sampled_from([3, selection.CHUNK]))
def test_top_p_are_the_fewest_best_that_hold_the_share(row, share, piece):
    with mock.patch.object(selection, "CHUNK", piece):
        kept = top_p(torch.tensor(row)[None, None, None], share)[0, 0, 0]
    values = torch.tensor(row, dtype=torch.float64)
    total, held = values.sum(), values[kept].sum()
    assert held >= share * total * (1 - 1e-12)
    if kept.sum() > 1:
        assert held - values[kept].min() < share * total * (1 + 1e-12)  # one fewer would not do
        assert values[kept].min() > 0
    if not bool(kept.all()):
        assert values[kept].min() >= values[~kept].max()
    assert kept.any()


def test_long_rows_of_ties_and_of_zeros():
    row = torch.zeros(1, 1, 1, 70_000)
    assert top_p(row, 0.5).nonzero()[:, -1].tolist() == [0]
    row[..., 0], row[..., 1:1001], row[..., 1001:69_001] = 1.0, 0.5 + 1 / 4096, 0.5
    held = row.double().cumsum(-1)
    for share in (0.01, 0.4, 0.97, 0.99):
        fewest = int((held < share * held[..., -1:]).sum()) + 1
        assert top_p(row, share).nonzero()[:, -1].tolist() == list(range(fewest))


@pytest.mark.parametrize("choose", [lambda t: top_k(t, 2), lambda t: top_k(t, 3), lambda t: top_p(t, 0.5)])
def test_what_is_no_number_empties_no_row(choose):
    rows = torch.tensor([[torch.nan, 0.2, 0.8], [torch.nan] * 3])
    assert choose(rows).any(-1).all()


def test_top_p_of_one_leaves_only_zeros_out():
    kept = top_p(torch.tensor([[[[0.0, 1e-20, 0.0, 0.8], [0.0, 0.0, 0.0, 0.0]]]]), 1.0)
    assert kept[0, 0].tolist() == [[False, True, False, True], [True, False, False, False]]


@given(st.integers(1, 2), st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(0, 99))
def test_lists_hold_what_was_kept(batch, groups, rows, columns, seed):
    kept = torch.rand(batch, groups, rows, columns, generator=torch.Generator().manual_seed(seed)) > 0.5
    lists = to_lists(kept)
    assert lists.offsets.dtype == lists.index.dtype == torch.int32
    for b in range(batch):
        for g in range(groups):
            assert torch.equal(lists.rows(b, g, 0, rows, columns), kept[b, g])


def test_refusals_name_the_value():
    scores = torch.ones(1, 1, 2, 3)
    with pytest.raises(ValueError, match="keeps 0 blocks"):
        top_k(scores, 0)
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="share of"):
            top_p(scores, share)
