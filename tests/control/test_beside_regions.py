"""Controls after Regions look for words in the call's own prompts, and see the base prompt's part of the picture."""

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

import dattn
from dattn.control import AStar, AttendAndExcite, LocalBlend, Region, Regions, Replace, Reweight

MODELS = Path(__file__).parents[2] / "assets" / "models"
PROMPTS = ["a blue square and a red circle", "a green square and a red circle"]
CONTROLS = {
    "reweight": lambda: [Reweight({"red": 0.0})],
    "replace": lambda: [Replace()],
    "a-star": lambda: [AStar(["square", "circle"], step_size=5.0)],
    "blend": lambda: [Replace(), LocalBlend(["blue", "green"], start=0)],
}


@pytest.fixture(scope="module", params=["shapes-sd", "shapes-flux"])
def pipe(request):
    found = DiffusionPipeline.from_pretrained(MODELS / request.param)
    found.set_progress_bar_config(disable=True)
    return found


def regions():
    """A region whose words are elsewhere in its prompt, and that says nothing beside the base prompt."""
    return Regions([Region("a red circle", box=(0, 0, 0.5, 1))], base_ratio=1)


def run(pipe, prompts, controls):
    """Latents under controls."""
    own = {"guidance_scale": 1.0} if hasattr(pipe, "unet") else {"max_sequence_length": 16}
    size = {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "latent", "return_dict": False}
    generators = [torch.Generator().manual_seed(0) for _ in prompts]
    with dattn.apply(pipe, control=controls):
        return pipe(prompts, generator=generators, **own, **size)[0]


@pytest.mark.parametrize("name", CONTROLS)
def test_words_are_the_base_prompts(pipe, name):
    controls = CONTROLS[name]
    alone = run(pipe, PROMPTS, controls())
    torch.testing.assert_close(run(pipe, PROMPTS, [regions(), *controls()]), alone, atol=2e-4, rtol=1e-3)
    assert (alone - run(pipe, PROMPTS, [])).abs().max() > 1e-2


def test_attend_and_excite_looks_at_more_text_than_the_model_was_asked(pipe):
    """The regions' tokens compete with the words, so that it moves, not as it would alone."""
    control = AttendAndExcite(["square", "circle"], most=1, window=1.0)
    alone = run(pipe, PROMPTS[:1], [regions()])
    assert (run(pipe, PROMPTS[:1], [regions(), control]) - alone).abs().max() > 1e-3
