"""auto: looks in the last dense step, takes what is near enough, says so; and finds what was measured before."""

from dataclasses import replace

import pytest
import torch

import dattn
from dattn.attention import attend
from dattn.operators.per_head import cost_of
from dattn.orders import Tree
from dattn.presets import resolve
from dattn.recipe import Recipe
from dattn.shelf import found, identity
from dattn.spec import ORDERS, SAID, VISITED, Call
from dattn.tuning.auto import CHOICE, Auto, Looking, observed
from dattn.tuning.by_grid import ByGrid
from tests.tuning.test_tune import CALL, PROMPTS, built

GRID = dattn.TokenGrid(5, 6, 8)
CANDIDATES = (dattn.StridedHeads(4, 1), dattn.Radial(block_size=16), dattn.Alike(0.4, block_size=16))


def a_call(seed=0, batch=2, sharp=1.0):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(batch, 4, GRID.tokens, 16, generator=generator) for _ in range(3))
    return Call(sharp * q, k, v, GRID, {"masks": dattn.block_mask.MaskCache(8), "layer": 0}, 0.25, None, "auto")


def test_looking_is_dense_and_the_choice_is_used():
    auto = Auto(CANDIDATES[1], CANDIDATES, error=0.9)
    call = a_call()
    output, _ = auto.before().fit(GRID)[0].compute(call)
    torch.testing.assert_close(output, attend(*call[:3], dattn.Dense(), GRID, scale=0.25))
    assert call.state.pop(VISITED) == (1.0, 0.0) and "last dense step" in call.state.pop(SAID)
    chosen = call.state[CHOICE]
    assert len(chosen) == 2 and set(chosen) <= {*CANDIDATES, dattn.Dense()}
    after, _ = auto.fit(GRID)[0].compute(call)
    for row, spec in enumerate(chosen):
        one = attend(*(t[row : row + 1] for t in call[:3]), spec, GRID, scale=0.25)
        torch.testing.assert_close(after[row : row + 1], one)


@pytest.mark.parametrize("error", [1e-6, 0.3, 2.0])
def test_the_cheapest_that_is_near_enough(error):
    auto, call = Auto(CANDIDATES[1], CANDIDATES, error), a_call(batch=1)
    Looking(auto).compute(call)
    dense = attend(*call[:3], dattn.Dense(), GRID, scale=0.25)
    errors = {s: ((attend(*call[:3], s, GRID, scale=0.25) - dense).norm() / dense.norm()).item() for s in CANDIDATES}
    (chosen,) = call.state[CHOICE]
    if error < 1e-3:
        assert chosen == dattn.Dense() and min(errors.values()) > error
    elif error > 1:
        assert chosen == min(CANDIDATES, key=lambda spec: cost_of(spec, GRID, 16, call.state["masks"]))
    else:
        assert chosen == dattn.Dense() or errors[chosen] < 1.3 * error


def test_samples_choose_for_themselves():
    """A batch of two is two of one."""
    auto, both = Auto(CANDIDATES[1], CANDIDATES, 0.5), a_call()
    both = both._replace(query=both.query * torch.tensor([0.1, 4.0]).view(2, 1, 1, 1))
    Looking(auto).compute(both)
    for row in range(2):
        one = both._replace(
            query=both.query[row : row + 1], key=both.key[row : row + 1], value=both.value[row : row + 1],
            state=dict(a_call().state),
        )  # fmt: skip
        Looking(auto).compute(one)
        assert one.state[CHOICE] == (both.state[CHOICE][row],)
    assert len(set(both.state[CHOICE])) == 2


@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_that_changes_has_the_preset(batch):
    """Guidance that starts or ends later: what was chosen for other samples is nobody's."""
    auto, call = Auto(CANDIDATES[1], CANDIDATES, 0.9), a_call(batch=2)
    Looking(auto).compute(call)
    other = a_call(seed=1, batch=batch)._replace(state=call.state)
    output, _ = auto.compute(other)
    torch.testing.assert_close(output, attend(*other[:3], CANDIDATES[1], GRID, scale=0.25))


def test_without_a_look_it_is_the_preset():
    auto, call = Auto(CANDIDATES[1], CANDIDATES), a_call()
    output, _ = auto.compute(call)
    torch.testing.assert_close(output, attend(*call[:3], CANDIDATES[1], GRID, scale=0.25))


@pytest.fixture(scope="module")
def pipe():
    return built()


def clip(pipe, **more):
    options = CALL | {"num_inference_steps": 6, "num_frames": 97} | more
    return pipe(prompt=PROMPTS[0], **options, generator=torch.Generator().manual_seed(0), output_type="pt").frames


