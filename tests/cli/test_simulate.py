"""``dattn simulate``: counts against masks written out, and windows that cost what was asked for."""

import math
import re

import pytest

from dattn import Neighborhood, Radial, SlidingTile, TokenGrid, pattern_from_string
from dattn.apps.simulate import COLUMNS, NEAR, SHOWN, TRIED, Tiling, _tilings, row, windows_for


def cells(pattern, grid):
    return dict(zip(COLUMNS, row("x", pattern.mask(grid)), strict=True))


@pytest.mark.parametrize(
    "pattern",
    [
        Neighborhood((3, 3, 5)),
        Radial(block_size=16, decay=0.5, sink=False),
        SlidingTile((2, 2, 3), ((1, 1, 3), (3, 3, 1))),
    ],
    ids=lambda p: p.name,
)
def test_counts_are_those_of_the_mask_written_out(pattern):
    grid = TokenGrid(7, 5, 9, text=11)
    mask = pattern.mask(grid)
    assert mask.element_density == pytest.approx(mask.to_dense().double().mean().item())
    computed = (mask.full.counts().sum() + mask.partial.counts().sum()).item() / mask.groups * mask.block_size**2
    assert mask.slot_density == pytest.approx(computed / grid.tokens**2)
    assert mask.slot_density >= mask.element_density
    assert cells(pattern, grid)["at most"] == pytest.approx(1 / mask.slot_density)


@pytest.mark.parametrize("text", [0, 5, (3, 16)])
@pytest.mark.parametrize(
    ("pattern", "padded"),
    [
        (Neighborhood((3, 3, 5), tile=(2, 2, 4)), "some"),
        (Neighborhood((5, 3, 7), stride=(1, 3, 1), tile=(1, 3, 4)), "all"),
        (SlidingTile((2, 2, 4), ((1, 1, 3), (3, 3, 1))), "some"),
        (Radial(block_size=16, decay=0.5, sink=False), "some"),
    ],
    ids=["ragged", "tiles of 12 in 16", "two head groups", "raster"],
)
def test_visited_partial_and_padded_are_counted_one_by_one(pattern, padded, text):
    grid = TokenGrid(5, 5, 9, text=text)
    mask = pattern.mask(grid)
    dense = mask.to_dense()
    dense = dense if dense.ndim == 3 else dense[None]
    visited = partial = ragged = 0
    for group, allowed in enumerate(dense):
        blocks = [[s[s >= 0] for s in side.slots(0, group, mask.block_size)] for side in (mask.query, mask.key)]
        for queries in blocks[0]:
            for keys in blocks[1]:
                seen = allowed[queries][:, keys]
                visited += bool(seen.any())
                partial += bool(seen.any() and not seen.all())
                ragged += bool(seen.any() and min(len(queries), len(keys)) < mask.block_size)
    counted = cells(pattern, grid)
    assert counted["visited"] == round(visited / mask.groups)
    assert counted["partial"] == pytest.approx(partial / visited)
    assert counted["padded"] == pytest.approx(ragged / visited)
    assert ragged and (ragged < visited) == (padded == "some" or text == (3, 16))


def test_nothing_is_padded_where_tiles_fill_their_blocks():
    assert cells(Neighborhood((4, 8, 4), stride=4, tile=(4, 4, 4)), TokenGrid(4, 8, 8, text=64))["padded"] == 0


@pytest.mark.parametrize("shape", [(21, 45, 80), (13, 30, 45), (1, 64, 64), (17, 8, 8)])
@pytest.mark.parametrize("density", [0.1, 0.3])
def test_windows_for_a_density_are_near_and_leave_nothing_partial(shape, density):
    patterns = windows_for(shape, density)
    assert len(patterns) == len(set(patterns))
    for text in patterns[:3]:
        mask = pattern_from_string(text).mask(TokenGrid(*shape))
        assert mask.density == pytest.approx(density, rel=0.15)
        assert mask.element_density == pytest.approx(mask.density) and not mask.partial.index.numel()


@pytest.mark.parametrize(
    ("shape", "text", "density"),
    [
        ((1, 29, 31), 0, 0.2),
        ((7, 11, 13), 0, 0.2),
        ((7, 11, 13), 20, 0.2),
        ((7, 11, 13), 20, 0.1),
        ((1, 29, 31), 77, 0.3),
        ((13, 30, 45), 226, 0.2),
        ((13, 30, 45), 226, 0.05),
        ((1, 64, 64), 512, 0.3),
        ((21, 45, 80), 512, 0.1),
    ],
)
def test_the_masks_of_proposals_have_the_density_on_any_grid_and_with_text(shape, text, density):
    patterns = windows_for(shape, density, text)
    assert 1 <= len(patterns) <= SHOWN and len(patterns) == len(set(patterns))
    for pattern in patterns:
        assert pattern_from_string(pattern).mask(TokenGrid(*shape, text)).density == pytest.approx(density, rel=NEAR)


