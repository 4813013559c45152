"""Patterns of groups and of frames: masks against naive definitions on grids that nothing divides."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dattn import (
    BlockCausal,
    CrossShaped,
    Dense,
    Grouped,
    Growing,
    MultiAxis,
    Neighborhood,
    PerHead,
    Planes,
    Radial,
    Reshaped,
    SlidingTile,
    SparseFrames,
    StridedHeads,
    TokenGrid,
    Windows,
    attention,
    pattern_from_dict,
    pattern_from_string,
)
from tests.oracles import (
    attention_oracle,
    cross_shaped,
    grouped,
    multi_axis,
    natten_axis,
    pairwise,
    planes,
    sliding_tile,
    strided_heads,
    tail_oracle,
    windows,
)

GRIDS = st.builds(
    TokenGrid, st.integers(1, 4), st.integers(1, 6), st.integers(1, 7), st.tuples(st.integers(0, 5), st.integers(0, 5))
)


def random_inputs(grid):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 4, grid.tokens, 8, generator=generator, dtype=torch.float64) for _ in range(3)]


def pooled_oracle(inputs, pattern, grid):
    """Attention with a tail, head by head."""
    heads = range(inputs[0].shape[1])
    owners = pattern.patterns if isinstance(pattern, PerHead) else [pattern]
    masks = [owners[h * len(owners) // len(heads)].mask(grid) for h in heads]
    parts = []
    for h, mask in zip(heads, masks, strict=True):
        own = mask.of_groups([0 if len(owners) > 1 else h * mask.groups // len(heads)])
        parts.append(tail_oracle(*(t[:, h : h + 1] for t in inputs), own, grid, mask.tail, 8**-0.5)[0])
    return torch.cat(parts, 1)


def visual(grid, allowed):
    place = slice(grid.text_before, grid.text_before + grid.visual)
    return allowed[..., place, place]


@given(GRIDS, st.data(), st.sampled_from(["block", "cross"]), st.integers(0, 2))
@settings(max_examples=60)
def test_grouped(grid, data, shape, reach):
    size = tuple(data.draw(st.integers(1, n)) for n in grid.shape)
    pattern = Grouped(size, shape, reach if shape == "block" else 1)
    expected = grouped(grid.shape, size, shape == "cross", reach)
    assert torch.equal(visual(grid, pattern.allowed(grid)), expected)
    assert torch.equal(pattern.mask(grid).to_dense(), pattern.allowed(grid))


@given(GRIDS, st.data())
@settings(max_examples=60)
def test_sliding_tile(grid, data):
    tile = tuple(data.draw(st.integers(1, n)) for n in grid.shape)
    counts = [-(-n // t) for n, t in zip(grid.shape, tile, strict=True)]
    odd = lambda n: st.sampled_from([None, n, *range(1, n + 1, 2)])
    windows = data.draw(st.lists(st.tuples(*map(odd, counts)), min_size=1, max_size=3))
    pattern = SlidingTile(tile, tuple(windows) if len(windows) > 1 else windows[0])
    expected = torch.stack([sliding_tile(grid.shape, tile, w) for w in windows])
    expected = expected if len(windows) > 1 else expected[0]
    assert torch.equal(visual(grid, pattern.allowed(grid)), expected)
    assert torch.equal(pattern.mask(grid).to_dense(), pattern.allowed(grid))


def check(pattern, grid, expected):
    assert torch.equal(visual(grid, pattern.allowed(grid)), expected)
    assert torch.equal(pattern.mask(grid).to_dense(), pattern.allowed(grid))


@given(GRIDS, st.data(), st.sampled_from(["block", "grid"]))
@settings(max_examples=60)
def test_multi_axis(grid, data, kind):
    size = tuple(data.draw(st.integers(1, n)) for n in grid.shape)
    check(MultiAxis(size, kind), grid, multi_axis(grid.shape, size, kind == "grid"))


def test_multi_axis_alternates_by_layer():
    kinds = [MultiAxis(4).at(layer, 4, 0, 10).kind for layer in range(4)]
    assert kinds == ["block", "grid", "block", "grid"]
    assert MultiAxis(4, "grid").at(0, 4, 0, 10) == MultiAxis(4, "grid")


@given(GRIDS, st.data(), st.sampled_from([0, 1, 2, 3, "half"]))
@settings(max_examples=60)
def test_windows(grid, data, shift):
    splits = tuple(data.draw(st.integers(1, n)) for n in grid.shape)
    check(Windows(splits, shift), grid, windows(grid.shape, splits, shift))


def test_random_windows_come_from_seed_step_and_layer_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    pattern = Windows(seed=3)
    drawn = {(layer, step): pattern.at(layer, 8, step, 20).shift for layer in range(8) for step in range(20)}
    assert set(drawn.values()) == {0, 1, 2, 3}
    assert drawn == {place: Windows(seed=3).at(place[0], 8, place[1], 20).shift for place in drawn}
    assert drawn != {place: Windows(seed=4).at(place[0], 8, place[1], 20).shift for place in drawn}
    assert torch.equal(torch.get_rng_state(), before)
    grid = TokenGrid(1, 8, 8)
    assert torch.equal(pattern.mask(grid).to_dense(), pattern.allowed(grid))


@given(GRIDS, st.data())
@settings(max_examples=30)
def test_block_causal(grid, data):
    frames = data.draw(st.integers(1, grid.frames))
    expected = pairwise(grid.shape, lambda q, k: k[0] // frames <= q[0] // frames)
    check(BlockCausal(frames), grid, expected)


@given(GRIDS, st.data())
@settings(max_examples=60)
def test_sparse_frames(grid, data):
    window, anchors = data.draw(st.integers(1, grid.frames)), data.draw(st.integers(0, grid.frames))
    phase = data.draw(st.floats(0, 0.99))
    places = {min(int((n + phase) * grid.frames / anchors), grid.frames - 1) for n in range(anchors)}
    assert len(places) == anchors

    def rule(q, k):
        start = min(max(q[0] - window // 2, 0), grid.frames - window)
        return start <= k[0] < start + window or k[0] in places

    check(SparseFrames(window, anchors, False, phase), grid, pairwise(grid.shape, rule))


def test_anchors_rotate_over_the_whole_clip():
    pattern = SparseFrames(3, anchors=2)
    met = torch.zeros(20, dtype=torch.bool)
    for step in range(20):
        placed = pattern.at(0, 4, step, 20)
        assert placed == pattern.at(3, 4, step, 20) and not placed.rotate
        met |= placed.seen(20)[0]
    assert met.sum() >= 16
    assert len({pattern.at(0, 4, step, 50) for step in range(50)}) == 8
    assert SparseFrames(3, rotate=False).at(0, 4, 7, 20) == SparseFrames(3, rotate=False)


@given(GRIDS, st.data())
@settings(max_examples=40)
def test_cross_shaped(grid, data):
    stripe = data.draw(st.integers(1, min(grid.height, grid.width)))
    check(CrossShaped(stripe), grid, cross_shaped(grid.shape, stripe))


@given(GRIDS, st.integers(2, 4), st.integers(0, 2))
@settings(max_examples=40)
def test_strided_heads(grid, stride, local):
    expected = strided_heads(grid.shape, stride, local, 16)
    check(StridedHeads(stride, local, 16), grid, expected)
    assert expected.any(0).all()  # complete in union


@given(GRIDS, st.data())
@settings(max_examples=60)
def test_planes(grid, data):
    window = tuple(data.draw(st.one_of(st.none(), st.integers(1, n))) for n in grid.shape)
    check(Planes(window), grid, planes(grid.shape, window))


def test_planes_of_a_whole_video():
    mask = Planes().mask(TokenGrid(8, 16, 24))
    assert mask.element_density == pytest.approx(1 - 7 / 8 * 15 / 16 * 23 / 24)
    assert mask.density == pytest.approx(1 - 3 / 4 * 3 / 4 * 2 / 3)  # tiles of 2 x 4 x 8


def test_dilation_alternates_by_layer():
    pattern, grid = Neighborhood(3, dilation="alternate"), TokenGrid(1, 10, 13)
    assert [pattern.at(layer, 4, 0, 1).dilation for layer in range(4)] == [1, None, 1, None]
    rows, columns = natten_axis(10, 3, 1, 3, False), natten_axis(13, 3, 1, 4, False)
    wide = pattern.at(1, 4, 0, 1)
    check(wide, grid, pairwise(grid.shape, lambda q, k: rows[q[1], k[1]] and columns[q[2], k[2]]))
    assert torch.equal(pattern.mask(grid).to_dense(), Neighborhood(3).mask(grid).to_dense())
    assert wide.fit(grid) == (wide, None)
    assert pattern_from_dict(json.loads(json.dumps(pattern.to_dict()))) == pattern


HEADED = [
    Radial(block_size=16),
    Radial(block_size=64),
    Neighborhood(3),
    CrossShaped(3),
    SlidingTile((2, 2, 3), ((1, 1, 3), (1, 3, 1), (1, 1, 1))),
    Dense(),
    Planes(),
]


@given(GRIDS, st.lists(st.sampled_from(HEADED), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_any_patterns_share_one_mask(grid, patterns):
    pattern, _ = PerHead(tuple(patterns)).fit(grid)
    assert pattern.static
    mask, allowed = pattern.mask(grid), pattern.allowed(grid)
    assert torch.equal(mask.to_dense(), allowed)
    alone = [p.mask(grid) for p in pattern.patterns]
    if len({m.block_size for m in alone}) == 1:
        assert mask.density == pytest.approx(sum(m.density for m in alone) / len(alone))
    assert mask.element_density == pytest.approx(allowed.double().mean().item())


POOLING = [
    (Radial(0.3, False, 64, tail=True), Radial(0.3, False, 32, tail=True)),
    (Radial(0.3, False, 64, tail=32), Radial(0.3, False, 32, tail=True)),
    (Radial(0.3, False, 64, tail=16), Radial(0.3, False, 32, tail=True)),
    (Grouped((2, 2, 4), reach=0, tail=True), Neighborhood(3, tile=(2, 3, 4), tail=True)),
    (Neighborhood(3, tail=16), Dense()),
    (PerHead((Radial(0.3, False, 64, tail=16),)), Dense()),
    (Growing(Neighborhood((3, None, None), tail=16), 9), Dense()),
]


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("patterns", POOLING, ids=str)
def test_heads_with_tails_say_what_each_says_alone(patterns, backend):
    grid = TokenGrid(9, 5, 7, text=3)
    q, k, v = random_inputs(grid)
    pattern = PerHead(patterns)
    alone = [
        attention(*(t[:, heads] for t in (q, k, v)), own, grid, backend="reference", return_lse=True)
        for own, heads in zip(patterns, (slice(0, 2), slice(2, 4)), strict=True)
    ]
    expected, expected_lse = (torch.cat(parts, 1) for parts in zip(*alone, strict=True))
    output, lse = attention(q, k, v, pattern, grid, backend=backend, return_lse=True)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(lse, expected_lse)
    torch.testing.assert_close(attention(q, k, v, pattern, grid, backend=backend), expected)
    with torch.no_grad():
        state = {}
        for _ in range(2):
            reshaped = Reshaped(pattern).attend(q, k, v, grid, state, scale=8**-0.5, key_mask=None, backend=backend)
    dense = attention(q, k, v, Dense(), grid)
    torch.testing.assert_close(reshaped[0], dense + 0.04 * expected)


def test_heads_of_one_launch_pool_alike():
    grid = TokenGrid(4, 5, 9, 3)
    different = PerHead((Radial(block_size=64, tail=16), Radial(block_size=32, tail=True)))
    with pytest.raises(ValueError, match=r"runs of \[16, 32\] tokens"):
        different.mask(grid)
    assert not different.static and different.fixed
    assert PerHead((Radial(block_size=64, tail=32), Radial(block_size=32, tail=True))).mask(grid).tail == 32
    whole = PerHead((Radial(block_size=64, tail=True), Radial(block_size=32, tail=True)))
    assert whole.static and whole.mask(grid).tail == whole.mask(grid).block_size == 64


TOO_LONG = [
    Grouped(8),
    SlidingTile((1, 8, 8), 1),
    MultiAxis(8),
    CrossShaped(4),
    Neighborhood(9),
    Planes(9),
    SparseFrames(1, 0),
    BlockCausal(1),
    Windows((1, 2, 2), 0),
]


@pytest.mark.parametrize("pattern", TOO_LONG, ids=lambda p: p.name)
def test_a_tail_is_clamped_to_the_block(pattern):
    """A run that is longer than the block of a small level: one key for every block."""
    grid = TokenGrid(1, 4, 4)
    fitted, note = replace(pattern, tail=128).fit(grid)
    assert fitted.tail is True and "one pooled key for every block of 16" in note
    assert fitted.mask(grid).tail == 16
    wide = TokenGrid(3, 16, 16)
    kept, note = replace(pattern, tail=16).fit(wide)
    assert kept.tail == 16 and "pooled" not in (note or "")


@pytest.mark.parametrize(
    ("window", "density"),
    [((5, 3, 3), 0.15), ((1, 6, 10), 0.20), ((3, 3, 5), 0.15), ((5, 1, 10), 50 / 300), ((5, 6, 1), 0.10)],
)
def test_the_published_windows_of_hunyuan(window, density):
    mask = SlidingTile((6, 8, 8), window).mask(TokenGrid(30, 48, 80))
    assert mask.density == pytest.approx(density)
    counts = mask.full.counts()
    assert (counts == window[0] * window[1] * window[2] * 3).all()  # a tile of 384 tokens is three blocks
    assert not mask.partial.index.numel()


def test_the_published_groups():
    image = Grouped(16).mask(TokenGrid(1, 512, 512))  # Flux at 8192²: 99.0 % skipped
    assert image.density == pytest.approx((3 * 32 - 2) ** 2 / 1024**2)
    assert Grouped(16, "cross").mask(TokenGrid(1, 512, 512)).density == pytest.approx(63 / 1024)
    video = TokenGrid(32, 48, 80)  # 8 x 6 x 10 groups of Hunyuan's size
    assert Grouped((4, 8, 8)).mask(video).density == pytest.approx(22 * 16 * 28 / 480**2)
    assert Grouped((4, 8, 8), "cross").mask(video).density == pytest.approx(1 - 7 / 8 * 5 / 6 * 9 / 10)


@pytest.mark.parametrize("tail", [False, True, 16])
@pytest.mark.parametrize(
    "pattern",
    [
        Grouped((2, 3, 4)),
        Grouped((2, 2, 4), "cross"),
        SlidingTile((2, 3, 4), ((1, 1, 3), (3, 1, 1))),
        MultiAxis((2, 3, 4), "grid"),
        Windows((2, 2, 3), 1),
        BlockCausal(2),
        SparseFrames(2, 1),
        CrossShaped(2),
        StridedHeads(4, 0, 16),
        Planes((3, None, 5)),
        PerHead((Grouped((2, 3, 4)), Neighborhood(3, tile=(1, 4, 8)))),
    ],
    ids=lambda p: p.name,
)
def test_attention_and_gradients(pattern, tail):
    if isinstance(pattern, PerHead):
        pattern = PerHead(tuple(replace(p, tail=tail) for p in pattern.patterns))
    else:
        pattern = replace(pattern, tail=tail)
    grid = TokenGrid(5, 5, 9, text=(2, 5))
    inputs = [t.requires_grad_() for t in random_inputs(grid)]
    output = attention(*inputs, pattern, grid, backend="torch")
    if tail:
        expected = pooled_oracle(inputs, pattern, grid)
    else:
        allowed = pattern.allowed(grid)
        allowed = allowed.repeat_interleave(4 // len(allowed), 0) if allowed.ndim == 3 else allowed
        expected = attention_oracle(*inputs, allowed, 8**-0.5)[0]
    torch.testing.assert_close(output, expected)
    weights = torch.randn(output.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.autograd.grad((o * weights).sum(), inputs) for o in (output, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "pattern",
    [
        Grouped(16, "cross"),
        Grouped((4, None, 8)),
        SlidingTile(8, ((1, 3, 3), (3, 1, 1))),
        CrossShaped(2),
        StridedHeads(4),
        Planes((None, 5, 5)),
        PerHead((Radial(), PerHead((Dense(), Planes())))),
    ],
)
def test_round_trips(pattern):
    assert pattern_from_dict(json.loads(json.dumps(pattern.to_dict()))) == pattern
    assert pattern_from_string(repr(pattern)) == pattern
    assert hash(pattern) == hash(pattern_from_string(repr(pattern)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Grouped(0), "group=0"),
        (lambda: Grouped(4, "star"), "shape='star'"),
        (lambda: Grouped(4, reach=-1), "reach=-1"),
        (lambda: Grouped(4, "cross", reach=2), "only shape='block' has a reach"),
        (lambda: Grouped(4, tail=7), "tail=7"),
        (lambda: SlidingTile(window=()), r"window=\(\)"),
        (lambda: SlidingTile(window=(3, 3)), "three entries"),
        (lambda: SlidingTile(tile=(0, 1, 1)), "tile="),
        (lambda: MultiAxis(4, "ring"), "kind='ring'"),
        (lambda: MultiAxis(0), "size=0"),
        (lambda: Windows(0), "splits=0"),
        (lambda: Windows(shift=4), "shift=4"),
        (lambda: Windows(seed=-1), "seed=-1"),
        (lambda: BlockCausal(0), "frames=0"),
        (lambda: SparseFrames(0), "window=0"),
        (lambda: SparseFrames(3, -1), "anchors=-1"),
        (lambda: SparseFrames(3, phase=1), "phase=1"),
        (lambda: CrossShaped(0), "stripe=0"),
        (lambda: StridedHeads(1), "stride=1"),
        (lambda: StridedHeads(2, -1), "local=-1"),
        (lambda: StridedHeads(2, 1, 48), "block_size=48"),
        (lambda: Planes(0), "window=0"),
        (lambda: Neighborhood(3, dilation="sometimes"), "dilation='sometimes'"),
        (lambda: PerHead(()), r"patterns=\(\)"),
        (lambda: PerHead((Radial(), "dense")), "give a tuple of patterns"),
        (lambda: CrossShaped(5).mask(TokenGrid(1, 4, 20)), "stripe 5 on a grid of 4 x 20"),
        (lambda: Planes(5).mask(TokenGrid(1, 4, 20)), "window 5 on an axis of 4"),
        (lambda: MultiAxis(8).mask(TokenGrid(1, 4, 20)), "size 8 on an axis of 4"),
        (lambda: Windows((1, 5, 1)).mask(TokenGrid(1, 4, 20)), "splits 5 on an axis of 4"),
        (lambda: BlockCausal(5).mask(TokenGrid(4, 4, 4)), "frames 5 of a clip of 4"),
        (lambda: SparseFrames(5, 0).mask(TokenGrid(4, 4, 4)), "window 5 of a clip of 4"),
        (lambda: SparseFrames(2, 5).mask(TokenGrid(4, 4, 4)), "anchors 5 of a clip of 4"),
        (lambda: Grouped(8).mask(TokenGrid(1, 4, 20)), "group 8 on an axis of 4"),
        (lambda: SlidingTile((2, 2, 2), (2, 1, 1)).mask(TokenGrid(8, 8, 8)), "window 2 on an axis of 4 tiles"),
        (lambda: SlidingTile((2, 2, 2), (5, 1, 1)).mask(TokenGrid(8, 8, 8)), "window 5 on an axis of 4 tiles"),
        (lambda: SlidingTile((9, 2, 2)).mask(TokenGrid(8, 8, 8)), "tile 9 on an axis of 8"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_fit_clamps_to_the_grid_and_says_so():
    grid = TokenGrid(1, 12, 6)
    assert Grouped(6).fit(grid) == (Grouped(6), None)
    assert Grouped(8).fit(grid) == (Grouped((1, 8, 6)), "clamped to group (1, 8, 6)")
    fitted, note = SlidingTile((6, 8, 8), (3, 3, 3)).fit(grid)
    assert fitted == SlidingTile((1, 8, 6), (1, 2, 1)) and note is not None
    assert fitted.mask(grid).is_all
    assert SlidingTile((1, 4, 3), (1, 3, None)).fit(grid)[1] is None
    assert MultiAxis(8).fit(grid)[0] == MultiAxis((1, 8, 6)) and MultiAxis(6).fit(grid)[1] is None
    assert Windows((2, 2, 2)).fit(grid)[0] == Windows((1, 2, 2)) and Windows(2).fit(grid)[1] is None
    assert BlockCausal(3).fit(grid)[0] == BlockCausal(1) and BlockCausal(1).fit(grid)[1] is None
    assert CrossShaped(9).fit(grid)[0] == CrossShaped(6) and CrossShaped(6).fit(grid)[1] is None
    assert Planes(9).fit(grid)[0] == Planes((1, 9, 6)) and Planes().fit(grid)[1] is None
    per_head, note = PerHead((Planes(9), Dense())).fit(grid)
    assert per_head == PerHead((Planes((1, 9, 6)), Dense())) and note == "Planes: clamped to window (1, 9, 6)"
    assert SparseFrames(3).fit(grid)[0] == SparseFrames(1, 1) and SparseFrames(1, 0).fit(grid)[1] is None
