"""A control that runs nowhere says so, once; one that runs, or that was switched off, does not."""

import warnings
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

import dattn
from dattn.control import (
    AttendAndExcite,
    Emphasize,
    HeatMaps,
    Isolation,
    LocalBlend,
    Perturb,
    Reweight,
    SharedKeys,
)
from tests.families import FAMILIES
from tests.pipelines.tiny import sdxl_pipeline

LEFT, RIGHT = (0, 0, 0.5, 1), (0.5, 0, 1, 1)
IDLE = {
    "layers": lambda: Isolation([LEFT, RIGHT], layers=[99]),
    "predicate": lambda: Emphasize({"red": 0.5}, layers=lambda name: "nothing" in name),
    "window": lambda: Reweight({"red": 0.0}, window=(0.1, 0.2)),
    "excite": lambda: AttendAndExcite(["circle"], window=(0.1, 0.2)),
}
BUSY = {
    "maps": lambda: HeatMaps(["circle"]),
    "perturb": lambda: Perturb(layers=[0]),
    "excite": lambda: AttendAndExcite(["circle"], step_size=1.0, most=1, window=1.0),
    "off": lambda: Reweight({"red": 0.0}, window=(0.2, 0.2)),
    "strength": lambda: SharedKeys(strength=0),
}


@pytest.fixture(scope="module")
def pipe():
    found = DiffusionPipeline.from_pretrained(Path(__file__).parents[2] / "assets" / "models" / "shapes-sd")
    found.set_progress_bar_config(disable=True)
    return found


def run(pipe, **options):
    size = {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "latent"}
    pipe("a red circle", generator=torch.Generator().manual_seed(0), **size, **options)


@pytest.mark.parametrize("name", IDLE)
def test_a_control_that_ran_nowhere_is_told_of_once(pipe, name):
    control = IDLE[name]()
    with dattn.apply(pipe, control=[HeatMaps(["circle"]), control]) as handle:
        assert f"{type(control).__name__} (ran nowhere)" not in str(handle.report())
        with pytest.warns(UserWarning, match=f"{type(control).__name__} ran nowhere.*{control.window[1]}"):
            run(pipe)
        assert f"controls: HeatMaps, {type(control).__name__} (ran nowhere)" in str(handle.report())
        with warnings.catch_warnings(action="error"):
            run(pipe)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("name", BUSY)
def test_others_are_not(pipe, name, guidance):
    with warnings.catch_warnings(action="error"), dattn.apply(pipe, control=BUSY[name]()) as handle:
        run(pipe, guidance_scale=guidance)
        assert "ran nowhere" not in str(handle.report())


def test_the_level_of_maps_is_one_that_has_attention():
    """SDXL has none at its largest, which here is nearest to 16 x 16."""
    pipe, maps = sdxl_pipeline(), LocalBlend(["circle"])
    pipe.set_progress_bar_config(disable=True)
    with warnings.catch_warnings(action="error", category=UserWarning), maps.on(pipe):
        pipe("a red circle", height=32, width=32, num_inference_steps=2, output_type="latent")


def test_linear_attention_runs_no_control():
    family = FAMILIES["sana"]
    model = family.model()
    with dattn.apply(model, control=[SharedKeys("batch_item", item=0), Emphasize({0: 0.5})]) as handle:
        assert "ran nowhere" not in str(handle.report())
        family.run(model, 2)
        assert handle.report().controls == ("SharedKeys (ran nowhere)", "Emphasize")
