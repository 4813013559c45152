"""A few rows tell what all of them would."""

from statistics import fmean

import pytest
import torch

import dattn
from dattn.attention import attend
from dattn.spec import Call
from dattn.tuning.sampled import look

GRID = dattn.TokenGrid(5, 6, 7, text=(3, 2))
SPECS = [
    dattn.Radial(block_size=16),
    dattn.Radial(block_size=16, tail=True),
    dattn.Neighborhood((3, 3, 3), tile=(2, 2, 4)),
    dattn.StridedHeads(2, 1),
    dattn.Alike(0.3, block_size=16),
    dattn.Selected(block_size=16),
    dattn.FirstOrder(dattn.Radial(block_size=16)),
    dattn.Dense(),
]


def a_call(heads=4, batch=2, key_mask=None):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(batch, heads, GRID.tokens, 16, generator=generator) for _ in range(3))
    return Call(2 * q, k, v, GRID, {}, 16**-0.5, key_mask, "auto")


def whole(call, spec):
    dense = attend(*call[:3], dattn.Dense(), GRID, **call.options)
    return dense, attend(*call[:3], spec, GRID, state={}, **call.options)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_all_rows_are_the_whole_error(spec):
    call = a_call()
    dense, output = whole(call, spec)
    seen = look(call, spec, dense, GRID.tokens, torch.Generator().manual_seed(0))
    error = (output - dense).double().square().sum((0, 2, 3)) / dense.double().square().sum()
    torch.testing.assert_close(seen.error, error, rtol=1e-4, atol=1e-10)


@pytest.mark.parametrize("spec", SPECS[:6], ids=lambda spec: spec.name)
def test_some_rows_are_near_it(spec):  # blocks of several sizes, few of them: a ratio of means is off by a little
    call = a_call()
    dense, _ = whole(call, spec)
    every = look(call, spec, dense, GRID.tokens, torch.Generator().manual_seed(0)).error.sum().item()
    means = [look(call, spec, dense, 64, torch.Generator().manual_seed(i)).error.sum().item() for i in range(32)]
    assert fmean(means) == pytest.approx(every, rel=0.25)
    assert len(set(means)) > 1


def test_kept_is_the_share_of_the_weight():
    hidden = torch.ones(2, GRID.tokens, dtype=torch.bool)
    hidden[1, :2] = False
    call, spec = a_call(key_mask=hidden), dattn.Radial(block_size=16)
    dense, _ = whole(call, spec)
    seen = look(call, spec, dense, GRID.tokens, torch.Generator().manual_seed(0))
    logits = (call.query @ call.key.mT * call.scale).masked_fill(~hidden[:, None, None], -torch.inf)
    kept = (logits.softmax(-1) * spec.allowed(GRID)).sum(-1).mean((0, 2))
    torch.testing.assert_close(seen.kept, kept.double(), rtol=1e-5, atol=1e-6)
    assert look(call, dattn.Dense(), dense, 64, torch.Generator()).kept == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(
    "spec", [SPECS[0], SPECS[2], SPECS[3], dattn.Pyramid((0.3, 0.5, 0.7, 0.9), block_size=16)], ids=str
)
def test_a_mask_of_some_rows(spec):
    call = a_call()
    mask = spec.mask(GRID) if spec.static else spec.mask_for(call.query, call.key, GRID)
    rows = torch.rand(mask.query.blocks, generator=torch.Generator().manual_seed(1)) < 0.4
    some, all_of_it = mask.only(rows).to_dense(), mask.to_dense()
    every = mask.query.order.shape[:2]
    for batch in range(every[0]):
        for group in range(every[1]):
            inside = rows[mask.query_blocks(group, batch)][:, None]
            pick = lambda t, b=batch, g=group: t.reshape(-1, *t.shape[-2:])[
                min(b * every[1] + g, t.reshape(-1, *t.shape[-2:]).shape[0] - 1)
            ]
            assert torch.equal(pick(some), pick(all_of_it) & inside)
