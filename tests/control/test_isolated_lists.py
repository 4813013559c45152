"""Isolated regions over a static pattern are one run over its block lists, in which fewer pairs of blocks are."""

import gc
import sys
import weakref

import pytest
import torch

import dattn
from dattn.apart import apart, listed
from dattn.control.base import Call
from dattn.control.region import Region
from dattn.control.region_plan import Kinds
from dattn.control.regions import Regions
from tests.families import FAMILIES
from tests.oracles import tail_oracle

from .stages import WIDTH, qkv, stage, through
from .test_regions import Pipeline, Placed, covers_of, naive

PATTERNS = [
    dattn.Neighborhood((None, 3, 5)),
    dattn.Neighborhood((2, 5, 5), tile=(1, 4, 4)),
    dattn.Radial(block_size=16, decay=0.3, sink=False),
    dattn.Dense(),
    dattn.PerHead((dattn.Radial(block_size=32), dattn.Neighborhood((2, 3, 3)))),
]
GRIDS = [dattn.TokenGrid(3, 7, 11), dattn.TokenGrid(3, 7, 11, text=(5, 19)), dattn.TokenGrid(1, 9, 13, text=12)]
TRACK = {0: (0, 0, 0.3, 1), 2: (0.5, 0.2, 1, 1)}
REGIONS = {
    "halves": (Region("a", box=(0, 0, 0.5, 1)), Region("b", box=(0.5, 0, 1, 1))),
    "overlap": (Region("a", box=(0, 0, 0.5, 0.9)), Region("b", box=(0.3, 0.2, 0.9, 1))),
    "gap": (Region("a", box=(0, 0, 0.2, 1)), Region("b", box=(0.8, 0.5, 1, 1))),
    "three": (*(Region("a", box=(i / 3, 0, (i + 1) / 3, 0.8)) for i in range(2)), Region("c", box=(0.4, 0.5, 1, 1))),
    "moves": (Region("a", box=TRACK), Region("b", box=(0, 0.6, 1, 1))),
    "one token": (Region("a", box=(0, 0, 0.01, 0.01)), Region("b", box=(0.2, 0, 1, 1))),
}
HALVES = torch.eye(2).bool()


def kinds_on(grid, regions):
    """Who sees whom, with text that sees all; and that as bool [tokens, tokens], from the regions themselves."""
    members = torch.zeros(len(regions), grid.tokens, dtype=torch.bool)
    members[:, grid.text_before : grid.text_before + grid.visual] = covers_of(regions, grid) > 0
    none = ~members.any(0)
    return Kinds.of(members), none | none[:, None] | (members[:, :, None] & members[:, None]).any(0)


