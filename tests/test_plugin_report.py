"""Reports, recipes, presets, and the errors that say what to do."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from dattn.adapters import ADAPTERS
from dattn.apps.models import markdown
from dattn.operators import PerLayer, PerStep
from dattn.patterns import Dense, Neighborhood, Radial, Selected
from dattn.plugin import apply
from dattn.presets import PRESETS, preset_names, resolve
from dattn.scores import Pooled
from dattn.selection import TopK
from dattn.support import CONDITIONS, RECORD, supported_models
from tests.families import CORE as FAMILIES
from tests.families import FAMILIES as ALL
from tests.tiny_models import Pipeline


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


def test_before_any_call_the_report_says_that_nothing_ran(family):
    model = family.model()
    handle = apply(model, Radial(block_size=16), dense_layers=1)
    report = handle.report()
    assert not report.ran and "no pattern has run yet" in str(report)
    first, *rest = report.layers
    assert first.backend == "stock" and first.why == "a dense layer"
    assert all(row.backend is None and row.density is None and row.saved is None for row in rest)
    assert "Radial(block_size=16)" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["attention"] == "Radial(block_size=16)"


def test_after_a_call_the_report_has_grid_density_backend_and_saving(family):
    model = family.model()
    pattern = Radial(block_size=16)
    handle = apply(model, pattern)
    family.run(model)
    report = handle.report()
    grids = {(*g.shape, g.text_before, g.text_after): g for g in family.grids}
    assert report.ran and {row.grid for row in report.layers} == set(grids)
    for row in report.layers:
        grid = grids[row.grid]
        assert row.density == pattern.mask(grid).density
        assert row.flops_dense == 4 * grid.tokens**2 * handle.layers[row.index].module.inner_dim
        assert row.saved == pytest.approx(1 - row.density, abs=1e-5)
        assert row.backend == "torch" and "auto" in row.why
    assert report.flops_share == pytest.approx(
        sum(row.flops_computed for row in report.layers) / sum(row.flops_dense for row in report.layers)
    )
    assert json.loads(json.dumps(report.to_dict()))["layers"][0]["backend"] == "torch"


def test_a_pattern_that_saves_nothing_still_runs_and_says_so(family):
    model = family.model()
    handle = apply(model, Dense())
    family.run(model)
    report = handle.report()
    assert {row.backend for row in report.layers} == {"torch"}
    assert str(report).count("no saving") == len(report.layers)
    assert report.flops_share == 1


def test_dense_steps_count_in_the_flops():
    family = FAMILIES["wan"]
    pipe = Pipeline(FlowMatchEulerDiscreteScheduler(), family, transformer=family.model())
    handle = apply(pipe, Radial(block_size=16), dense_steps=0.5)
    pipe(pipe.transformer, steps=4)
    report = handle.report()
    density = report.layers[0].density
    assert density < 1
    assert report.flops_share == pytest.approx(0.5 + 0.5 * density, abs=1e-4)
    assert "0.5 = 2 of 4" in str(report)
    with apply(pipe, Radial(), dense_steps=12) as handle:
        pipe(pipe.transformer, steps=4)
        assert "every step is dense" in str(handle.report())


def test_steps_of_several_kinds_count_by_what_they_computed():
    """Two dense steps and two with a third of the blocks; what chose them says how many it were."""
    family = FAMILIES["wan"]
    model = family.model()
    pipe = Pipeline(FlowMatchEulerDiscreteScheduler(), family, transformer=model)
    chosen = Selected(Pooled(), TopK(0.3), block_size=16)
    for steps in ({0: Dense(), 2: chosen}, {0: chosen, 2: Dense()}):
        with apply(pipe, PerStep(steps)) as handle:
            pipe(model)
            shares = [1 - row["saved"] for row in handle.report().to_dict()["layers"]]
        with apply(pipe, chosen) as handle:
            pipe(model)
            rows = handle.report().to_dict()["layers"]
        for share, row in zip(shares, rows, strict=True):
            assert 0.3 <= row["density"] < 0.6
            assert share == pytest.approx((1 + 1 - row["saved"]) / 2, abs=0.02)


def test_nested_patterns_are_written_shortly():
    from dattn.operators import PerHead, Reshaped
    from dattn.report import describe

    nested = Reshaped(PerHead((Radial(decay=0.5), Neighborhood(3))), refresh=3)
    assert (
        describe(nested) == "Reshaped(pattern=PerHead(patterns=(Radial(decay=0.5), Neighborhood(window=3))), refresh=3)"
    )


def test_pooled_keys_are_reported_apart():
    family = FAMILIES["wan"]
    model = family.model()
    with apply(model, Radial(block_size=16, tail=True)) as handle:
        family.run(model)
        row = handle.report().layers[0]
        assert row.tail_share > 0
        assert row.saved == pytest.approx(1 - row.density - row.tail_share, abs=1e-4)


def test_a_window_larger_than_a_level_is_clamped_and_reported():
    family = FAMILIES["unet"]
    model = family.model()
    with apply(model, Neighborhood(6, stride=2)) as handle:
        family.run(model)
        rows = {row.grid[:3]: row for row in handle.report().layers}
        assert rows[(1, 13, 10)].why.count("clamp") == 0
        assert "6" in rows[(1, 7, 5)].pattern or "5" in rows[(1, 7, 5)].pattern
        for size in ((1, 7, 5), (1, 4, 3)):
            assert rows[size].why != rows[(1, 13, 10)].why


def test_auto_may_leave_layers_stock_and_says_so():
    family = FAMILIES["unet"]
    model = family.model()
    stock = family.run(model)
    with apply(model, "auto", dense_steps=0) as handle:
        assert torch.equal(family.run(model), stock)
        assert all(row.backend == "stock" and row.why.startswith("auto: saves") for row in handle.report().layers)


@pytest.mark.parametrize("preset", [*PRESETS, "auto"])
def test_presets(family, preset):
    pipe = Pipeline(FlowMatchEulerDiscreteScheduler(), family, transformer=family.model())
    image = family.name in ("unet", "flux")
    if preset not in preset_names(family.name):
        with pytest.raises(ValueError, match=rf"'{preset}' has no setting for this model.*neighborhood.*dattn\.\w+\("):
            apply(pipe, preset)
        return
    handle = apply(pipe, preset)
    assert pipe(pipe.transformer, steps=2).isfinite().all()
    assert repr({"auto": "neighborhood" if image else "radial"}.get(preset, preset)) in str(handle.report())
    handle.remove()
    assert apply(pipe, preset, dense_steps=0, dense_layers=2).settings.dense_layers == 2


def test_a_family_without_a_setting_of_its_own_has_that_of_its_kind():
    kinds = {True: resolve("radial", "ltx", "", None, None), False: resolve("neighborhood", "sd3", "", None, None)}
    assert all("dattn's own choice" in settings.source for settings in kinds.values())
    assert "radial" not in preset_names("sd3") and "radial" in preset_names("ltx")
    assert "published" in resolve("auto", "hunyuan_video", "", None, None).source
    by_layers = [resolve("neighborhood", "cosmos", "", None, None, layers).attention for layers in (28, 36)]
    assert [type(attention) for attention in by_layers] == [PerLayer, Neighborhood]


def test_published_defaults_of_wan():
    family = FAMILIES["wan"]
    one = apply(Pipeline(None, family, transformer=family.model()), "radial").settings
    two = apply(Pipeline(None, family, transformer=family.model(), transformer_2=family.model()), "radial").settings
    assert (one.attention, one.dense_layers) == (Radial(decay=0.2), 1)
    assert (two.attention, two.dense_layers) == (Radial(decay=0.8, block_size=64), 1)
    from dattn.schedule import resolve_amount

    assert resolve_amount(one.dense_steps, 50) == 12
    assert resolve_amount(two.dense_steps, 40) == 11


@pytest.mark.parametrize(
    "attention", [Neighborhood(3), "Neighborhood(window=3)", {"name": "Neighborhood", "window": 3}]
)
def test_every_way_to_write_a_pattern(attention):
    assert apply(FAMILIES["wan"].model(), attention).settings.attention == Neighborhood(3)


def test_none_leaves_everything_stock(family):
    model = family.model()
    stock = family.run(model)
    with apply(model) as handle:
        assert torch.equal(family.run(model), stock)
        assert all(row.backend == "stock" for row in handle.report().layers)


def test_recipes_go_round(family, tmp_path):
    model, path = family.model(), str(tmp_path / "recipe.json")
    handle = apply(model, Neighborhood((None, 3, 3)), dense_layers=1, layers=[1, 2])
    expected = family.run(model)
    handle.save_recipe(path)
    saved = json.loads((tmp_path / "recipe.json").read_text())
    assert set(saved) == {"format", "model", "grid", "attention", "dense_steps", "dense_layers", "layers"}
    assert saved["model"] == type(model).__name__
    grid = family.grids[0]
    assert saved["grid"] == [*grid.shape, [grid.text_before, grid.text_after]]
    again = apply(model, path)
    assert torch.equal(family.run(model), expected)
    assert again.settings.attention == Neighborhood((None, 3, 3)) and again.settings.dense_layers == 1
    assert "recipe" in str(again.report())
    assert apply(model, path, dense_layers=0).settings.dense_layers == 0


def test_a_recipe_without_a_selection_has_the_six_keys(tmp_path):
    path = tmp_path / "auto.json"
    apply(FAMILIES["wan"].model(), "auto").save_recipe(path)
    saved = json.loads(path.read_text())
    assert set(saved) == {"format", "model", "grid", "attention", "dense_steps", "dense_layers"}
    assert saved["attention"] == "auto" and saved["grid"] is None
    assert apply(FAMILIES["wan"].model(), str(path)).settings.min_saving is not None


GOOD = {
    "format": 1,
    "model": "WanTransformer3DModel",
    "grid": None,
    "attention": {"name": "Dense"},
    "dense_steps": 0,
    "dense_layers": 0,
}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "not JSON"),
        ("[1]", "JSON object"),
        (json.dumps(GOOD | {"format": 2}), "reads format 1"),
        (json.dumps({"format": 1}), "lacks"),
        (json.dumps(GOOD | {"extra": 1}), "unknown"),
        (json.dumps(GOOD | {"model": "FluxTransformer2DModel"}), "is for Flux"),
        (json.dumps(GOOD | {"attention": {"name": "__import__"}}), "__import__"),
        (json.dumps(GOOD | {"attention": {"name": "Radial", "decay": -1}}), "decay"),
        (json.dumps(GOOD | {"attention": "__import__('os')"}), "attention"),
        (json.dumps(GOOD | {"dense_steps": 2.5}), "dense_steps"),
        (json.dumps(GOOD | {"dense_layers": "all"}), "dense_layers"),
        (json.dumps(GOOD | {"layers": 3}), "layers"),
        (json.dumps(GOOD | {"layers": ["a"]}), "layers"),
    ],
)
def test_bad_recipes_are_errors(tmp_path, content, message):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        apply(FAMILIES["wan"].model(), str(path))


def test_a_missing_recipe_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        apply(FAMILIES["wan"].model(), str(tmp_path / "none.json"))


def test_unsupported_targets_list_what_is_supported():
    with pytest.raises(ValueError, match=r"Linear.*WanTransformer3DModel.*UNet2DConditionModel.*CONTRIBUTING\.md"):
        apply(torch.nn.Linear(2, 2), Dense())
    with pytest.raises(ValueError, match="neither a model nor a pipeline"):
        apply(object(), Dense())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"attention": 3}, ValueError, r"attention=3.*radial"),
        ({"attention": "nonsense"}, ValueError, "nonsense"),
        ({"attention": "__import__('os').getcwd()"}, ValueError, "__import__"),
        ({"attention": {"name": "Nope"}}, ValueError, "Nope"),
        ({"backend": "quantum"}, ValueError, "backend='quantum'"),
        ({"control": object()}, ValueError, "control"),
        ({"layers": 3}, ValueError, "layers"),
    ],
)
def test_wrong_arguments_change_nothing(arguments, error, message):
    model = FAMILIES["wan"].model()
    before = [block.attn1.processor for block in model.blocks]
    with pytest.raises(error, match=message):
        apply(model, **({"attention": Dense()} | arguments))
    assert [block.attn1.processor for block in model.blocks] == before
    assert not model._forward_pre_hooks and "_dattn_handle" not in vars(model)


def test_an_explicit_backend_runs(family):
    model = family.model()
    with apply(model, Neighborhood(3), backend="reference") as handle:
        family.run(model)
        assert {row.backend for row in handle.report().layers} == {"reference"}


def test_supported_models_is_a_table():
    rows = supported_models()
    assert [name for row in rows for name in row.models] == [name for adapter in ADAPTERS for name in adapter.models]
    for row in rows:
        assert row.presets[-1] == "auto" and row.title and row.text
        assert list(row.tried) == list(CONDITIONS.values())
        assert not row.tried["patterns"], row
        assert not {"not tried", "failed"} & set(row.tried.values()), row


def test_every_family_under_test_is_on_record():
    assert set(json.loads(RECORD.read_text())) == set(ALL)
    assert {name.split("-")[0] for name in ALL} == {adapter.family for adapter in ADAPTERS}


def test_the_table_in_the_readme_is_that_of_the_record():
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    table = readme.split("<!-- made by: dattn models --markdown -->\n")[1].split("<!-- end -->")[0]
    assert table.strip() == markdown(supported_models())
