"""Dynamic patterns against naive definitions in float64: scores, choices, masks, outputs, what they keep."""

import json
import math
from dataclasses import replace
from functools import partial
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

import dattn
from dattn import (
    Anchor,
    Calibration,
    Clustered,
    FirstOrder,
    MeanSim,
    PerHead,
    PerStep,
    ProxyHeads,
    Pyramid,
    Radial,
    Rectified,
    Routing,
    Selected,
    SignificanceTail,
    SparseVideoGen,
    TokenGrid,
    VMoBA,
    XAttention,
    attention,
    pattern_from_dict,
    pattern_from_string,
)
from dattn.backends import run
from dattn.backends.problem import Problem
from dattn.block_mask import MaskCache
from dattn.clusters import Clusters, start
from dattn.head_masks import for_head_groups
from dattn.orders import ByCluster, ByLayer, Curve, PatchMajor, Raster, Tiled, Tree, hilbert_index
from dattn.patterns.dynamic import Given
from dattn.scores import (
    Antidiagonal,
    Gate,
    Joined,
    MeanSimilarity,
    Pooled,
    Proxy,
    Sampled,
    Sides,
    TokenGate,
    TrueWeights,
)
from dattn.selection import Threshold, TopK, TopP
from dattn.selection_in_parts import best_in_parts
from tests import dynamic_oracles as oracles
from tests.oracles import attention_oracle, tail_oracle

GRID = TokenGrid(3, 5, 6, text=(2, 3))
SIZE = 16
PATTERNS = {
    "selected": Selected(Pooled(), TopK(0.3), block_size=SIZE),
    "curve": Selected(Pooled(), TopP(0.5), Curve(), keep=("own", "first_frame"), block_size=SIZE),
    "layer-budget": Selected(Antidiagonal(4), TopK(0.3, across="layer"), PatchMajor(), block_size=SIZE),
    "xattention": XAttention(4, 0.6, block_size=SIZE),
    "mean-sim": MeanSim(0.3, 0.05, block_size=SIZE),
    "routing": Routing((1, 3, 3), 4, block_size=SIZE),
    "proxy-heads": ProxyHeads(2, 4, 0.6, block_size=SIZE),
    "vmoba": VMoBA(1, (2, 3), (2, 3, 2), 0.1, votes=0.5, block_size=SIZE),
    "sampled": Selected(Sampled(0.5), TopP(0.6), Tiled((2, 2, 3)), block_size=SIZE),
    "tree": Selected(Pooled(), TopK(0.3), Tree(3), keep=(), block_size=SIZE),
    "by-cluster": Selected(Pooled(), TopK(0.3), ByCluster(6), keep=(), block_size=SIZE),
    "sparse-video-gen": SparseVideoGen(0.6, block_size=SIZE),
    "clustered": Clustered(5, 8, top_p=0.5, block_size=SIZE),
    "anchor": Anchor(1.6, 2, block_size=SIZE),
    "pyramid": Pyramid((0.3, 0.5, 0.7, 0.9), guards=(0.0, 0.0, 0.0), block_size=SIZE),
}


@pytest.fixture(params=PATTERNS)
def pattern(request):
    return PATTERNS[request.param]


def inputs(grid=GRID, batch=2, heads=4, dim=8, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, heads, grid.tokens, dim, generator=generator, dtype=dtype) for _ in range(3)]


def sides(order=None, grid=GRID, size=SIZE, **options):
    """What scores are given, with the blocks and regions as lists of raster positions."""
    q, k, _ = inputs(grid, **options)
    partition = (order or Raster()).partition(q, k, grid, size, MaskCache())
    return Sides(*partition.visual(q, k), partition, MaskCache()), visual(q, grid), visual(k, grid)


def visual(tensor, grid):
    return tensor[:, :, grid.text_before : grid.text_before + grid.visual]


def pieces(order, grid=GRID, size=SIZE):
    """The blocks and regions of ``Raster`` or ``Tiled``, cut by hand, and the region of every block."""
    regions = oracles.boxes(grid.shape, order.tile) if isinstance(order, Tiled) else oracles.cut(grid.visual, size)
    blocks, own = oracles.split(regions, size)
    return blocks, regions, own


def check_scores(score, naive, order, heads=4):
    given, q, k = sides(order)
    blocks, regions, _ = pieces(order)
    expected = torch.tensor([[naive(q[b, h], k[b, h], blocks, regions) for h in range(heads)] for b in range(2)])
    torch.testing.assert_close(score.of(given), expected.double())


ORDERS = [Raster(), Tiled((2, 2, 3)), Tiled((3, 5, 2))]


@pytest.mark.parametrize("order", ORDERS)
def test_pooled(order):
    check_scores(Pooled(), oracles.pooled, order)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("stride", [2, 4, 5])
def test_antidiagonal(order, stride, monkeypatch):
    monkeypatch.setattr("dattn.scores.antidiagonal.CHUNK", 4000)  # several chunks of rows
    naive = lambda q, k, blocks, regions: oracles.antidiagonal(q, k, blocks, regions, stride)
    check_scores(Antidiagonal(stride), naive, order)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("by", ["largest", "total"])
def test_true_weights(order, by, monkeypatch):
    monkeypatch.setattr("dattn.scores.base.CHUNK", 4000)
    check_scores(TrueWeights(by), partial(oracles.true_weights, by=by), order)


def test_true_weights_of_another_kind():
    with pytest.raises(ValueError, match="by='mean': choose one of largest, total"):
        TrueWeights("mean")


@pytest.mark.parametrize("order", ORDERS)
def test_sampled_of_everything(order, monkeypatch):
    monkeypatch.setattr("dattn.scores.base.CHUNK", 4000)
    check_scores(Sampled(1.0), oracles.largest_weights, order)


def test_sampled_of_some():
    """A sample sees no larger weights than there are, and tokens that are alike say it all."""
    given, _, _ = sides(Tiled((2, 2, 3)))
    alike = [t.clone() for t in (given.query, given.key)]
    start = 0
    for length in given.partition.lengths.tolist():
        for t in alike:
            t[:, :, start : start + length] = t[:, :, start, None]
        start += length
    same = given.of(*alike)
    torch.testing.assert_close(Sampled(0.3).of(same), Sampled(1.0).of(same))
    assert not torch.equal(Sampled(0.3).of(given), Sampled(0.3, seed=1).of(given))


@pytest.mark.parametrize("guard", [-1.0, 0.1, 0.16, 1.0])
def test_mean_similarity(guard):
    order = Tiled((2, 2, 3))
    blocks, regions, _ = pieces(order)
    given, q, k = sides(order)
    score = MeanSimilarity(guard)
    scores, must = score.of(given), score.must(given)
    for b in range(2):
        for h in range(4):
            expected = oracles.mean_similarity(q[b, h], k[b, h], blocks, regions, guard)
            if math.isfinite(float(scores[b, h].sum())):
                torch.testing.assert_close(scores[b, h], torch.tensor(expected[0], dtype=torch.float64))
            assert must[b, h].tolist() == expected[1]
    assert torch.isfinite(scores).all()
    assert guard not in (0.1, 0.16) or 0 < must.double().mean() < 1


def gate_file(folder, layers=2, heads=4, width=8, dim=5):
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(4)
    shapes = {"query": (heads, width, dim), "key": (heads, 3 * width, dim)}
    tensors = {
        f"layers.{i}.{side}": torch.randn(shape, generator=generator)
        for i in range(layers)
        for side, shape in shapes.items()
    }
    save_file(tensors, folder / "gate.safetensors")
    return folder / "gate.safetensors", tensors


@pytest.mark.parametrize("order", ORDERS)
def test_learned_gate(order, tmp_path):
    path, matrices = gate_file(tmp_path)
    gate = Gate(path).at(1)
    given, q, k = sides(order)
    blocks, regions, _ = pieces(order)
    for h in range(4):
        weights = (matrices[f"layers.1.{side}"][h].double() for side in ("query", "key"))
        expected = oracles.gated(q[0, h], k[0, h], blocks, regions, *weights)
        torch.testing.assert_close(gate.of(given)[0, h], torch.tensor(expected, dtype=torch.float64))


