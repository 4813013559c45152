"""Tuning a tiny pipeline: what is found is used, bounded, remembered, and said."""

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

import dattn
from dattn.attention import attend
from dattn.block_mask import MaskCache
from dattn.operators import per_head
from dattn.operators.per_head import cost_of
from dattn.recipe import Recipe
from dattn.spec import Call
from dattn.tuning import watch
from dattn.tuning.assemble import assembled
from dattn.tuning.candidates import candidates
from dattn.tuning.goal import Goal
from dattn.tuning.manners import MANNERS
from dattn.tuning.store import Store
from dattn.tuning.study import RANGES, Study, figures_of, losses
from dattn.tuning.tables import Measured
from tests.cli.conftest import build_wan

ROOT = Path(__file__).parents[2]
PROMPTS = ["a red circle", "a blue square"]
CALL = {"num_frames": 17, "height": 32, "width": 32, "num_inference_steps": 8, "guidance_scale": 2.0}
SPECS = ["Radial(block_size=16)", "Neighborhood((3, None, None))", "Alike(0.3, block_size=16)"]


def built():
    """A tiny pipeline, without dropout."""
    pipe = build_wan()
    pipe.set_progress_bar_config(disable=True)
    for name in ("text_encoder", "transformer", "vae"):
        getattr(pipe, name).eval()
    return pipe


def work_for_time(call, spec, limit=0.0):
    """Seconds of a call that computes less in less time, whatever the machine does beside it."""
    return call.query.shape[1] * cost_of(spec, call.grid, call.query.shape[-1], MaskCache(4))


