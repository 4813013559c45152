"""PromptEditPipeline: edits of pictures that were made, and of real ones."""

from contextlib import nullcontext
from functools import cache
from unittest import mock

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    PNDMScheduler,
    StableDiffusionPipeline,
)

import dattn
import dattn.pipelines.prompt_edit as module
from dattn.control import Control, Replace
from dattn.pipelines import PromptEditPipeline
from dattn.pipelines.inversion import Backwards, latents_of

from .tiny import MODELS, sd3_pipeline, sdxl_pipeline

CALL = {"height": 32, "width": 32, "num_inference_steps": 3, "output_type": "pt"}
MAKERS = {
    "sd": lambda: StableDiffusionPipeline.from_pretrained(f"{MODELS}/shapes-sd"),
    "sdxl": sdxl_pipeline,
    "flux": lambda: FluxPipeline.from_pretrained(f"{MODELS}/shapes-flux"),
    "sd3": sd3_pipeline,
}
EXTRA = {
    "flux": {"max_sequence_length": 16, "true_cfg_scale": 3.0, "negative_prompt": ""},
    "sd3": {"max_sequence_length": 16},
}
SOURCE, EDIT = "a red circle", "a blue circle"


@cache
def stock_of(name):
    pipe = MAKERS[name]()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(params=MAKERS)
def editing(request):
    """The pipeline on a stock one, and what its calls are given."""
    return PromptEditPipeline.from_pipe(stock_of(request.param)), CALL | EXTRA.get(request.param, {})


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_first_picture_is_the_stock_one(editing):
    pipe, call = editing
    made = pipe(SOURCE, EDIT, generator=seeded(), **call).images
    stock = pipe.stock.__call__(pipe, SOURCE, generator=seeded(), **call).images
    assert isinstance(pipe, pipe.stock) and len(made) == 2
    assert (made[0] - stock[0]).abs().max() < 1e-4
    alone = pipe.stock.__call__(pipe, EDIT, generator=seeded(), **call).images
    assert (made[1] - alone[0]).abs().max() > 1e-4


def test_it_is_the_control(editing):
    pipe, call = editing
    guided = {"negative_prompt": [""] * 2} if "negative_prompt" in call else {}
    with Replace().on(pipe):
        by_hand = pipe.stock.__call__(pipe, [SOURCE, EDIT], generator=seeded(), **{**call, **guided}).images
    assert torch.equal(pipe(SOURCE, EDIT, generator=seeded(), **call).images, by_hand)


def test_a_real_picture_comes_back(editing):
    """The way of a picture that was inverted ends at its own latents, however far the edits are."""
    pipe, call = editing
    picture = np.random.default_rng(0).random((1, 32, 32, 3), np.float32)
    clean = latents_of(pipe, picture, 32, 32)
    before = pipe.scheduler
    edited = pipe(SOURCE, [EDIT, "a red square"], image=picture, **{**call, "output_type": "latent"}).images
    assert pipe.scheduler is before and len(edited) == 3
    sized = pipe(SOURCE, EDIT, image=picture, **{k: v for k, v in call.items() if k not in ("height", "width")})
    assert sized.images.shape[-2:] == (32, 32)
    assert (edited[0] - clean[0]).abs().max() < 1e-5
    assert (edited[1] - edited[0]).abs().max() > 1e-3


# not SDXL: the epsilon of a random model, divided by a small alpha, is no field that any step size resolves
@pytest.mark.parametrize("editing", ["sd", "flux", "sd3"], indirect=True)
def test_an_empty_edit_of_a_picture_comes_nearer_with_more_steps(editing):
    """Without guidance the way back from the inverted picture is the way there, up to the size of a step."""
    pipe, call = editing
    plain = {name: value for name, value in call.items() if name not in ("true_cfg_scale", "negative_prompt")}
    plain |= {"guidance_scale": 1.0}
    picture = pipe.stock.__call__(pipe, SOURCE, generator=seeded(), **plain | {"output_type": "np"}).images
    clean = latents_of(pipe, picture, 32, 32)[0]

    def error(steps):
        settings = plain | {"output_type": "latent", "num_inference_steps": steps}
        return (pipe(SOURCE, SOURCE, image=picture, **settings).images[1] - clean).square().mean()

    assert error(24) < 0.5 * error(6)


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(clip_sample=False),
        DDIMScheduler(clip_sample=False, prediction_type="v_prediction", beta_schedule="scaled_linear"),
        DDIMScheduler(clip_sample=False, prediction_type="sample", steps_offset=1, set_alpha_to_one=False),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
    ],
)
def test_steps_backwards_undo_steps(scheduler):
    generator = seeded()
    outputs = torch.randn(7, 1, 4, 8, 8, generator=generator)
    backwards = Backwards(scheduler)
    backwards.set_timesteps(7)
    start = torch.randn(1, 4, 8, 8, generator=generator)
    latents = start
    for output, time in zip(outputs.flip(0), backwards.timesteps, strict=True):
        (latents,) = backwards.step(output, time, latents)
    scheduler.set_timesteps(7)
    for output, time in zip(outputs, scheduler.timesteps, strict=True):
        latents = scheduler.step(output, time, latents, return_dict=False)[0]
    assert (latents - start).abs().max() < 1e-3 * backwards.path[-1].abs().max()
    assert len(backwards.path) == 8