def test_a_gate_goes_with_its_layer_and_its_model(tmp_path):
    path, _ = gate_file(tmp_path)
    pattern = dattn.LearnedGate(str(path), 0.2, block_size=SIZE)
    assert [pattern.at(i, 2, 0, 5).score.layer for i in range(2)] == [0, 1]
    assert pattern_from_dict(json.loads(json.dumps(pattern.to_dict()))) == pattern
    q, k, _ = inputs()
    assert 0 < pattern.mask_for(q, k, GRID).density < 1
    assert dattn.LearnedGate(path, topk=1).select == TopK(1)
    with pytest.raises(ValueError, match="it has no layers.2.query"):
        pattern.at(2, 3, 0, 5).mask_for(q, k, GRID)
    with pytest.raises(ValueError, match="the layer has 2 heads of 8"):
        pattern.mask_for(q[:, :2], k[:, :2], GRID)
    with pytest.raises(ValueError, match="no such file"):
        dattn.LearnedGate(tmp_path / "none")


@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
@pytest.mark.parametrize("order", [Raster(), Tiled((2, 2, 3))])
def test_rectified(order, padded):
    """Also where text is padded, whose keys have no weight in the pooled estimate."""
    q, k, v = inputs()
    generator = torch.Generator().manual_seed(7)  # means that say something, some of them more than others
    random = lambda count: torch.randn(2, 4, count, 8, generator=generator, dtype=torch.float64)
    q, k = 0.3 * q + random(1), 0.3 * k + random(6).repeat_interleave(16, 2)[:, :, : GRID.tokens]
    kept_keys = torch.ones(2, GRID.tokens, dtype=torch.bool)
    if padded:
        kept_keys[1, -2:] = False
    pattern = Selected(Pooled(), TopP(0.3), order, block_size=SIZE)
    output, lse = attention(q, k, v, Rectified(pattern), GRID, key_mask=kept_keys, return_lse=True, scale=0.3)
    given, *_ = sides(order)
    partition = given.partition
    kept = pattern.kept(Sides(*partition.visual(q * 0.3 * 8**0.5, k), partition, MaskCache()))
    blocks, regions, _ = pieces(order)
    blocks, regions = ([[2 + t for t in part] for part in parts] for parts in (blocks, regions))
    text = [0, 1, 92, 93, 94]
    for b in range(2):
        for h in range(4):
            expected = oracles.rectified(
                q[b, h], k[b, h], v[b, h], blocks, regions, kept[b, h].tolist(), text, kept_keys[b].tolist(), 0.3
            )
            torch.testing.assert_close(output[b, h], expected[0])
            torch.testing.assert_close(lse[b, h], expected[1])
    tensors = [t.clone().requires_grad_() for t in (q, k, v)]
    grads = torch.autograd.grad(
        attention(*tensors, Rectified(pattern), GRID, key_mask=kept_keys).square().sum(), tensors
    )
    assert all(grad.isfinite().all() and grad.any() for grad in grads)
    plain = attention(q, k, v, pattern, GRID, key_mask=kept_keys, scale=0.3)
    assert (plain - output).abs().max() > 1e-3


def test_rectifying_blocks_of_equal_tokens_is_exact():
    """Equal keys in a region and equal queries in a block: the pooled estimate is attention itself."""
    grid = TokenGrid(8, 4, 4, text=(0, 3))
    q, k, v = inputs(grid)
    for t in (q, k, v):
        t[:, :, :128] = t[:, :, :128:16].repeat_interleave(16, 2)
    pattern = Selected(Pooled(), TopK(0.3), block_size=SIZE)
    torch.testing.assert_close(attention(q, k, v, Rectified(pattern), grid), attention(q, k, v, dattn.Dense(), grid))


def test_rectified_refuses_what_it_cannot_pool():
    kept = torch.ones(2, GRID.tokens, dtype=torch.bool)
    kept[0, 50] = False
    with pytest.raises(ValueError, match="mask text alone"):
        attention(*inputs(), Rectified(), GRID, key_mask=kept)


def test_heads_that_choose_together_keep_their_own_orders():
    """Sorted head by head, chosen together: lists for every head."""
    q, k, _ = inputs()
    mask = Selected(Joined(), TopK(2), Tree(), keep=(), block_size=SIZE).mask_for(q, k, GRID)
    assert mask.groups == 4
    dense = mask.to_dense()
    assert not torch.equal(dense[:, 0], dense[:, 1])


def test_joined_heads_choose_together():
    order = Tiled((1, 3, 3))
    blocks, regions, _ = pieces(order)
    given, q, k = sides(order)
    together = [t.transpose(1, 2).flatten(2) for t in (q, k)]
    expected = torch.tensor([[oracles.pooled(together[0][b], together[1][b], blocks, regions)] for b in range(2)])
    torch.testing.assert_close(Joined().of(given), expected.double())