@pytest.mark.parametrize("regions", REGIONS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("pattern", PATTERNS, ids=range(len(PATTERNS)))
def test_what_is_left_of_a_mask(pattern, grid, regions):
    if regions == "moves" and grid.frames == 1:
        regions = "three"
    pattern = pattern.fit(grid)[0]
    kinds, seen = kinds_on(grid, REGIONS[regions])
    mask = kinds.narrowed(pattern.mask(grid))
    wanted = pattern.allowed(grid) & seen
    assert torch.equal(mask.to_dense(), wanted)
    assert mask.element_density == pytest.approx(wanted.double().mean().item())
    for side in (mask.query, mask.key):
        assert torch.equal(side.order.sort(-1)[0], torch.arange(grid.tokens).expand_as(side.order))
        assert (side.lengths.sum(-1) == grid.tokens).all() and (side.lengths <= mask.block_size).all()
    packed = mask.tiles[mask.tile[0, 0, : int(mask.partial.offsets[0, 0, -1])].long()]
    assert packed.flatten(1).any(1).all()  # no pair is visited for nothing


@pytest.fixture
def runs(monkeypatch):
    """The masks over which attention runs."""
    module, found = sys.modules["dattn.attention"], []
    run = module.run
    monkeypatch.setattr(module, "run", lambda name, problem: found.append(problem.mask) or run(name, problem))
    return found


@pytest.mark.parametrize("pattern", PATTERNS, ids=range(len(PATTERNS)))
@pytest.mark.parametrize("kind", ["self", "joint"])
@pytest.mark.parametrize("regions", ["halves", "overlap", "gap", "moves"])
def test_it_is_one_run_and_exact_as_are_its_gradients(kind, pattern, regions, runs):
    grid, regions = dattn.TokenGrid(3, 7, 9, text=12 if kind == "joint" else 0), REGIONS[regions]
    tensors = [t.requires_grad_() for t in qkv(2, 2, grid.tokens, grid.tokens)]
    fitted, covers = pattern.fit(grid)[0], covers_of(regions, grid)
    output = through([Placed(regions, 0.3, isolate=True)], stage("base"), kind, *tensors, fitted, grid)
    assert len(runs) == 1
    of_heads = pattern.patterns if isinstance(pattern, dattn.PerHead) else (pattern,) * 2
    heads = [
        naive(*(t[:, h : h + 1] for t in tensors), kind, covers, 0.3, isolate=True, pattern=own, grid=grid)
        for h, own in enumerate(of_heads)
    ]
    wanted = torch.cat(heads, 1)
    assert (output - wanted).abs().max() < 1e-12
    weights = torch.randn(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(1))
    grads = [torch.autograd.grad((found * weights).sum(), tensors) for found in (output, wanted)]
    assert max((one - other).abs().max() for one, other in zip(*grads, strict=True)) < 1e-12


def test_padding_stays_hidden(runs):
    grid = dattn.TokenGrid(1, 9, 13)
    query, key, value = qkv(2, 2, grid.tokens, grid.tokens)
    hidden = torch.zeros(2, 1, 1, grid.tokens, dtype=torch.bool)
    hidden[0, ..., 3:40] = True
    run = lambda value: through(
        [Placed(REGIONS["halves"], isolate=True)],
        stage("base"),
        "self",
        query,
        key,
        value,
        PATTERNS[0],
        grid,
        mask=~hidden,
    )
    assert torch.equal(run(value), run(value.masked_fill(hidden[:, :, 0, :, None], 9)))
    assert len(runs) == 2


@pytest.mark.parametrize(
    ("pattern", "share"),
    [
        (dattn.Neighborhood((None, 9, 9)), 0.95),
        (dattn.Neighborhood((None, 24, 24), tile=(1, 8, 8)), 0.8),
        (dattn.Radial(block_size=64), 0.55),
        (dattn.Radial(block_size=16, decay=0.3, sink=False), 0.75),
        (dattn.Dense(), 0.55),
        (dattn.PerHead((dattn.Radial(block_size=64), dattn.Dense())), 0.6),
    ],
    ids=str,
)
def test_fewer_pairs_of_blocks_are_visited(pattern, share, runs):
    """Rows of tokens are cut through by the regions, boxes of tokens are not, or seldom."""
    grid = dattn.TokenGrid(3, 32, 30)
    tensors = qkv(1, 2, grid.tokens, grid.tokens, dtype=torch.float32)
    through([Placed(REGIONS["halves"], isolate=True)], stage("base"), "self", *tensors, pattern.fit(grid)[0], grid)
    (mask,) = runs
    alone = pattern.fit(grid)[0].mask(grid)
    assert mask.visited.mean() <= share * alone.visited.mean()
    assert mask.element_density < alone.element_density


def test_blocks_of_one_kind_stay_and_the_others_are_put_together():
    """Halves of a picture 20 wide: of blocks of rows new ones are made; tiles 5 wide are all there were."""
    kind = (torch.arange(400) % 20 >= 10).long()
    rows = apart(dattn.Dense().mask(dattn.TokenGrid(1, 20, 20)), kind, HALVES)
    assert rows.visited.item() == 2 * 2 * 2 and not rows.partial.index.numel()
    own = dattn.Neighborhood((None, 11, 11), tile=(1, 5, 5)).mask(dattn.TokenGrid(1, 20, 20))
    tiles = apart(own, kind, HALVES)
    assert torch.equal(tiles.query.order, own.query.order) and torch.equal(tiles.query.lengths, own.query.lengths)
    assert set(map(bytes, tiles.tiles.numpy())) <= set(map(bytes, own.tiles.numpy()))


def test_regions_that_hide_nothing_leave_the_pattern_as_it_is():
    grid, pattern = dattn.TokenGrid(1, 9, 13), PATTERNS[0]
    tensors = qkv(1, 2, grid.tokens, grid.tokens)
    output = through([Placed(REGIONS["gap"][:1], isolate=True)], stage("base"), "self", *tensors, pattern, grid)
    assert torch.equal(output, dattn.attention(*tensors, pattern, grid, return_lse=True)[0])


def test_a_tail_is_of_the_keys_that_are_seen(runs):
    """Which lists cannot say: a run for each kind."""
    grid = dattn.TokenGrid(5, 4, 5)
    pattern = dattn.Radial(block_size=16, decay=0.3, sink=False, tail=True)
    query, key, value = qkv(1, 2, grid.tokens, grid.tokens)
    output = through(
        [Placed(REGIONS["overlap"], isolate=True)], stage("base"), "self", query, key, value, pattern, grid
    )
    mask, (kinds, seen) = pattern.mask(grid), kinds_on(grid, REGIONS["overlap"])
    assert not listed(mask) and len(runs) == len(kinds.groups) == 3
    for queries, keys in kinds.groups:
        assert torch.equal(seen[queries][0].nonzero().flatten(), keys)
        kept = torch.zeros(1, grid.tokens, dtype=torch.bool).index_fill(1, keys, True)
        wanted, _ = tail_oracle(query, key, value, mask, grid, 16, WIDTH**-0.5, kept)
        assert (output - wanted)[:, :, queries].abs().max() < 1e-12
    with pytest.raises(ValueError, match="hide the keys with key_mask="):
        apart(mask, kinds.kind, kinds.sees)


def test_lists_of_a_call_are_gone_with_it(monkeypatch):
    grid, given = dattn.TokenGrid(1, 9, 13), []
    tensors = qkv(1, 2, grid.tokens, grid.tokens)
    noted = lambda *terms: given.append(terms[0]) or apart(*terms)
    monkeypatch.setattr("dattn.control.region_plan.apart", noted)
    control, own = Placed(REGIONS["halves"], isolate=True), stage("base")
    run = lambda: through([control], own, "self", *tensors, PATTERNS[0], grid)
    first = run()
    (plan,) = control._plans.values()
    (kept,) = plan.kinds._lists._kept.values()
    assert plan.kinds.narrowed(given[0]) is kept and len(given) == 1  # one layer makes them, others find them
    gone = weakref.ref(kept)
    del plan, kept
    control.regions = REGIONS["gap"]
    assert (run() - first).abs().max() > 1e-3  # ``through`` starts a call
    given.clear(), gc.collect()
    assert gone() is None


@pytest.mark.parametrize("name", ["wan", "flux", "unet"])
def test_in_a_model(name, runs, monkeypatch):
    """The same as a run for each kind, in fewer runs."""
    pipeline = Pipeline(FAMILIES[name])
    regions = [Region("b", box=(0, 0, 0.4, 1)), Region("c", box=(0.4, 0, 1, 1))]
    made = []
    monkeypatch.setattr("dattn.control.region_plan.apart", lambda *given: made.append(given) or apart(*given))
    with dattn.apply(pipeline, dattn.Neighborhood((None, 3, 3)), control=Regions(regions, isolate=True)):
        output = pipeline("a")
        once = len(runs)
        assert made
        monkeypatch.setattr(Call, "attend_over", lambda self, narrow: None)
        runs.clear()
        torch.testing.assert_close(pipeline("a"), output, atol=1e-5, rtol=1e-4)
        assert once < len(runs)