@pytest.mark.parametrize(("shape", "text"), [((7, 5, 9), 0), ((7, 5, 9), 11), ((1, 13, 17), 40), ((5, 8, 8), 3)])
def test_the_densities_that_choose_windows_are_those_of_their_masks(shape, text):
    grid = TokenGrid(*shape, text)
    for tiling in list(_tilings(grid))[::3]:
        reached = tiling.densities()
        for at in (tuple(n // 2 for n in reached.shape), (0, 0, 0), (-1, 0, -1)):
            mask = pattern_from_string(tiling._pattern(at)).mask(grid)
            assert reached[at].item() == pytest.approx(mask.density)
            some, whole = (
                math.prod(getattr(a, k)[i] for a, i in zip(tiling.axes, at, strict=True)) for k in ("some", "whole")
            )
            assert mask.partial.index.numel() == some - whole


def test_a_tile_that_divides_comes_before_ragged_ones():
    tiles = [pattern_from_string(text).tile for text in windows_for((1, 29, 31), 0.2)]
    divides = [29 % height == 0 and 31 % width == 0 for _, height, width in tiles]
    assert divides == sorted(divides, reverse=True) and set(divides) == {True, False}


def test_only_windows_whose_mask_holds_are_proposed_and_few_masks_are_tried(monkeypatch):
    from dattn.apps import plot

    tried = []
    static_mask = plot.static_mask
    monkeypatch.setattr(plot, "static_mask", lambda text, grid: tried.append(text) or static_mask(text, grid))
    whole, half = "Neighborhood(None)", "Neighborhood((1, 8, 4), stride=(1, 1, 4), tile=(1, 8, 4))"
    near = [(0.0, whole), (1.0, half), *((2.0 + n, whole) for n in range(50))]
    monkeypatch.setattr(Tiling, "near", lambda self, density: iter(near if self.tile == (1, 8, 4) else []))
    assert windows_for((1, 8, 8), 0.5) == [half] and len(tried) == TRIED
    with pytest.raises(ValueError, match="the nearest is 0.5"):
        near.remove((1.0, half))
        windows_for((1, 8, 8), 0.5)


@pytest.mark.parametrize(
    ("shape", "text"), [((13, 30, 45), 226), ((1, 8, 8), 100), ((7, 11, 13), 300), ((1, 64, 64), 77)]
)
def test_what_text_alone_exceeds_is_an_error_that_names_a_density_which_is_possible(shape, text):
    grid = TokenGrid(*shape, text)
    alone = 1 - (grid.visual / grid.tokens) ** 2
    with pytest.raises(ValueError, match=f"{text} text tokens .* alone costs") as error:
        windows_for(shape, 0.9 * alone, text)
    least = float(re.search(r"least possible on this grid is ([\d.]+)", str(error.value))[1])
    assert alone < least < 1
    masks = [pattern_from_string(p).mask(grid) for p in windows_for(shape, least, text)]
    assert min(mask.density for mask in masks) == pytest.approx(least, rel=NEAR)


def test_the_command_prints_a_row_for_each_pattern(dattn_command):
    outcome = dattn_command("simulate", "--grid", "4x8x8", "--patterns", "radial", "--density", "0.25", "--text", "3")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert [name for name in COLUMNS if name not in lines[0]] == []
    assert lines[2].startswith("radial") and lines[3].startswith("Neighborhood(")
    assert 0 < float(lines[2].split()[-1]) <= 1.0  # ragged blocks of 128 on 259 tokens save nothing


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--grid", "4x8x8"), "nothing to count"),
        (("--grid", "4x8x8", "--density", "1.5"), "density 1.5"),
        (("--grid", "1x1x7", "--density", "0.5"), "the nearest is 1: ask for about that"),
        (("--grid", "1x8x8", "--text", "100", "--density", "0.3"), "100 text tokens"),
        (("--grid", "4x8x8", "--patterns", "Spiral"), "Spiral"),
    ],
)
def test_bad_input(dattn_command, words, message):
    outcome = dattn_command("simulate", *words)
    assert outcome.code == 2 and message in outcome.err and outcome.err.count("\n") == 1