def test_proxy_heads_share_a_ranking_and_keep_their_profile():
    given, _, _ = sides()
    score = Proxy(Antidiagonal(4), 2, Pooled())
    found, own = score.of(given), Pooled().of(given)
    torch.testing.assert_close(found.sort(-1).values, own.sort(-1).values)
    averaged = [torch.stack([t[:, :2].mean(1), t[:, 2:].mean(1)], 1) for t in (given.query, given.key)]
    ranking = Antidiagonal(4).of(given.of(*averaged)).argsort(-1, descending=True)
    for head in range(4):
        falling = found[:, head].gather(-1, ranking[:, head // 2])
        assert (falling.diff(dim=-1) <= 0).all()
    assert Proxy(heads=9).of(given).shape == own.shape


@given(st.lists(st.integers(0, 20), min_size=1, max_size=60), st.integers(1, 7), st.floats(0.01, 1))
@settings(max_examples=150, deadline=None)
def test_the_best_in_parts_are_the_best(numbers, size, share):
    """Also where many are equal, or all in one bin."""
    for scale in (2**-5, 2**-23):  # sums are exact, in any order
        scores = torch.tensor(numbers, dtype=torch.float64) * scale
        for select in (TopP(share), TopK(share), TopK(3), Threshold(share)):
            found = torch.cat(list(best_in_parts(partial(scores.split, size), select)))
            assert torch.equal(found, select.chosen(scores))


@pytest.mark.parametrize("across", ["row", "head"])
def test_token_gates(across, monkeypatch):
    monkeypatch.setattr("dattn.scores.token_gate.GATES", 100)  # a few rows at a time
    order = Tiled((2, 2, 3))
    naive = lambda q, k, blocks, regions: oracles.votes(q, k, blocks, regions, 0.3, across == "head")
    check_scores(TokenGate(TopP(0.3, across=across)), naive, order)


@pytest.mark.parametrize("across", ["row", "head", "layer"])
@pytest.mark.parametrize("select", [TopK, TopP])
def test_who_competes(across, select):
    """The best of all that compete, and the best of every row."""
    scores = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    kept = select(0.3, across=across).kept(scores)
    groups = {"row": 3, "head": 2, "layer": 1}[across]
    rows = zip(scores.flatten(0, groups - 1).flatten(1), kept.flatten(0, groups - 1).flatten(1), strict=True)
    for row, chosen in rows:
        values = row.tolist()
        count = math.ceil(0.3 * len(values) - 1e-9)
        best = sorted(range(len(values)), key=lambda i: -values[i])[:count]
        wanted = set(best) if select is TopK else oracles.fewest(values, 0.3)
        firsts = {max(range(a, a + 5), key=values.__getitem__) for a in range(0, len(values), 5)}
        assert set(chosen.nonzero().flatten().tolist()) == wanted | firsts


def test_a_floor_holds_in_every_row_and_a_threshold_is_one():
    scores = torch.rand(1, 2, 6, 10, generator=torch.Generator().manual_seed(0))
    assert (TopK(0.1, across="layer", floor=0.3).kept(scores).sum(-1) >= 3).all()
    assert torch.equal(Threshold(0.5).kept(scores), scores >= 0.5)


@given(st.integers(1, 3), st.integers(1, 4))
@settings(deadline=None)
def test_the_curve_visits_neighbours(axes, bits):
    at = torch.cartesian_prod(*[torch.arange(1 << bits)] * axes).view(-1, axes)
    index = hilbert_index(at)
    assert index.sort().values.tolist() == list(range(len(at)))
    assert (at[index.argsort()].diff(dim=0).abs().sum(1) == 1).all()


@given(
    st.builds(TokenGrid, st.integers(1, 4), st.integers(1, 7), st.integers(1, 7), st.just((2, 1))),
    st.sampled_from(
        [Raster(), PatchMajor(), Curve(), Tiled(2), Tiled((1, None, 2)), Tiled(9), Tree(), Tree(2), ByCluster(5)]
    ),
)
@settings(max_examples=60, deadline=None)
def test_orders_hold_every_token_once(grid, order):
    partition = order.fit(grid)[0].partition(*inputs(grid)[:2], grid, SIZE, MaskCache())
    for side in (partition.query, partition.key):
        assert (side.sort().values == torch.arange(grid.visual)).all()
    assert int(partition.lengths.sum()) == int(partition.blocks.sum()) == grid.visual
    assert (partition.blocks >= 1).all() and (partition.blocks <= SIZE).all()
    totals = torch.zeros_like(partition.lengths).index_add_(0, partition.region, partition.blocks)
    assert torch.equal(totals, partition.lengths)


@pytest.mark.parametrize("dims", [3, 8])
def test_a_tree_halves_along_what_differs_most(dims):
    grid = TokenGrid(4, 4, 8, text=(2, 3))
    q, k, _ = (t + 2 * t[..., :1] * torch.linspace(1, 3, 8, dtype=t.dtype) for t in inputs(grid))
    partition = Tree(2, steps=500, dims=dims).partition(q, k, grid, SIZE, MaskCache())
    for order, tokens in ((partition.query, visual(q, grid)), (partition.key, visual(k, grid))):
        for b in range(2):
            for h in range(4):
                blocks = {frozenset(block) for block in order[b, h].view(-1, SIZE).tolist()}
                assert blocks == oracles.tree(oracles.leading(tokens[b, h], dims), list(range(grid.visual)), SIZE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_clusters_follow_each_other_along_a_line(dtype):
    """Five heaps of tokens: whole in the order, each beside its neighbours in space."""
    generator = torch.Generator().manual_seed(0)
    heap = torch.randint(5, (50,), generator=generator)
    direction = torch.randn(8, generator=generator, dtype=torch.float64)
    tokens = 10 * heap[:, None] * direction + 0.1 * torch.randn(2, 3, 50, 8, generator=generator, dtype=torch.float64)
    for order in ByCluster(25, rounds=3).sorted(tokens.to(dtype), 8).flatten(0, 1):
        heaps = heap[order].tolist()
        assert heaps in (sorted(heaps), sorted(heaps, reverse=True))
    one = ByCluster(1).sorted(tokens, 8)
    assert torch.equal(one, torch.arange(50).expand(2, 3, -1))  # equal ones stay in place


def test_more_clusters_than_tokens():
    grid = TokenGrid(1, 2, 3)
    order, note = ByCluster(64).fit(grid)
    assert order == ByCluster(6) and note == "clamped to 6 clusters" and order.fit(grid) == (order, None)
    with pytest.raises(ValueError, match="clusters=64 of 6 tokens"):
        ByCluster(64).partition(*inputs(grid)[:2], grid, SIZE, MaskCache())


def test_few_directions_of_a_tree_are_as_good_as_all():
    """The variance that is left within blocks, of tokens whose directions matter less and less."""
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(32, 32, generator=generator)).Q
    tokens = torch.randn(1, 2, 512, 32, generator=generator) * torch.logspace(0.5, -1, 32) @ turn

    def left(order):
        blocks = tokens.gather(2, order[..., None].expand(tokens.shape)).unflatten(2, (-1, SIZE))
        return (blocks - blocks.mean(3, keepdim=True)).square().sum()

    few, every, raster = (
        left(Tree().sorted(tokens, SIZE)),
        left(Tree(dims=32).sorted(tokens, SIZE)),
        left(order_of(512)),
    )
    assert few < 1.05 * every < 0.6 * raster


def order_of(count):
    return torch.arange(count).expand(1, 2, -1)


def test_a_tree_of_tokens_that_are_no_numbers_is_an_order():
    tokens = torch.randn(1, 2, 50, 16, generator=torch.Generator().manual_seed(0))
    tokens[0, 0, 7] = torch.nan
    assert (Tree().sorted(tokens, 8).sort().values == torch.arange(50)).all()
    assert (Tree().sorted(tokens.bfloat16(), 8).sort().values == torch.arange(50)).all()


@given(st.integers(1, 70), st.integers(2, 5))
@settings(max_examples=40, deadline=None)
def test_a_tree_sorts_a_line(count, ways):
    """Tokens on a line: whatever the parts and however ragged, blocks are stretches of it."""
    line = torch.randperm(count, generator=torch.Generator().manual_seed(count)).double()
    tokens = (line[:, None] * torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) + 7)[None, None]
    order = Tree(ways).sorted(tokens, 8)[0, 0]
    blocks = [line[order[a : a + 8]] for a in range(0, count, 8)]
    if len(blocks) > 1:
        spans = sorted((b.min().item(), b.max().item()) for b in blocks)
        assert all(high < low for (_, high), (low, _) in pairwise(spans))


def test_equal_tokens_are_no_obstacle_to_a_tree():
    tokens = torch.ones(1, 2, 50, 4)
    assert (Tree().sorted(tokens, 8).sort().values == torch.arange(50)).all()


def test_the_tail_of_alike_tokens_is_exact():
    """A few kinds of tokens, as many as there are blocks: every mean stands for tokens that are all the same."""
    grid = TokenGrid(4, 4, 8)
    kinds = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kind = torch.randperm(128, generator=torch.Generator().manual_seed(1)) % 8
    q, k, v = inputs(grid, heads=2)
    k, v = kinds[:, :, kind], kinds.roll(1, 2)[:, :, kind]
    output = attention(q, k, v, dattn.Alike(0.3, block_size=SIZE), grid)
    torch.testing.assert_close(output, attention(q, k, v, dattn.Dense(), grid))


def test_what_is_always_kept():
    order = Tiled((2, 3, 3))
    partition = order.partition(*inputs()[:2], GRID, SIZE, MaskCache())
    blocks, regions, own = pieces(order)
    expected = {
        "own": lambda i, j: own[i] == j,
        "neighbours": lambda i, j: abs(own[i] - j) <= 1,
        "first_frame": lambda i, j: any(t < 30 for t in regions[j]),
        "sink": lambda i, j: j == 0,
    }
    for name, rule in expected.items():
        kept = [[rule(i, j) for j in range(len(regions))] for i in range(len(blocks))]
        assert partition.always((name,)).tolist() == kept


def test_selected_is_scores_then_choice_then_lists():
    """Element by element from the naive scores: a query sees what its block chose, its own region and the text."""
    order = Tiled((2, 2, 3))
    blocks, regions, own = pieces(order)
    q, k, _ = inputs()
    mask = Selected(Pooled(), TopP(0.4), order, block_size=SIZE).mask_for(q, k, GRID).to_dense()
    for b in range(2):
        for h in range(4):
            expected = torch.ones(GRID.tokens, GRID.tokens, dtype=torch.bool)
            rows = oracles.pooled(visual(q, GRID)[b, h], visual(k, GRID)[b, h], blocks, regions)
            for i, (block, row) in enumerate(zip(blocks, rows, strict=True)):
                kept = oracles.fewest(row, 0.4) | {own[i]}
                for j, region in enumerate(regions):
                    if j not in kept:
                        expected[2 + torch.tensor(block)[:, None], 2 + torch.tensor(region)] = False
            assert torch.equal(mask[b, h], expected)


def best(row, share):
    """Indices of the best entries, so large a share of them, rounded up."""
    return set(sorted(range(len(row)), key=lambda i: (-row[i], i))[: math.ceil(share * len(row) - 1e-9)])


def alone(choose):
    """What every head keeps that looks at nothing but itself."""
    return lambda q, k, blocks, regions: [choose(*head, blocks, regions) for head in zip(q, k, strict=True)]


def fewest_antidiagonal(q, k, blocks, regions):
    return [oracles.fewest(row, 0.6) for row in oracles.antidiagonal(q, k, blocks, regions, 4)]


def trusted(choose):
    """SpargeAttn's first stage: ``choose`` among regions whose means say something, and all that says nothing."""

    def kept(q, k, blocks, regions):
        scores, must = oracles.mean_similarity(q, k, blocks, regions, 0.06)
        untold = [{j for j, whole in enumerate(row) if whole} for row in must]
        return [choose(row) | own for row, own in zip(scores, untold, strict=True)]

    return alone(kept)


def routed(q, k, blocks, regions):
    """All heads together."""
    rows = oracles.pooled(*(t.transpose(0, 1).flatten(1) for t in (q, k)), blocks, regions)
    return [[best(row, 4 / len(row)) for row in rows]] * len(q)


def by_proxy(q, k, blocks, regions):
    """As many as the head's own pooled scores ask for, ranked by the mean of half of the heads."""
    found = []
    for h in range(4):
        pair = slice(h // 2 * 2, h // 2 * 2 + 2)
        ranks = oracles.antidiagonal(q[pair].mean(0), k[pair].mean(0), blocks, regions, 4)
        counts = [len(oracles.fewest(row, 0.6)) for row in oracles.pooled(q[h], k[h], blocks, regions)]
        found.append([best(row, count / len(row)) for row, count in zip(ranks, counts, strict=True)])
    return found


def voted(q, k, blocks, regions):
    rows = oracles.votes(q, k, blocks, regions, 0.1, True)
    return [{j for j, share in enumerate(row) if share >= 0.5} | best(row, 1e-6) for row in rows]


VOTING = VMoBA(1, (2, 3), (2, 3, 2), 0.1, votes=0.5, block_size=SIZE)
PRESETS = {
    "XAttention": (PATTERNS["xattention"], Raster(), alone(fewest_antidiagonal)),
    "MeanSim": (MeanSim(0.3, 0.06, block_size=SIZE), Raster(), trusted(lambda row: best(row, 0.3))),
    "MeanSim of a share": (
        MeanSim(share=0.5, guard=0.06, block_size=SIZE),
        Raster(),
        trusted(lambda row: oracles.fewest(row, 0.5)),
    ),
    "Routing": (PATTERNS["routing"], Tiled((1, 3, 3)), routed),
    "ProxyHeads": (PATTERNS["proxy-heads"], Raster(), by_proxy),
    "VMoBA, time": (VOTING.at(0, 6, 0, 1), Tiled((1, 5, 6)), alone(voted)),
    "VMoBA, space": (VOTING.at(1, 6, 0, 1), Tiled((3, 2, 3)), alone(voted)),
    "VMoBA, both": (VOTING.at(5, 6, 0, 1), Tiled((2, 3, 2)), alone(voted)),
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_what_their_papers_say(name):
    """From the naive scores of every head to what each query sees, and the region of its own."""
    pattern, order, keep = PRESETS[name]
    q, k, _ = inputs(seed=3)
    mask = pattern.fit(GRID)[0].mask_for(q, k, GRID).to_dense().expand(2, 4, -1, -1)
    blocks, regions, own = pieces(order)
    for b in range(2):
        kept = keep(visual(q, GRID)[b], visual(k, GRID)[b], blocks, regions)
        for h in range(4):
            expected = torch.ones(GRID.tokens, GRID.tokens, dtype=torch.bool)
            for i, block in enumerate(blocks):
                for j in set(range(len(regions))) - kept[h][i] - {own[i]}:
                    expected[2 + torch.tensor(block)[:, None], 2 + torch.tensor(regions[j])] = False
            assert torch.equal(mask[b, h], expected)
    assert not mask.all()


def band_oracle(grid, density, size, temporal):
    """bool [visual, visual] of SVG, token by token."""
    n, frame, text = grid.visual, grid.height * grid.width, grid.tokens - grid.visual
    share = max(density - (2 * text + frame) / n, 0)
    reach = round(n * (1 - math.sqrt(1 - share)) / size)
    place = lambda t: t % frame * grid.frames + t // frame if temporal else t
    return torch.tensor(
        [
            [abs(place(i) // size - place(j) // size) <= reach or place(j) // size * size < frame for j in range(n)]
            for i in range(n)
        ]
    )


@pytest.mark.parametrize("valued", [True, False])
def test_sparse_video_gen(valued, monkeypatch):
    monkeypatch.setattr("dattn.patterns.sparse_video_gen.CHUNK", 4000)
    pattern = SparseVideoGen(0.7, rows=20, seed=3, block_size=SIZE)
    grid = TokenGrid(6, 3, 4, text=(2, 3))
    q, k, v = inputs(grid, heads=8, seed=1)
    bands = [band_oracle(grid, 0.7, SIZE, temporal) for temporal in (False, True)]
    allowed = [torch.ones(grid.tokens, grid.tokens, dtype=torch.bool) for _ in bands]
    for out, band in zip(allowed, bands, strict=True):
        out[2 : 2 + grid.visual, 2 : 2 + grid.visual] = band
    rows = 2 + pattern.sample(grid)
    assert len(set(rows.tolist())) == 20
    weights = (q @ k.mT * 8**-0.5).softmax(-1)[:, :, rows]
    errors = []
    for out in allowed:
        kept = weights * out[rows]
        if valued:
            errors.append(((weights - kept / kept.sum(-1, keepdim=True)) @ v).square().sum((-1, -2)))
        else:
            errors.append((1 - kept.sum(-1)).sum(-1))
    temporal = errors[1] < errors[0]
    assert 0 < temporal.double().mean() < 1
    expected = torch.stack(allowed)[temporal.long()]
    mask = pattern.build(Given(q, k, grid, {}, value=v if valued else None))
    assert torch.equal(mask.to_dense(), expected)
    assert valued or torch.equal(pattern.mask_for(q, k, grid).to_dense(), expected)


PYRAMIDS = {
    "weight": Pyramid((0.2, 0.5, 0.7, 0.9), score=Pooled(), order=Raster(), block_size=SIZE),
    "blocks": Pyramid((0.1, 0.3, 0.8), (1, 4, 8), "blocks", score=Pooled(), order=Raster(), block_size=SIZE),
    "guarded": Pyramid((0.1, 0.5, 0.7, 0.9), guards=(0.05, 0.0, 0.0), score=Pooled(), order=Raster(), block_size=SIZE),
    "tail": Pyramid((0.2, 0.8), (1, 2), floor=0.4, score=Pooled(), order=Raster(), block_size=SIZE, tail=True),
    "tiled": Pyramid((0.2, 0.6), (1, 4), score=Pooled(), order=Tiled((2, 2, 3)), block_size=SIZE),
}


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("case", PYRAMIDS)
def test_pyramid(case, backend):
    """Query by query and mean by mean, with gradients."""
    pattern = PYRAMIDS[case]
    given = [t.requires_grad_() for t in inputs()]
    output, lse = attention(*given, pattern, GRID, backend=backend, return_lse=True)
    sent = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
    grads = torch.autograd.grad([output, lse], given, [sent, sent[..., 0]])
    expected, sums, seen = pyramid_attention(pattern, *given)
    assert seen >= {*pattern.runs, None}
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(lse, sums)
    for ours, exact in zip(grads, torch.autograd.grad([expected, sums], given, [sent, sent[..., 0]]), strict=True):
        torch.testing.assert_close(ours, exact)


def pyramid_attention(pattern, q, k, v):
    """Output and LSE from the definition, and the run lengths that occur."""
    first, end, occur = GRID.text_before, GRID.text_before + GRID.visual, set()
    blocks, regions, own = pieces(pattern.order)
    block_of = {token: i for i, block in enumerate(blocks) for token in block}
    rest = SIZE if pattern.tail else None
    outputs, sums = [], []
    for b, h in product(range(2), range(4)):
        rows, columns = (t[b, h, first:end].detach() for t in (q, k))
        trusted = [pattern.runs[-1]] * len(regions)
        if pattern.guards:
            trusted = [oracles.trusted_run(columns, region, pattern.runs, pattern.guards) for region in regions]
        rule = pattern.bands, pattern.runs, pattern.floor, pattern.by, trusted
        levels = [oracles.pyramid_levels(row, *rule) for row in oracles.pooled(rows, columns, blocks, regions)]
        occur |= {run for row in levels for run in row}
        for token in range(GRID.tokens):
            seen = [[i] for i in range(GRID.tokens)]
            if first <= token < end:
                level = levels[block_of[token - first]]
                cuts = [(block, level[region] or rest) for block, region in zip(blocks, own, strict=True)]
                runs = [some for block, run in cuts if run for some in oracles.run_lists(block, run)]
                seen = [*seen[:first], *([first + i for i in some] for some in runs), *seen[end:]]
            out, total = oracles.seen_through_means(q[b, h, token], k[b, h], v[b, h], seen)
            outputs.append(out), sums.append(total)
    shape = (2, 4, GRID.tokens)
    return torch.stack(outputs).view(*shape, -1), torch.stack(sums).view(shape), occur


def test_a_pyramid_of_equal_neighbours_loses_nothing():
    """Means of equal keys and values are exact: nothing but what is in no band is missing."""
    q, k, v = inputs(TokenGrid(4, 4, 8))
    k, v = (t[:, :, ::8].repeat_interleave(8, 2) for t in (k, v))
    pattern = Pyramid((0.2, 0.4, 0.7, 1.0), by="blocks", order=Raster(), floor=0, block_size=SIZE)
    out = attention(q, k, v, pattern, TokenGrid(4, 4, 8))
    torch.testing.assert_close(out, scaled_dot_product_attention(q, k, v))
    mask = pattern.mask_for(q, k, TokenGrid(4, 4, 8))
    assert mask.density == 0.25  # two blocks of eight
    assert mask.tail_share == pytest.approx((2 / 2 + 2 / 4 + 2 / 8) / 8)
    assert pattern.cost(TokenGrid(4, 4, 8), 8, MaskCache()) == pytest.approx(0.2 + 0.2 / 2 + 0.3 / 4 + 0.3 / 8)


def test_bands_and_guards_at_their_bounds():
    """Bands that end at 1 leave nothing out, whatever rounding says; masked keys do not count as different."""
    q, k, _ = inputs()
    everything = Pyramid((0.4, 0.5, 0.6, 1.0), score=Pooled(), block_size=SIZE).mask_for(30 * q, k, GRID)
    seen = everything.full.counts() + sum(level.blocks.counts() for level in everything.levels)
    assert (seen == everything.key.blocks).all()
    guarded = Pyramid((0.1, 0.4, 0.7, 1.0), guards=(0.9, 0.9, 0.9), by="blocks", order=Raster(), block_size=SIZE)
    alike, kept = torch.ones_like(k), torch.ones(2, GRID.tokens, dtype=torch.bool)
    kept[:, ::2] = False
    both = [guarded.build(Given(q, alike, GRID, {}, key_mask=mask)) for mask in (None, kept)]
    assert both[0].pools == [2, 4, 8] and both[0].density == both[1].density < 0.6
    assert guarded.mask_for(q, k, GRID).density == 1
    assert guarded.cost(GRID, 8, MaskCache()) == 1
    plain = replace(guarded, guards=(), floor=0.3, bands=(0.1, 0.4, 0.6, 0.8), tail=True)
    assert plain.cost(GRID, 8, MaskCache()) == pytest.approx(0.3 + 0.1 / 2 + 0.2 / 4 + 0.2 / 8 + 0.2 / SIZE)


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("tail", [True, FirstOrder, SignificanceTail])
def test_a_tail_below_a_pyramid(tail, backend):
    """What is in no band is pooled, and nothing else: with equal blocks of keys and values nothing is lost."""
    grid = TokenGrid(4, 4, 8, text=3)
    q, k, v = inputs(grid)
    k, v = (torch.cat([t[:, :, :-3:SIZE].repeat_interleave(SIZE, 2), t[:, :, -3:]], 2) for t in (k, v))
    pattern = Pyramid((0.2, 0.4, 0.6), (1, 2, 4), "blocks", order=Raster(), block_size=SIZE, tail=tail is True)
    pattern = pattern if tail is True else tail(pattern)
    torch.testing.assert_close(
        attention(q, k, v, pattern, grid, backend=backend), scaled_dot_product_attention(q, k, v)
    )


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("order", [Raster(), Tiled((2, 2, 3))])
def test_anchor(order, padded):
    """Who sees whom, key by key: a key is in the region or a stripe of its own, and never both."""
    pattern = Anchor(1.6, 2, order=order, block_size=SIZE)
    q, k, _ = inputs()
    kept = torch.ones(2, GRID.tokens, dtype=torch.bool)
    if padded:
        kept[0, 1], kept[1, 20:45] = False, False
    mask = pattern.build(Given(q, k, GRID, {}, key_mask=kept if padded else None))
    found, first = mask.to_dense(), GRID.text_before
    blocks, _, _ = pieces(order)
    counts, pairs = [], [8 * (95**2 - 90**2)]
    for b, h in product(range(2), range(4)):
        expected = torch.ones(GRID.tokens, GRID.tokens, dtype=torch.bool)
        expected[2:92, 2:92] = False
        rule = blocks, first, 2, pattern.keep, 1.6, kept[b]
        for members, region, stripes in oracles.anchor(q[b, h], k[b, h], *rule):
            rows = [first + t for i in members for t in blocks[i]]
            columns = [first + t for i in region for t in blocks[i]] + sorted(stripes)
            assert len(columns) == len(set(columns))
            counts.append(len(stripes)), pairs.append(len(rows) * len(columns))
            expected[torch.tensor(rows)[:, None], torch.tensor(columns)] = True
        assert torch.equal(found[b, h], expected)
    assert len(set(counts)) > 5  # single keys, differently many
    assert mask.element_density == pytest.approx(sum(pairs) / 8 / 95**2)
    visited = (mask.full.counts().sum(-1)).double().mean().item()
    assert mask.density == pytest.approx(visited / mask.query.blocks**2) and 0 < mask.density < 1


def test_an_anchor_of_no_stripes_and_of_all():
    q, k, v = inputs()
    none = Anchor(-1e3, 2, block_size=SIZE).mask_for(q, k, GRID)
    assert none.key.order.shape[-1] == GRID.tokens and none.density < 1
    torch.testing.assert_close(
        attention(q, k, v, Anchor(1e3, 2, block_size=SIZE), GRID), scaled_dot_product_attention(q, k, v)
    )


@pytest.mark.parametrize("route", ["weight", "error"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_clustered(steps, route, monkeypatch):
    monkeypatch.setattr("dattn.clusters.CHUNK", 900)
    pattern = Clustered(5, 8, top_p=0.5, floor=0.2, first_steps=steps, seed=2, route=route, block_size=SIZE, tail=True)
    q, k, _ = inputs()
    mask = pattern.mask_for(q, k, GRID).to_dense()
    rows, columns = visual(q, GRID), visual(k, GRID)
    drawn = [torch.randperm(GRID.visual, generator=torch.Generator().manual_seed(2))[:count] for count in (5, 8)]
    for b in range(2):
        for h in range(4):
            starts = rows[b, h, drawn[0]], columns[b, h, drawn[1]]
            expected = torch.ones(GRID.tokens, GRID.tokens, dtype=torch.bool)
            expected[2:92, 2:92] = oracles.clustered(rows[b, h], columns[b, h], starts, steps, 0.5, 0.2, route)
            assert torch.equal(mask[b, h], expected)


@pytest.mark.parametrize("route", ["weight", "error"])
def test_what_clusters_leave_out_is_seen_through_the_means_of_clusters(route):
    """SVG-EAR's tail: n exp(q · mean key) times the mean value, for every cluster of n keys that is not kept."""
    pattern = Clustered(5, 8, top_p=0.4, floor=0.1, first_steps=2, seed=2, route=route, tail=True)
    q, k, v = inputs(heads=2)
    output, lse = attention(q, k, v, pattern, GRID, return_lse=True)
    drawn = [torch.randperm(90, generator=torch.Generator().manual_seed(2))[:count] for count in (5, 8)]
    text = [[i] for i in (0, 1, 92, 93, 94)]
    for b, h in product(range(2), range(2)):
        rows, columns = visual(q, GRID)[b, h], visual(k, GRID)[b, h]
        seen = oracles.clustered(rows, columns, (rows[drawn[0]], columns[drawn[1]]), 2, 0.4, 0.1, route)
        labels, _ = oracles.k_means(columns, list(columns[drawn[1]]), 2)
        clusters = [[2 + t for t, label in enumerate(labels) if label == c] for c in range(8)]
        for token in (0, 2, 40, 91, 94):
            own = seen[token - 2].tolist() if 2 <= token < 92 else [True] * 90
            split = [[[t] for t in some] if own[some[0] - 2] else [some] for some in clusters if some]
            expected = oracles.seen_through_means(
                q[b, h, token], k[b, h], v[b, h], [*text, *(some for own in split for some in own)]
            )
            torch.testing.assert_close(output[b, h, token], expected[0])
            torch.testing.assert_close(lse[b, h, token], expected[1])
    assert not seen.all()


def test_centroids_are_calibrated_once_and_stored(tmp_path):
    """Running means of the nearest tokens, call by call; then tokens go to the nearest, and nothing moves."""
    learnt, path = Calibration(5, 8, first_steps=2), str(tmp_path / "centroids.safetensors")
    with pytest.raises(ValueError, match="has seen no call"):
        learnt.save(path)
    first, second = inputs(), inputs(seed=1)
    for q, k, v in (first, second):
        out = attention(q, k, v, learnt, GRID, scale=0.5)
        torch.testing.assert_close(out, scaled_dot_product_attention(q, k, v, scale=0.5))
    together = lambda t: visual(t, GRID).float().transpose(0, 1).flatten(1, 2)  # both samples, head by head
    drawn = torch.randperm(2 * GRID.visual, generator=torch.Generator().manual_seed(0))[:8]
    begun = Clusters.of(together(first[1])[None], together(first[1])[None][:, :, drawn], 2)
    expected = torch.empty(4, 8, 8)
    for h in range(4):
        labels = torch.cdist(together(second[1])[h], begun.centroids[0, h]).argmin(1)
        for c in range(8):
            count, new = int(begun.sizes[0, h, c]), together(second[1])[h][labels == c]
            expected[h, c] = (count * begun.centroids[0, h, c] + new.sum(0)) / (count + len(new))
    torch.testing.assert_close(learnt.learnt[0][1].centroids[0], expected)
    torch.testing.assert_close(learnt.learnt[0][0].counts.sum(-1), torch.full((1, 4), 4 * GRID.visual))
    assert learnt.to_dict() == {
        "name": "Calibration",
        "query_clusters": 5,
        "key_clusters": 8,
        "first_steps": 2,
        "seed": 0,
    }
    learnt.save(path)
    stored = Clustered(centroids=path, top_p=0.5, floor=0.2, block_size=SIZE)
    assert pattern_from_dict(json.loads(json.dumps(stored.to_dict()))) == stored
    mask = stored.build(Given(*first[:2], GRID, {}, 0.5 * 8**0.5)).to_dense()
    starts = [running.centroids[0].double() for running in learnt.learnt[0]]
    rows, columns = visual(first[0], GRID) * 0.5 * 8**0.5, visual(first[1], GRID)
    for b, h in product(range(2), range(4)):
        own = oracles.clustered(rows[b, h], columns[b, h], [side[h] for side in starts], 1, 0.5, 0.2)
        assert torch.equal(mask[b, h, 2:92, 2:92], own)
    with pytest.raises(ValueError, match="no layers.1.query.*another model"):
        stored.at(1, 2, 0, 1).mask_for(*first[:2], GRID)
    with pytest.raises(ValueError, match="4, 5, 8.*2 heads of 8"):
        stored.mask_for(*(t[:, :2] for t in first[:2]), GRID)
    with pytest.raises(ValueError, match="no such file"):
        Clustered(centroids=str(tmp_path / "none"))


def test_an_empty_cluster_stays_and_a_still_head_stops():
    tokens = torch.tensor([0.0, 0.1, 1.0, 1.1]).view(1, 1, 4, 1)
    centroids = torch.tensor([0.0, 1.0, 9.0]).view(1, 1, 3, 1)
    clusters = Clusters.of(tokens, centroids, 5)
    assert clusters.sizes.tolist() == [[[2, 2, 0]]]
    torch.testing.assert_close(clusters.centroids.flatten(), torch.tensor([0.05, 1.05, 9.0]))
    both = Clusters.of(torch.cat([tokens, tokens + torch.randn(1, 1, 4, 1)]), centroids, 5)
    assert torch.equal(both.centroids[0], clusters.centroids[0])


def test_the_next_step_starts_from_the_last_centroids():
    q, k, v = inputs()
    state = {"step": 0}
    pattern = Clustered(5, 8, top_p=0.5, first_steps=20, steps=1, block_size=SIZE)
    pattern.mask_for(q, k, GRID, state)
    kept = [t.clone() for t in state["centroids"][1:]]
    assert pattern.held(state) == sum(t.numel() * t.element_size() for t in kept)
    pattern.mask_for(q + 0.1 * v, k, GRID, state)
    expected = Clusters.of(visual(q + 0.1 * v, GRID), kept[0], 1)
    assert torch.equal(state["centroids"][1], expected.centroids)
    pattern.mask_for(q[:1], k[:1], GRID, state)  # another batch starts anew
    assert torch.equal(
        state["centroids"][1], Clusters.of(visual(q[:1], GRID), start(visual(q[:1], GRID), 5, 0), 20).centroids
    )


def oracle(mask, q, k, v, scale=8**-0.5, kept=None):
    """Output and LSE under a mask, with means the reference's, which ``test_pyramid`` holds against the definition."""
    if mask.pools:
        return run("reference", Problem(*(t.double() for t in (q, k, v)), mask, scale, kept))
    return attention_oracle(q, k, v, mask.to_dense(), scale, kept)


def test_output_and_lse_are_those_of_the_mask(pattern):
    q, k, v = inputs()
    output, lse = attention(q, k, v, pattern, GRID, scale=0.4, return_lse=True)
    mask = pattern.build(Given(q * (0.4 * 8**0.5), k, GRID, {}, value=v))
    expected = oracle(mask, q, k, v, 0.4)
    torch.testing.assert_close(output, expected[0])
    torch.testing.assert_close(lse, expected[1])
    assert 0 < mask.density < 1


def test_rows_are_never_empty_and_text_and_own_are_kept(pattern):
    q, k, _ = inputs()
    mask = pattern.mask_for(q, k, GRID)
    dense = mask.to_dense()
    assert dense.any(-1).all()
    text = [0, 1, 92, 93, 94]
    assert dense[..., text].all() and dense[..., text, :].all()
    if isinstance(pattern, Selected) and pattern.keep:
        assert dense.diagonal(dim1=-2, dim2=-1).all()


def test_rows_without_text_are_never_empty(pattern):
    grid = TokenGrid(*GRID.shape)
    q, k, _ = inputs(grid)
    assert pattern.mask_for(q, k, grid).to_dense().any(-1).all()


def test_samples_of_a_batch_do_not_meet(pattern):
    q, k, v = inputs()
    together = attention(q, k, v, pattern, GRID)
    alone = torch.cat([attention(*(t[i : i + 1] for t in (q, k, v)), pattern, GRID) for i in range(2)])
    torch.testing.assert_close(together, alone)


def test_gradients_are_those_of_the_mask(pattern):
    q, k, v = (t.requires_grad_() for t in inputs())
    output = attention(q, k, v, pattern, GRID)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    found = torch.autograd.grad((output * weight).sum(), (q, k, v))
    mask = pattern.build(Given(q.detach(), k.detach(), GRID, {}, value=v.detach()))
    expected = torch.autograd.grad((oracle(mask, q, k, v)[0] * weight).sum(), (q, k, v))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["selected", "xattention", "tree", "sparse-video-gen", "clustered", "pyramid"])
@pytest.mark.parametrize("tail", [True, 16])
def test_tails_cover_what_is_not_chosen(name, tail):
    pattern = replace(PATTERNS[name], tail=tail)
    q, k, v = inputs(batch=2, heads=2)
    q = 3 * q
    output, lse = attention(q, k, v, pattern, GRID, return_lse=True)
    reference = attention(q, k, v, pattern, GRID, backend="reference", return_lse=True)
    torch.testing.assert_close(output, reference[0])
    torch.testing.assert_close(lse, reference[1])
    without = attention(q, k, v, PATTERNS[name], GRID, return_lse=True)[1]
    assert (lse >= without - 1e-12).all() and (lse > without + 1e-3).any()


def test_the_tail_of_one_sample_and_head_is_the_naive_one():
    pattern = Selected(Pooled(), TopK(0.3), block_size=SIZE, tail=True)
    q, k, v = inputs(batch=1, heads=1)
    expected = tail_oracle(q, k, v, pattern.mask_for(q, k, GRID), GRID, SIZE, 8**-0.5)
    output, lse = attention(q, k, v, pattern, GRID, return_lse=True)
    torch.testing.assert_close(output, expected[0])
    torch.testing.assert_close(lse, expected[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precisions(pattern, dtype):
    q, k, v = (t.to(dtype) for t in inputs())
    mask = pattern.build(Given(q, k, GRID, {}, value=v))
    error = lambda t, exact: (t.double() - exact).abs().max().item()
    dense = mask.to_dense()
    plain = scaled_dot_product_attention(q, k, v, attn_mask=dense)
    allowed = error(plain, attention_oracle(q, k, v, dense, 8**-0.5)[0])
    output = attention(q, k, v, pattern, GRID)
    assert output.dtype == dtype
    assert error(output, oracle(mask, q, k, v)[0]) <= 2 * allowed + 1e-6


def test_padded_text_is_not_seen(pattern):
    q, k, v = inputs()
    kept = torch.ones(2, GRID.tokens, dtype=torch.bool)
    kept[1, -2:] = False
    output = attention(q, k, v, pattern, GRID, key_mask=kept)
    mask = pattern.build(Given(q, k, GRID, {}, value=v, key_mask=kept))
    torch.testing.assert_close(output, oracle(mask, q, k, v, kept=kept)[0])


def test_what_padded_keys_hold_says_nothing(pattern):
    q, k, v = inputs()
    kept = torch.ones(2, GRID.tokens, dtype=torch.bool)
    kept[0, :2], kept[1, -2:], kept[1, 30:40] = False, False, False
    outputs = [attention(q, k, v, pattern, GRID, key_mask=kept)]
    for t in (k, v):
        t.masked_fill_(~kept[:, None, :, None], 3.0)
    outputs.append(attention(q, k, v, pattern, GRID, key_mask=kept))
    torch.testing.assert_close(*outputs)


def reusing(reuse):
    return Selected(Pooled(), TopK(0.3), block_size=SIZE, reuse=reuse)


def test_lists_are_kept_for_so_many_steps():
    q, k, v = inputs()
    pattern, state, masks = reusing(3), {}, []
    for step in range(7):
        state["step"] = step
        masks.append(pattern.mask_for(q + step * v, k, GRID, state))
    assert [masks[i] is masks[i + 1] for i in range(6)] == [True, True, False, True, True, False]
    mask = masks[-1]
    assert pattern.held(state) == 4 * (mask.full.offsets.numel() + mask.full.index.numel())
    banded = Pyramid((0.2, 0.5), (1, 2), block_size=SIZE, reuse=2)
    mask = banded.mask_for(q, k, GRID, state)
    lists = [mask.full, mask.levels[0].blocks]
    assert banded.held(state) == 4 * sum(t.offsets.numel() + t.index.numel() for t in lists)
    sorted_ = replace(pattern, order=Tree(), keep=())
    sorted_.mask_for(q, k, GRID, state)
    assert sorted_.held(state) > 2 * 8 * q.shape[:3].numel()  # both orders as well
    fresh = reusing(1).mask_for(q + 3 * v, k, GRID)
    assert torch.equal(masks[3].to_dense(), fresh.to_dense())


def test_lists_are_kept_while_queries_are_alike_sample_by_sample():
    q, k, _ = inputs()
    pattern, state = reusing(0.9), {"step": 0}
    first = pattern.mask_for(q, k, GRID, state)
    state["step"] = 1
    assert pattern.mask_for(q * 1.01, k, GRID, state) is first
    moved = torch.stack([q[0], -q[1]])  # the second sample turns round
    state["step"] = 2
    second = pattern.mask_for(moved, -k, GRID, state).to_dense()
    assert torch.equal(second[0], first.to_dense()[0])
    assert torch.equal(second[1], reusing(1).mask_for(moved, -k, GRID).to_dense()[1])
    assert not torch.equal(second[0], reusing(1).mask_for(moved, -k, GRID).to_dense()[0])
    state["step"] = 3  # the first sample is still measured by its first queries, the second by its later ones
    third = pattern.mask_for(torch.stack([q[0], -q[1]]), k, GRID, state).to_dense()
    assert torch.equal(third, second)


def test_a_slow_drift_ends_a_choice():
    """Every step is like the one before, and the last is not like the first."""
    q, k, v = inputs(batch=1)
    pattern, state, masks = reusing(0.8), {}, []
    for step in range(6):
        state["step"] = step
        masks.append(pattern.mask_for(q + 0.3 * step * v, k, GRID, state))
    changes = [a is not b for a, b in pairwise(masks)]
    assert any(changes) and not all(changes)


@pytest.mark.parametrize("reuse", [5, 0.5])
def test_a_choice_serves_its_own_batch_and_grid_alone(reuse):
    q, k, _ = inputs()
    pattern, state = reusing(reuse), {"step": 0}
    pattern.mask_for(q, k, GRID, state)
    state["step"] = 1
    second = pattern.mask_for(q[1:], k[1:], GRID, state).to_dense()
    assert torch.equal(second, reusing(1).mask_for(q[1:], k[1:], GRID).to_dense())
    other = TokenGrid(3, 6, 5, text=(2, 3))
    state["step"] = 2
    later, fresh = (replace(p, order=Tiled((1, 4, 4))) for p in (pattern, reusing(1)))
    later.mask_for(q, k, GRID, state)
    assert torch.equal(later.mask_for(q, k, other, state).to_dense(), fresh.mask_for(q, k, other).to_dense())


@pytest.mark.parametrize(
    "select", [Threshold(0.99), TopK(0.05, across="head"), TopP(0.05, across="layer"), TopK(0.05, across="layer")]
)
def test_no_row_is_empty_where_nothing_is_kept_anyway(select):
    q, k, _ = inputs(TokenGrid(3, 5, 6))
    mask = Selected(Pooled(), select, keep=(), block_size=SIZE).mask_for(q, k, TokenGrid(3, 5, 6))
    assert mask.to_dense().any(-1).all() and mask.density < 1


def test_what_a_score_insists_on_is_kept():
    """Blocks that cannot be told from their means: in the mask, and through proxies."""
    q, k, _ = inputs()
    given, *_ = sides()
    guarded = MeanSimilarity(0.07)
    must = guarded.must(given)
    assert 0 < must.double().mean() < 1
    for score in (guarded, Proxy(Pooled(), 2, guarded)):
        chosen = Selected(score, TopK(1), keep=(), block_size=SIZE).kept(given)
        assert (chosen | ~must).all() and chosen.double().mean() < 1
    assert Proxy(MeanSimilarity(1.0), 1, Pooled()).must(given).all()
    assert Selected(MeanSimilarity(1.0), TopK(1), block_size=SIZE).mask_for(q, k, GRID).density == 1


def test_clusters_are_kept_for_so_many_steps():
    q, k, v = inputs()
    pattern, state, masks = Clustered(5, 8, reuse=2, block_size=SIZE), {}, []
    for step in range(4):
        state["step"] = step
        masks.append(pattern.mask_for(q + step * v, k, GRID, state))
    assert [masks[i] is masks[i + 1] for i in range(3)] == [True, False, True]


def test_a_schedule_of_shares_goes_on_with_its_clusters(monkeypatch):
    rounds, real = [], Clusters.of
    monkeypatch.setattr(Clusters, "of", lambda tokens, first, steps: rounds.append(steps) or real(tokens, first, steps))
    parts = [Clustered(5, 8, top_p=share, first_steps=9, steps=2, block_size=SIZE) for share in (0.3, 0.6)]
    schedule, state = dattn.PerStep({0: parts[0], 0.5: parts[1]}), {}
    q, k, _ = inputs()
    densities = []
    for step in range(4):
        state["step"] = step
        densities.append(schedule.at(0, 1, step, 4).mask_for(q, k, GRID, state).density)
    assert rounds == [9, 9, *[2] * 6] and densities[1] < densities[2]
    Clustered(6, 8, first_steps=9, block_size=SIZE).mask_for(q, k, GRID, state)
    assert rounds[-2:] == [9, 9]  # other clusters


def test_another_pattern_or_no_step_keeps_nothing():
    q, k, _ = inputs()
    state = {"step": 0}
    first = reusing(5).mask_for(q, k, GRID, state)
    other = Selected(Pooled(), TopK(0.6), block_size=SIZE, reuse=5)
    assert other.mask_for(q, k, GRID, state).density > first.density
    assert reusing(5).mask_for(q, k, GRID, {}) is not reusing(5).mask_for(q, k, GRID, {})


def test_regions_turn_with_the_layer():
    orders = (Tiled((1, None, None)), Tiled((None, 2, 3)), Tiled((2, 3, 2)))
    pattern = Selected(order=ByLayer(orders))
    assert [pattern.at(i, 4, 0, 10).order for i in range(4)] == [*orders, orders[0]]
    assert Selected(order=Tiled((9, 2, 2))).fit(GRID)[0].order == Tiled((3, 2, 2))
    nested = Selected(order=ByLayer((ByLayer((Tree(), Raster())), Curve())), keep=(), block_size=SIZE)
    assert [nested.at(i, 4, 0, 10).order for i in range(4)] == [Tree(), Curve(), Tree(), Curve()]
    q, k, v = inputs()
    first = Selected(order=Tree(), keep=(), block_size=SIZE)
    assert torch.equal(attention(q, k, v, nested, GRID), attention(q, k, v, first, GRID))
    fitted, note = Clustered().fit(GRID)
    assert (fitted.query_clusters, fitted.key_clusters) == (90, 90) and "90" in note


def test_they_are_written_and_read(pattern):
    assert pattern_from_dict(json.loads(json.dumps(pattern.to_dict()))) == pattern
    assert pattern_from_string("XAttention(threshold=0.8)") == XAttention(threshold=0.8)
    assert pattern_from_string("Selected(Proxy(Pooled), TopK(0.2), Curve)") == Selected(
        Proxy(Pooled()), TopK(0.2), Curve()
    )


def test_among_others():
    """Per head beside a mask, and per step."""
    q, k, v = inputs()
    both = PerHead((Radial(block_size=SIZE), PATTERNS["selected"]))
    state = {}
    out = both.attend(q, k, v, GRID, state, scale=8**-0.5, key_mask=None, backend="auto")[0]
    halves = [attention(q[:, :2], k[:, :2], v[:, :2], both.patterns[0], GRID)]
    halves.append(attention(q[:, 2:], k[:, 2:], v[:, 2:], both.patterns[1], GRID))
    torch.testing.assert_close(out, torch.cat(halves, 1))
    densities = Radial(block_size=SIZE).mask(GRID).density, both.patterns[1].mask_for(q[:, 2:], k[:, 2:], GRID).density
    assert state["visited"][0] == pytest.approx(sum(densities) / 2)
    later = PerStep({0: dattn.Dense(), 3: PATTERNS["selected"]})
    assert later.at(0, 1, 5, 10) == PATTERNS["selected"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Selected(TopK(0.2)), "score=TopK.*give a Score"),
        (lambda: Selected(select=Pooled()), "give a Select"),
        (lambda: Selected(order=Pooled()), "give a Order"),
        (lambda: Selected(keep=("mine",)), "keep=.*own, neighbours, first_frame, sink"),
        (lambda: Selected(reuse=0), "reuse=0.*number of steps"),
        (lambda: Selected(reuse=1.5), "reuse=1.5"),
        (lambda: Selected(block_size=48), "block_size=48.*16, 32, 64, 128"),
        (lambda: Selected(block_size=16, tail=64), "tail=64"),
        (lambda: XAttention(threshold=1.2), "threshold=1.2: give a share above 0"),
        (lambda: ProxyHeads(threshold=0), "threshold=0: give a share"),
        (lambda: Routing(topk=1.5), "topk=1.5: give a count"),
        (lambda: MeanSim(topk=0.0), "topk=0.0: give a count"),
        (lambda: MeanSim(guard="a"), "guard='a': give a number from -1 to 1"),
        (lambda: VMoBA(votes=2.0), "votes=2.0: give a share"),
        (lambda: VMoBA(share=0), "share=0: give a share"),
        (lambda: dattn.LearnedGate("x", threshold=0), "threshold=0: give a share"),
        (lambda: TopP(0.5, floor="a"), "floor='a': give a number from 0 to 1"),
        (lambda: Pyramid(floor="a"), "floor='a': give a number"),
        (lambda: XAttention(stride=0), "stride=0"),
        (lambda: MeanSim(guard=2), "guard=2"),
        (lambda: TopK(0), "amount=0"),
        (lambda: TopK(1.5), "amount=1.5"),
        (lambda: TopP(0.5, across="model"), "across='model'"),
        (lambda: TopP(0.5, floor=2), "floor=2"),
        (lambda: Threshold(0), "least=0"),
        (lambda: TokenGate(TopP(0.5, across="layer")), "compete in their own head"),
        (lambda: TokenGate(TopP(0.5, floor=0.1)), "a floor is one of blocks"),
        (lambda: Rectified(Radial()), "wants a Selected"),
        (lambda: Rectified(Selected(tail=True)), "without tail"),
        (lambda: Proxy(heads=0), "heads=0"),
        (lambda: Proxy(own=5), "own=5.*give a Score"),
        (lambda: Joined(3), "score=3.*give a Score"),
        (lambda: TokenGate(3), "pick=3.*give a Select"),
        (lambda: Selected(order=ByLayer((Raster(), Tree()))), "no places"),
        (lambda: Sampled(0), "share=0"),
        (lambda: Selected(order=Tree()), "its blocks are no places"),
        (lambda: Selected(order=Tree(), keep=(), reuse=0.9), "a number of steps"),
        (lambda: Tree(1), "ways=1"),
        (lambda: ByCluster(0), "clusters=0"),
        (lambda: ByCluster(seed=-1), "seed=-1"),
        (lambda: Tree(dims=0), "dims=0"),
        (lambda: ByLayer(()), "one order at least"),
        (lambda: ByLayer((3,)), "tuple of orders"),
        (lambda: SparseVideoGen(0), "density=0"),
        (lambda: SparseVideoGen(rows=0), "rows=0"),
        (lambda: Clustered(0), "query_clusters=0"),
        (lambda: Clustered(top_p=0), "top_p=0: give a share"),
        (lambda: Clustered(steps=0), "steps=0"),
        (lambda: dattn.Alike(2), "density=2: give a share"),
        (lambda: Clustered(route="luck"), "weight or error"),
        (lambda: Clustered(route="error"), "without a tail"),
        (lambda: Anchor(theta=math.inf), "theta=inf"),
        (lambda: Anchor(step=0), "step=0"),
        (lambda: Anchor(order=Tree(), keep=()), "must be places"),
        (lambda: Pyramid(()), "bands=.*do not fall"),
        (lambda: Pyramid((0.5, 0.4, 0.6, 0.8)), "bands=.*do not fall"),
        (lambda: Pyramid((0.5, 0.6)), "runs=.*each of the 2 bands"),
        (lambda: Pyramid((0.5, 0.6), (1, 3)), "powers of two"),
        (lambda: Pyramid((0.5, 0.6), (1, 16), block_size=16), "below the block size 16"),
        (lambda: Pyramid(guards=(0.5,)), "each of the 3 runs"),
        (lambda: Pyramid(by="luck"), "weight, blocks"),
        (lambda: Pyramid(floor=-1), "floor=-1"),
        (lambda: Pyramid(("a",), (1,)), "bands=.*do not fall"),
        (lambda: Pyramid(runs=(1, 2.0, 4, 8)), "powers of two"),
        (lambda: Pyramid(guards=("a", 0, 0)), "guards="),
        (lambda: for_head_groups([Pyramid(block_size=SIZE).mask_for(*inputs()[:2], GRID)]), "masks of single calls"),
        (lambda: attention(*inputs(), FirstOrder(Anchor(1, 2, block_size=SIZE)), GRID), "single keys of skipped"),
        (lambda: Pyramid(reuse=0.9), "reuse=0.9"),
        (lambda: Pyramid(order=Tree(), keep=("own",)), "no places"),
        (lambda: pattern_from_string("TopK(0.2)"), "a part of a pattern"),
    ],
)
def test_bad_fields(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_grids():
    q, k, _ = inputs()
    with pytest.raises(ValueError, match="query_clusters=300 of 90 tokens: give at most"):
        Clustered().mask_for(q, k, GRID)
    with pytest.raises(ValueError, match="key_clusters=91 of 90 tokens"):
        Clustered(90, 91).mask_for(q, k, GRID)
    with pytest.raises(ValueError, match="tile 8 on an axis of 5"):
        Routing().mask_for(q, k, GRID)