@pytest.fixture(scope="module", autouse=True)
def times():
    """So short a sequence is slower under any pattern: choices would be dense attention alone."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(watch, "_seconds", work_for_time)
        yield


@pytest.fixture(scope="module")
def pipe(times):
    return built()


@pytest.fixture(scope="module")
def study(pipe, tmp_path_factory):
    """A folder of measurements, for choices of many kinds."""
    folder = tmp_path_factory.mktemp("study")
    dattn.tune(pipe, PROMPTS, quality=0.5, candidates=SPECS, folder=folder, **CALL)
    return folder


def tuned(pipe, study, **goal):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dattn.tune(pipe, PROMPTS, candidates=SPECS, folder=study, **goal, **CALL)


def test_a_recipe_is_used(pipe, study, tmp_path):
    recipe = tuned(pipe, study, quality=0.5)
    figures = recipe.figures
    assert {row["range"] for row in figures["places"]} == set(range(len(RANGES)))
    assert figures["predicted"]["seconds"] > 0
    least, most = figures["predicted"]["interval"]
    assert 0 < least < figures["predicted"]["ssim"] < most
    recipe.save(tmp_path / "mine.json")
    again = Recipe.load(tmp_path / "mine.json")
    assert again.attention == recipe.attention and again.grid == recipe.grid
    outputs = []
    for given in (recipe, str(tmp_path / "mine.json"), recipe.attention):
        with dattn.apply(pipe, given) as handle:
            outputs.append(Study(pipe, CALL, {}, "").clip(PROMPTS[0])[0])
            saved = tmp_path / "again.json"
            handle.save_recipe(saved)
    np.testing.assert_array_equal(outputs[0], outputs[1])
    np.testing.assert_allclose(outputs[0], outputs[2], atol=1e-4)  # dense attention is the model's own in the former
    assert json.loads(saved.read_text())["attention"] == json.loads((tmp_path / "mine.json").read_text())["attention"]


def test_measured_recipes_keep_their_figures(pipe, study, tmp_path):
    recipe = tuned(pipe, study, quality=0.5)
    with dattn.apply(pipe, recipe) as handle:
        handle.save_recipe(tmp_path / "kept.json")
    assert Recipe.load(tmp_path / "kept.json").figures == json.loads(json.dumps(recipe.figures))
    with dattn.apply(pipe, recipe, dense_steps=1) as handle:
        handle.save_recipe(tmp_path / "changed.json")
    assert Recipe.load(tmp_path / "changed.json").figures is None  # nobody measured that
    with dattn.apply(pipe, recipe) as handle, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Study(pipe, CALL | {"num_frames": 9}, {}, "").clip(PROMPTS[0])
        handle.save_recipe(tmp_path / "elsewhere.json")
    assert Recipe.load(tmp_path / "elsewhere.json").figures is None


def test_nothing_stays_applied(pipe, study):
    before = [type(m.processor) for m in pipe.transformer.modules() if hasattr(m, "processor")]
    tuned(pipe, study, quality=0.9)
    assert [type(m.processor) for m in pipe.transformer.modules() if hasattr(m, "processor")] == before
    assert "forward" not in vars(pipe.transformer) and not pipe.transformer._forward_pre_hooks


def test_a_looser_bound_is_never_slower(pipe, study):
    expected = [tuned(pipe, study, quality=q).figures["tried"][0]["predicted"] for q in (0.999, 0.9, 0.5, 0.1)]
    seconds = [one["seconds"] for one in expected]
    assert seconds == sorted(seconds, reverse=True)
    assert all(one["ssim"] <= 1 - q + 1e-9 for one, q in zip(expected, (0.999, 0.9, 0.5, 0.1), strict=True))


def test_what_each_manner_chooses_is_checked_and_the_better_one_is_taken(pipe, study):
    figures = tuned(pipe, study, quality=0.9).figures
    assert {one["manner"] for one in figures["tried"]} == set(MANNERS)
    assert figures["measured"] == Goal("quality", 0.9).best(figures["tried"], "measured")["measured"]


@pytest.mark.parametrize(("loss", "then"), [(0.9, -1), (0.001, 1)], ids=["tightened", "loosened"])
def test_the_better_choice_is_corrected_once(pipe, study, monkeypatch, tmp_path, loss, then):
    """By what its check found; ``then`` is where what may be lost goes, by the measure of before."""
    folder = shutil.copytree(study, tmp_path / "study")
    for kept in folder.glob("check-*"):
        kept.unlink()
    found = {"mse": loss, "ssim": loss, "work": 0.5, "seconds": 1.0}
    monkeypatch.setattr(Study, "check", lambda *_: found)
    tried = tuned(pipe, folder, quality=0.5).figures["tried"]
    assert len(tried) == len(MANNERS) + 1 and tried[-1]["manner"] in MANNERS
    before = next(one for one in tried if one["manner"] == tried[-1]["manner"])
    may = [
        one["predicted"]["ssim"] / off for one, off in ((before, 1), (tried[-1], loss / before["predicted"]["ssim"]))
    ]
    assert (may[1] - may[0]) * then > 0


def test_one_for_all_is_one_for_all(pipe, study, monkeypatch):
    monkeypatch.delitem(MANNERS, "by place")
    figures = tuned(pipe, study, quality=0.999).figures
    used = [
        {name for row in figures["places"] if row["range"] == n for name in row["heads"]} for n in range(len(RANGES))
    ]
    assert figures["manner"] == "one for all"
    assert all(len(names) == 1 for names in used) and len(set.union(*used) - {"Dense()"}) == 1


def test_the_same_measurements_give_the_same_recipe(pipe, study):
    assert tuned(pipe, study, psnr=20).attention == tuned(pipe, study, psnr=20).attention


def test_the_same_seed_sees_the_same_errors(pipe):
    def errors():
        specs = {text: dattn.pattern_from_string(text) for text in ["Dense()", *SPECS]}
        rows = Study(pipe, CALL, specs, SPECS[0]).observe(PROMPTS[0], sense=True)[1]
        return [row["error"] for row in rows["rows"]], rows["parts"]

    assert errors() == errors()


def test_a_range_is_lost_alone(pipe):
    """The first steps from the record, then sparse, then dense: as a pattern for each range says."""
    specs = {text: dattn.pattern_from_string(text) for text in ["Dense()", *SPECS]}
    own = Study(pipe, CALL, specs, SPECS[0])
    dense, _ = own.observe(PROMPTS[0], sense=False)
    found = own.lose(PROMPTS[0], dense, 1)
    spec = dattn.PerStep({0: dattn.Dense(), RANGES[1]: specs[SPECS[0]], RANGES[2]: dattn.Dense()})
    expected = own.check(PROMPTS[0], spec, dense)
    assert found["mse"] > 0 and found["mse"] == pytest.approx(expected["mse"], rel=1e-3)
    fresh = Study(pipe, CALL, specs, SPECS[0])  # nothing recorded: a study that goes on
    assert fresh.lose(PROMPTS[0], dense, 1)["mse"] == pytest.approx(found["mse"], rel=1e-3)


def test_a_bound_that_cannot_be_met_gives_the_nearest(pipe, study):
    with pytest.warns(UserWarning, match="900.00 x was not reached; the nearest"):
        recipe = dattn.tune(pipe, PROMPTS, speed_up=900, candidates=SPECS, folder=study, **CALL)
    assert not recipe.figures["met"] and recipe.figures["places"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quality": 1.5}, "quality=1.5: give a number above 0 and below 1"),
        ({"quality": 0.9, "psnr": 30}, "give one of them"),
        ({"speed_up": 1}, "speed_up=1: give a number above 1"),
        ({"prompts": []}, "give a list of two or three prompts"),
        ({"prompts": "a fox"}, "give a list"),
        ({"candidates": ["CrossShaped(2)"]}, "leave it out"),
        ({"candidates": ["StridedHeads(2, 1)"]}, "differs from head to head"),
        ({"candidates": ["Radiant()"]}, "unknown pattern"),
        ({"candidates": ["Dense()"]}, "at least one pattern beside"),
        ({"candidates": "radial"}, "give a list of patterns"),
        ({"output_type": "pil"}, "output_type='pil': dattn.tune gives it itself"),
    ],
)
def test_bad_input(pipe, change, message):
    options = {"prompts": PROMPTS, "candidates": SPECS, **CALL, **change}
    with pytest.raises(ValueError, match=message):
        dattn.tune(pipe, options.pop("prompts"), **options)
    assert not pipe.transformer._forward_pre_hooks


def test_another_study_is_not_mixed_in(pipe, study):
    with pytest.raises(ValueError, match="made with seed=0, not 1; name another folder"):
        dattn.tune(pipe, PROMPTS, candidates=SPECS, folder=study, seed=1, **CALL)


def test_pictures_too_small_for_ssim():
    with pytest.raises(ValueError, match="SSIM needs 11 x 11 pixels, these are 8 x 8; give psnr"):
        Goal.of(0.9, None, None).check_size((1, 8, 8, 3))
    Goal.of(None, 30, None).check_size((1, 8, 8, 3))


def test_another_model_is_refused_and_another_grid_is_said(pipe, study):
    recipe = tuned(pipe, study, quality=0.5)
    with pytest.raises(ValueError, match="this recipe is for Other, the target is WanTransformer3DModel"):
        dattn.apply(pipe, replace(recipe, model="Other"))
    with dattn.apply(pipe, recipe), pytest.warns(UserWarning, match="measured at 9x4x4 tokens, this call has 5x4x4"):
        Study(pipe, CALL | {"num_frames": 9}, {}, "").clip(PROMPTS[0])
    other = replace(recipe, figures=recipe.figures | {"config": "of a larger one"})
    with pytest.warns(UserWarning, match="this recipe was measured on another WanTransformer3DModel") as told:
        dattn.apply(pipe, other).remove()
    assert told[0].filename == __file__


def test_memory_is_bounded(pipe):
    """Figures of a run grow with layers, heads and candidates alone: not with tokens."""
    sizes = []
    for frames in (9, 33):
        specs = {text: dattn.pattern_from_string(text) for text in ["Dense()", *SPECS]}
        sizes.append(len(json.dumps(Study(pipe, CALL | {"num_frames": frames}, specs, SPECS[0]).observe("a", True)[1])))
    assert sizes[1] < 1.2 * sizes[0]


def test_a_record_is_what_the_model_gave_and_no_more(pipe):
    """A pass of the model for each step and branch: latents of the clip, which grow with it alone."""
    specs = {text: dattn.pattern_from_string(text) for text in ["Dense()", *SPECS]}
    own = Study(pipe, CALL, specs, SPECS[0])
    own.observe(PROMPTS[0], sense=True)
    latents = pipe.transformer.config.out_channels * 9 * 4 * 4 * pipe.transformer.config.patch_size[1] ** 2
    held = [leaf for _, result in own._record for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
    assert sum(leaf.untyped_storage().nbytes() for leaf in held) == 2 * 8 * latents * 4
    own.observe(PROMPTS[1], sense=False)
    assert len(own._record) == 2 * 8
    own.forget()
    assert not own._record


class Broken(Exception):
    """Raised in the middle of a run."""


@pytest.mark.parametrize("after", [1, 5])
def test_an_exception_leaves_no_trace(pipe, monkeypatch, after):
    steps = []

    def step(*args, **kwargs):
        steps.append(1)
        if len(steps) > after:
            raise Broken
        return type(pipe.scheduler).step(pipe.scheduler, *args, **kwargs)

    before = [type(m.processor) for m in pipe.transformer.modules() if hasattr(m, "processor")]
    with monkeypatch.context() as patched, pytest.raises(Broken):
        patched.setattr(pipe.scheduler, "step", step)
        dattn.tune(pipe, PROMPTS, candidates=SPECS, **CALL)
    assert [type(m.processor) for m in pipe.transformer.modules() if hasattr(m, "processor")] == before
    assert "forward" not in vars(pipe.transformer) and not pipe.transformer._forward_pre_hooks
    assert not {"step", "set_timesteps"} & vars(pipe.scheduler).keys()


def test_three_prompts_and_few_steps(pipe):
    """Ranges without steps, and a spread over the prompts that were seen."""
    some = CALL | {"num_inference_steps": 2, "num_frames": 9}
    recipe = dattn.tune(pipe, [*PROMPTS, "a green triangle"], psnr=8, candidates=SPECS[:2], **some)
    least, most = recipe.figures["predicted"]["interval"]
    assert 0 < least < recipe.figures["predicted"]["mse"] < most
    assert {row["range"] for row in recipe.figures["places"]} < {0, 1, 2}


def two_experts():
    """As Wan 2.2: another transformer for the late steps."""
    pipe = built()
    second = deepcopy(pipe.transformer)
    for number, weight in enumerate(second.parameters()):
        torch.nn.init.normal_(weight, std=0.05, generator=torch.Generator().manual_seed(number))
    both = type(pipe)(**{**pipe.components, "transformer_2": second}, boundary_ratio=0.5)
    both.set_progress_bar_config(disable=True)
    return both, CALL


def picture_model(name):
    pipe = diffusers.DiffusionPipeline.from_pretrained(ROOT / "assets" / "models" / name)
    pipe.set_progress_bar_config(disable=True)
    return pipe, {"height": 64, "width": 64, "num_inference_steps": 4, "guidance_scale": 3.0}


@pytest.mark.parametrize("name", ["two experts", "shapes-sd", "shapes-flux"])
def test_models_of_other_kinds(name):
    """Two transformers, a UNet with layers of several sizes, text and picture in one sequence."""
    pipe, call = two_experts() if name == "two experts" else picture_model(name)
    recipe = dattn.tune(
        pipe, PROMPTS, speed_up=900, candidates=["Neighborhood(3)", "Alike(0.5, block_size=16)"], **call
    )
    figures = recipe.figures
    places = {(place["range"], place["layer"]) for place in figures["places"]}
    with dattn.apply(pipe, recipe) as handle:
        clip, _ = Study(pipe, call, {}, "").clip(PROMPTS[1])
        served = {layer.index for layer in handle.layers if not layer.stock_reason}
    steps = call["num_inference_steps"]
    there = {n for n, (a, b) in enumerate(pairwise([*watch.starts(RANGES, steps), steps])) if a < b}
    assert {layer for _, layer in places} == served and {number for number, _ in places} == there
    assert losses(clip, Study(pipe, call, {}, "").clip(PROMPTS[1])[0])["mse"] == pytest.approx(
        figures["measured"]["mse"]
    )
    assert figures["measured"]["mse"] > 0 and not figures["met"]


def test_passes_with_text_of_another_length():
    """As of models whose prompt and negative prompt are as long as they are: the one that is looked at counts."""
    specs = {text: dattn.pattern_from_string(text) for text in ["Dense()", *SPECS]}
    watching = watch.Watching(specs, RANGES, stand_in=SPECS[0])
    for step in range(8):
        for text in (3, 9):
            grid = dattn.TokenGrid(5, 4, 4, text=text)
            state = {"layer": 0, "layers": 1, "step": step, "masks": MaskCache()}
            q, k, v = torch.randn(3, 1, 2, grid.tokens, 8, generator=torch.Generator().manual_seed(step))
            call = Call(q, k, v, grid, state, 0.3, None, "auto")
            watch.Watch(watching).at(0, 1, step, 8).compute(call)
    figures = json.loads(json.dumps(figures_of(watching.notes)))
    assert figures["sizes"] == {"0": [83, 2, 8]} and [entry["size"] for entry in figures["times"]] == [[83, 2, 8]]
    figures |= {"seconds": 1.0, "parts": [{"layers": [0], "change": [1.0] * len(RANGES)}]}
    tables = Measured(tuple(specs), SPECS[0], [figures], [{"mse": 0.1}] * len(RANGES)).tables("mse")
    assert [place.calls for place in tables.places] == [2, 2, 6, 6] and all(place.harm > 0 for place in tables.places)


def test_the_record_is_used_and_let_go(pipe):
    specs = {text: dattn.pattern_from_string(text) for text in ["Dense()", *SPECS]}
    own = Study(pipe, CALL, specs, SPECS[0])
    dense, _ = own.observe(PROMPTS[0], sense=True)
    own.observe(PROMPTS[1], sense=False)  # does not touch the record of the first
    passes = []
    hook = pipe.transformer.blocks[0].register_forward_hook(lambda *_: passes.append(1))
    try:
        own.lose(PROMPTS[0], dense, len(RANGES) - 1)
    finally:
        hook.remove()
    assert len(passes) == 2 * 3  # the last 3 of 8 steps, two branches each
    own.forget()
    assert not own._record


def test_other_weights_are_another_study(pipe, study):
    bias = pipe.transformer.blocks[0].attn1.to_q.bias
    with torch.no_grad():
        bias[0] += 1
    try:
        with pytest.raises(ValueError, match="made with weights="):
            dattn.tune(pipe, PROMPTS, candidates=SPECS, folder=study, **CALL)
    finally:
        with torch.no_grad():
            bias[0] -= 1


@pytest.mark.slow
@pytest.mark.parametrize("compile_it", ["module", "blocks"])
def test_a_compiled_pipeline(compile_it):
    pipe = built()
    if compile_it == "module":
        pipe.transformer.compile(fullgraph=True, backend="eager")
    else:
        pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    recipe = dattn.tune(pipe, PROMPTS, psnr=8, candidates=SPECS[:2], **CALL | {"num_inference_steps": 3})
    assert recipe.figures["tried"]


KILLED = """
import sys, dattn
from itertools import count
from dattn.tuning import study, watch
from tests.tuning.test_tune import CALL, PROMPTS, SPECS, built, work_for_time
watch._seconds = work_for_time
watch.perf_counter = study.perf_counter = count().__next__  # no run is faster than another
tell = lambda what, number, of: print(number, flush=True)
recipe = dattn.tune(built(), PROMPTS, quality=0.5, candidates=SPECS, folder=sys.argv[1], tell=tell, **CALL)
recipe.save(sys.argv[2])
"""


def test_a_killed_study_goes_on_as_if_nothing_had_been(tmp_path):
    """kill -9 in the middle; what is there is not measured again, and the recipe is that of an uninterrupted study."""
    options = {"stdout": subprocess.PIPE, "text": True, "env": os.environ | {"PYTHONPATH": os.getcwd()}}

    def command(name):
        return [sys.executable, "-c", KILLED, str(tmp_path / name), str(tmp_path / f"{name}.json")]

    with subprocess.Popen(command("killed"), **options) as process:
        while process.stdout.readline().strip() != "3":
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("observed*.json")}
    assert kept and not (tmp_path / "killed.json").exists()
    subprocess.run(command("killed"), check=True, **options)
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    subprocess.run(command("whole"), check=True, **options)
    resumed, whole = (Recipe.load(tmp_path / f"{name}.json").to_dict() for name in ("killed", "whole"))
    assert all(one["figures"].pop("tuning_seconds") > 0 for one in (resumed, whole))
    assert resumed == whole and whole["figures"]["tried"]


def test_two_patterns_of_a_place_are_two_calls(monkeypatch):
    """However the heads that have the same lie; a choice has no more than two, see ``test_choose``."""
    real, calls = per_head.attend, []
    monkeypatch.setattr(per_head, "attend", lambda *args, **kwargs: calls.append(1) or real(*args, **kwargs))
    grid, size = dattn.TokenGrid(9, 4, 4), (1, 4, 144, 8)
    one, other = (dattn.pattern_from_string(text) for text in (SPECS[0], SPECS[2]))
    spec = assembled({(0, 0): (one, other, one, other)}, RANGES)
    q, k, v = torch.randn(3, *size, generator=torch.Generator().manual_seed(0))
    output = attend(q, k, v, spec.at(0, 1, 0, 1).fit(grid)[0], grid)
    assert len(calls) == 2
    for head, own in enumerate((one, other, one, other)):
        alone = attend(*(t[:, head : head + 1] for t in (q, k, v)), own.fit(grid)[0], grid)
        torch.testing.assert_close(output[:, head : head + 1], alone)


def test_assembled():
    a, b, dense = dattn.Radial(block_size=16), dattn.StridedHeads(2), dattn.Dense()
    everywhere = {(r, layer): (a, a) for r in range(len(RANGES)) for layer in range(2)}
    assert assembled(everywhere, RANGES) == a
    assert assembled(dict.fromkeys(everywhere, (dense, dense)), RANGES) == dense
    mixed = everywhere | {(0, 0): (dense, dense), (0, 1): (dense, dense), (1, 1): (a, b)}
    assert assembled(mixed, RANGES) == dattn.PerStep(
        {0: dense, RANGES[1]: dattn.PerLayer({0: a, 1: dattn.PerHead((a, b))}), RANGES[2]: a}
    )
    partly = {(0, layer): (a, a) if layer else (dense, dense) for layer in range(3)}
    assert assembled(partly, [0.0]) == dattn.PerLayer({(1, 2): a})


@pytest.mark.parametrize("shape", [(65, 8, 8), (1, 32, 32), (1, 8, 8), (5, 4, 4), (21, 45, 80), (1, 64, 64), (2, 2, 2)])
def test_candidates_fit(shape):
    grid = dattn.TokenGrid(*shape)
    found = [dattn.pattern_from_string(text) for text in candidates(grid)]
    assert found[0] == dattn.Dense() and len(set(map(str, found))) == len(found) > 4
    for spec in found:
        assert not spec.untuned
        fitted, note = spec.at(0, 1, 0, 1).fit(grid)
        assert note is None, (spec, note)
        if fitted.static and grid.tokens < 5000:
            fitted.mask(grid)


def test_a_store_writes_whole_files(tmp_path):
    store = Store(tmp_path, {"a": (1, 2)})
    assert store.do("x", lambda: {"v": 1}) == {"v": 1} == store.do("x", lambda: pytest.fail("measured again"))
    store.keep("y", np.arange(3))
    again = Store(tmp_path, {"a": (1, 2)})
    assert again.array("y").tolist() == [0, 1, 2] and again.seconds == store.seconds > 0
    assert not list(tmp_path.glob("*part*"))
