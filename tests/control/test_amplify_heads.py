"""AmplifyHeads equals heads multiplied by what the formula says."""

import pytest

import dattn
from dattn.control.amplify_heads import AmplifyHeads

from .stages import grid_for, maps, qkv, stage, through

PROMPTS = ("a red circle", "a blue square")
CASES = [
    ("cross", None),
    ("joint", None),
    ("joint", dattn.Neighborhood((None, 3, 3))),
    ("joint", dattn.Radial(block_size=16, sink=False)),
]


def plain_of(kind, pattern, batch):
    grid = grid_for(kind, (6, 4, 4))
    query, key, value = qkv(batch, 3, grid.tokens, 12 if kind == "cross" else grid.tokens)
    allowed = None if pattern is None else pattern.allowed(grid)
    return (query, key, value), grid, maps(query, key, allowed) @ value


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize(("kind", "pattern"), CASES)
def test_heads_count_by_how_much_the_text_changes_them(kind, pattern, strength):
    tensors, grid, plain = plain_of(kind, pattern, 4)
    own = stage(*PROMPTS, halves=True)
    output = through([AmplifyHeads(strength)], own, kind, *tensors, pattern, grid)
    visual = slice(12, None) if kind == "joint" else slice(None)
    wanted = plain.clone()
    for row in (2, 3):
        pair = zip(plain[row][:, visual], plain[row - 2][:, visual], strict=True)
        change = [((c - u) ** 2).sum().sqrt() / (u**2).sum().sqrt() for c, u in pair]
        for head, r in enumerate(change):
            wanted[row, head, visual] *= 1 + strength * (r / (sum(change) / 3) - 1)
    assert (output - wanted).abs().max() < 1e-12
    assert ((output - plain)[2:].abs().amax((1, 2, 3)) > 1e-3).all()


@pytest.mark.parametrize(("kind", "pattern"), CASES)
def test_heads_count_as_they_are_given(kind, pattern):
    tensors, grid, plain = plain_of(kind, pattern, 2)
    control = AmplifyHeads(weights={(1, 0): 1.7, (1, 2): -0.3, (0, 1): 5.0})
    output = through([control], stage(*PROMPTS), kind, *tensors, pattern, grid, index=1, count=3)
    visual = slice(12, None) if kind == "joint" else slice(None)
    wanted = plain.clone()
    wanted[:, 0, visual] *= 1.7
    wanted[:, 2, visual] *= -0.3
    assert (output - wanted).abs().max() < 1e-12
    elsewhere = through([control], stage(*PROMPTS), kind, *tensors, pattern, grid, index=2, count=3)
    assert (elsewhere - plain).abs().max() < 1e-12


def test_text_that_changes_nothing():
    query, key, value = (tensor[:1].repeat(2, 1, 1, 1) for tensor in qkv(1, 2, 20, 12))
    output = through([AmplifyHeads()], stage("a", halves=True), "cross", query, key, value)
    assert (output - maps(query, key) @ value).abs().max() < 1e-12


@pytest.mark.parametrize("branch", ["", "cond"])
def test_there_must_be_something_to_measure_by(branch):
    own = stage("a red circle")
    own.branch = branch
    with pytest.raises(ValueError, match=r"give weights="):
        through([AmplifyHeads()], own, "cross", *qkv(1, 2, 20, 12))


@pytest.mark.parametrize(("step", "index"), [(1, 1), (5, 1), (3, 0)])
def test_only_in_its_window_and_layers(step, index):
    query, key, value = qkv(2, 2, 20, 12)
    control = AmplifyHeads(window=(0.2, 0.5), layers=[1])
    at = lambda step, index: through(
        [control], stage("a", step=step, halves=True), "cross", query, key, value, index=index, count=2
    )
    plain = maps(query, key) @ value
    assert (at(3, 1) - plain).abs().max() > 1e-3
    assert (at(step, index) - plain).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 1.5}, "strength=1.5"),
        ({"strength": "all"}, "strength='all'"),
        ({"weights": {}}, "factors by layer and head"),
        ({"weights": {3: 1.0}}, "factors by layer and head"),
        ({"weights": {(0, -1): 1.0}}, "factors by layer and head"),
        ({"weights": {(0, 1): float("inf")}}, "factors by layer and head"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        AmplifyHeads(**options)


@pytest.mark.parametrize(("where", "message"), [((2, 0), "there are 2 that see text"), ((0, 2), "attn has 2")])
def test_layers_and_heads_that_are_not_there(where, message):
    with pytest.raises(ValueError, match=message):
        through([AmplifyHeads(weights={where: 2.0})], stage("a"), "cross", *qkv(1, 2, 20, 12), count=2)


def test_a_text_of_zeros_is_no_measure():
    """As SDXL's without a negative prompt."""
    (query, key, value), grid, _ = plain_of("cross", None, 2)
    key[:1], value[:1] = 0, 0
    with pytest.raises(ValueError, match="a text of zeros.*give negative_prompt=, or weights="):
        through([AmplifyHeads()], stage("a red circle", halves=True), "cross", query, key, value, grid=grid)
