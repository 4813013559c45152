"""``dattn simulate``: counts against masks written out, and windows that cost what was asked for."""

import pytest

from dattn import Neighborhood, Radial, SlidingTile, TokenGrid, pattern_from_string
from dattn.apps.simulate import row, windows_for


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
    assert row("x", mask)[-1] == pytest.approx(1 / mask.slot_density)


@pytest.mark.parametrize("shape", [(21, 45, 80), (13, 30, 45), (1, 64, 64), (17, 8, 8)])
@pytest.mark.parametrize("density", [0.1, 0.3])
def test_windows_for_a_density_are_near_and_leave_nothing_partial(shape, density):
    patterns = windows_for(shape, density)
    assert len(patterns) == len(set(patterns))
    for text in patterns[:3]:
        mask = pattern_from_string(text).mask(TokenGrid(*shape))
        assert mask.density == pytest.approx(density, rel=0.15)
        assert mask.element_density == pytest.approx(mask.density) and not mask.partial.index.numel()


def test_the_command_prints_a_row_for_each_pattern(dattn_command):
    outcome = dattn_command("simulate", "--grid", "4x8x8", "--patterns", "radial", "--density", "0.25", "--text", "3")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[2].startswith("radial") and lines[3].startswith("Neighborhood(")
    assert 0 < float(lines[2].split()[-1]) <= 1.0  # ragged blocks of 128 on 259 tokens save nothing


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--grid", "4x8x8"), "nothing to count"),
        (("--grid", "4x8x8", "--density", "1.5"), "density 1.5"),
        (("--grid", "1x1x7", "--density", "0.5"), "the nearest is"),
        (("--grid", "4x8x8", "--patterns", "Spiral"), "Spiral"),
    ],
)
def test_bad_input(dattn_command, words, message):
    outcome = dattn_command("simulate", *words)
    assert outcome.code == 2 and message in outcome.err and outcome.err.count("\n") == 1