def test_in_a_pipeline(pipe):
    stock = clip(pipe)
    with dattn.apply(pipe, "auto") as handle:
        first = clip(pipe)
        rows = handle.report().layers
        assert all("by the error seen in the last dense step" in row.why for row in rows if row.backend != "stock")
        assert any(row.backend != "stock" for row in rows)
        assert torch.equal(clip(pipe), first)
        clip(pipe, num_frames=33)
        assert torch.equal(clip(pipe), first)
    assert not torch.equal(first, stock) and torch.equal(clip(pipe), stock)


def test_switched_off_it_is_the_preset(pipe):
    with dattn.apply(pipe, "auto", dense_steps=0, dense_layers=0) as handle:
        output = clip(pipe)
        assert not any("last dense step" in row.why for row in handle.report().layers)
    preset = resolve("radial", "wan", "", None, None).attention
    with dattn.apply(pipe, preset):
        torch.testing.assert_close(output, clip(pipe), atol=2e-3, rtol=0)


def test_a_measured_recipe_is_found(pipe, tmp_path, monkeypatch):
    monkeypatch.setenv("DATTN_RECIPES", str(tmp_path))
    config = identity(pipe.transformer)
    spec = dattn.Radial(block_size=16)
    recipe = Recipe("WanTransformer3DModel", (49, 4, 4, 0, 0), spec, figures={"config": config, "met": True})
    recipe.save(tmp_path / "mine.json")
    replace(recipe, grid=(5, 4, 4, 0, 0), figures={"config": "another", "met": True}).save(tmp_path / "other.json")
    replace(recipe, grid=(3, 4, 4, 0, 0), figures={"config": config, "met": False}).save(tmp_path / "unmet.json")
    (tmp_path / "broken.json").write_text("{")
    assert list(found("WanTransformer3DModel", config)) == ["mine"]
    with dattn.apply(pipe, "auto") as handle:
        output = clip(pipe)
        report = handle.report()
        assert "recipes mine" in report.source and all("recipe mine" in row.why for row in report.layers)
        clip(pipe, num_frames=33)
        assert all("no recipe for this grid" in row.why for row in handle.report().layers if row.backend != "stock")
    with dattn.apply(pipe, spec):
        assert torch.equal(output, clip(pipe))
    with dattn.apply(pipe, "auto", dense_steps=0, dense_layers=0) as handle:  # of another grid: no look, no dense step
        output = clip(pipe, num_frames=33)
        assert not any("last dense step" in row.why for row in handle.report().layers)
    with dattn.apply(pipe, resolve("radial", "wan", "", None, None).attention):
        torch.testing.assert_close(output, clip(pipe, num_frames=33), atol=2e-3, rtol=0)


def test_identity_is_of_the_configuration(pipe):
    assert identity(pipe.transformer) == identity(built().transformer) != identity(pipe.vae)
    assert identity(torch.nn.Linear(1, 1)) == ""


def test_by_grid():
    one = ByGrid((((5, 6, 8), "a", CANDIDATES[0]),), CANDIDATES[1])
    assert one.fit(GRID) == (CANDIDATES[0], "recipe a")
    assert one.at(0, 2, 1, 4).fit(dattn.TokenGrid(2, 6, 8))[0] == CANDIDATES[1].fit(dattn.TokenGrid(2, 6, 8))[0]
    assert one.fit(dattn.TokenGrid(2, 6, 8))[1].startswith("no recipe for this grid")


def test_what_is_looked_at_needs_no_training():
    for video in (True, False):
        auto = observed(dattn.Radial() if video else dattn.Neighborhood(9), video)
        assert not any(spec.untuned for spec in auto.candidates) and auto.preset in auto.candidates


def test_patterns_of_a_look_share_their_order(monkeypatch):
    """And choose as they would alone."""
    sorts, real = [], Tree.sorted
    monkeypatch.setattr(Tree, "sorted", lambda *args: sorts.append(1) or real(*args))
    several = tuple(dattn.Alike(share, block_size=16) for share in (0.2, 0.4, 0.6))
    call = a_call(batch=1)
    Looking(Auto(several[0], several, error=0.0)).compute(call)
    assert len(sorts) == 2  # queries and keys, once
    assert ORDERS not in call.state
    alone, shared = ({"masks": call.state["masks"]} | more for more in ({}, {ORDERS: {}}))
    several[0].mask_in(call._replace(state=shared))
    masks = [several[1].mask_in(call._replace(state=state)) for state in (alone, shared)]
    assert len(sorts) == 2 + 2 + 2 and torch.equal(masks[0].to_dense(), masks[1].to_dense())