def test_reweight_and_blend_act_on_edits_alone(editing):
    pipe, call = editing
    options = {"reweight": {"circle": 3.0}, "blend": ["circle", "circle"]}
    made = pipe(SOURCE, "a red big circle", method="refine", generator=seeded(), **options, **call).images
    stock = pipe.stock.__call__(pipe, SOURCE, generator=seeded(), **call).images
    plain = pipe(SOURCE, "a red big circle", generator=seeded(), **call).images
    assert (made[0] - stock[0]).abs().max() < 1e-4
    assert (made[1] - plain[1]).abs().max() > 1e-5


def controls_of(**options):
    """The controls that a call has, with what they were told."""
    seen = []
    pipe = PromptEditPipeline.from_pipe(stock_of("sd"))
    with mock.patch.object(Control, "on", lambda control, _: seen.append(control) or nullcontext()):
        pipe("a red circle", "a blue circle", **options, **CALL | {"num_inference_steps": 1})
    return seen


def test_factors_act_while_edits_follow_the_picture():
    weights = {"blue": 2.0, "circle": 0.5, (1,): 3.0}
    _, *found = controls_of(reweight=weights, cross=0.6, words={"blue": (0.1, 0.3)})
    assert [(control.window, control.weights) for control in found] == [
        ((0.1, 0.3), {"blue": 2.0}),
        ((0.0, 0.6), {"circle": 0.5, (1,): 3.0}),
    ]
    assert all(control.prompts == {1} for control in found)


def test_words_and_sizes_that_are_left_alone():
    blend = ["circle", "circle"], ["red", "blue"]
    first, last = controls_of(max_tokens=64, blend=blend[0], subtract=blend[1], threshold=(0.4, 0.2))
    assert first.max_tokens == 64 and last.thresholds == (0.4, 0.2)
    assert (last.words, last.subtract) == tuple([[word] for word in words] for words in blend)


def test_with_a_pattern(editing):
    pipe, call = editing
    dense = pipe(SOURCE, EDIT, generator=seeded(), **call).images
    with dattn.apply(pipe, dattn.Neighborhood(5)) as handle:
        sparse = pipe(SOURCE, EDIT, generator=seeded(), **call).images
        assert handle.controls == ()
    assert not torch.equal(sparse, dense)
    assert torch.equal(pipe(SOURCE, EDIT, generator=seeded(), **call).images, dense)


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_as_custom_pipeline(name):
    folder = f"{MODELS}/shapes-{name}"
    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=module.__file__, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe).__name__ == "PromptEditPipeline" and isinstance(pipe, type(stock_of(name)))
    assert len(pipe(SOURCE, EDIT, **CALL | EXTRA.get(name, {})).images) == 2


@pytest.mark.parametrize(
    ("edits", "options", "says"),
    [
        ([], {}, "one edited prompt or more"),
        (EDIT, {"method": "swap"}, "method='swap'"),
        (EDIT, {"num_images_per_prompt": 2}, "num_images_per_prompt"),
        (EDIT, {"subtract": ["red", "blue"]}, "give both"),
        (EDIT, {"reweight": {"green": 2.0}}, "'green' is not in the prompt"),
    ],
)
def test_bad_calls(edits, options, says):
    with pytest.raises(ValueError, match=says):
        PromptEditPipeline.from_pipe(stock_of("sd"))(SOURCE, edits, **options, **CALL)


def test_schedulers_that_cannot_be_inverted():
    with pytest.raises(ValueError, match="PNDMScheduler.*DDIMScheduler.from_config"):
        Backwards(PNDMScheduler())
    with pytest.raises(ValueError, match="clip_sample=False"):
        Backwards(DDIMScheduler(clip_sample=True))
