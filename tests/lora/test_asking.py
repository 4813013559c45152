"""How pipelines ask their models is found out by listening, in families that differ in all of it."""

from copy import deepcopy
from functools import cache

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from dattn.apps.lora.asking import listen, told
from dattn.apps.lora.latents import latents_of
from dattn.apps.lora.objective import Noise, objective_of
from dattn.apps.shapes.pictures import draw_pictures, sample_picture
from dattn.apps.shapes.world import sample_scene
from tests.pipelines.tiny import MODELS, cogvideox_pipeline, sd3_pipeline, sdxl_pipeline

MAKERS = {
    **{
        name: lambda n=name: DiffusionPipeline.from_pretrained(f"{MODELS}/shapes-{n}") for name in ("wan", "sd", "flux")
    },
    "sdxl": sdxl_pipeline,
    "sd3": sd3_pipeline,
    "cogvideox": cogvideox_pipeline,
}
SIZES = {"wan": (9, 64, 64), "sd": (1, 64, 64), "flux": (1, 64, 64), "cogvideox": (9, 16, 24)}
CALLS = {"flux": {"max_sequence_length": 16}}


@cache
def subject(name):
    pipe = MAKERS[name]()
    pipe.set_progress_bar_config(disable=True)
    return pipe, getattr(pipe, "unet", None) or pipe.transformer


def size_of(name):
    return SIZES.get(name, (1, 32, 32))


@pytest.mark.parametrize("name", MAKERS)
def test_the_model_is_asked_as_the_pipeline_asks(name):
    """The arguments for a prompt, latents and time are those that the pipeline would give, of the same batch."""
    pipe, model = subject(name)
    size, call = size_of(name), CALLS.get(name, {})
    manner = listen(pipe, model, size, call)
    heard = {p: told(pipe, model, manner, p, size, call) for p in ("a red circle", "a blue square")}
    assert "forward" not in vars(model) and "step" not in vars(pipe.scheduler)
    seen = []
    hook = model.register_forward_pre_hook(lambda m, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    takes = {"num_frames": size[0]} if name in ("wan", "cogvideox") else {}
    pipe(
        [*heard],
        height=size[1],
        width=size[2],
        guidance_scale=1.0,
        num_inference_steps=1,
        output_type="latent",
        **takes,
        **call,
    )
    hook.remove()
    args, kwargs = seen[0]
    names = list(manner.arguments(torch.zeros(1, *manner.shape), torch.zeros(1), heard["a red circle"]))
    latents = args[0] if args else kwargs[manner.latents]
    time = pipe.scheduler.timesteps[:1].repeat(2).float()
    given = manner.arguments(latents, time, {k: torch.cat([one[k] for one in heard.values()]) for k in manner.batched})
    assert set(kwargs) - {"return_dict"} <= set(names)
    with torch.no_grad():
        stock = model(*args, **kwargs)[0]
        assert (manner.prediction(model(**given, return_dict=False)) - stock).abs().max() < 1e-5 * stock.abs().max()


@pytest.mark.parametrize("name", ["wan", "sd", "flux"])
def test_demo_models_know_what_they_are_trained_for(name):
    """Of latents, noise and captions of their own world they predict most; of a wrong caption less."""
    pipe, model = subject(name)
    size, call = size_of(name), CALLS.get(name, {})
    manner, objective = listen(pipe, model, size, call), objective_of(pipe.scheduler)
    errors, wrong = [], []
    for seed in range(4):
        scene = sample_scene(seed, 1) if name == "wan" else sample_picture(seed, 1)
        pixels = scene.render(size[0], 64) if name == "wan" else draw_pictures([scene], 64)
        clean = latents_of(pipe, model, torch.from_numpy(np.array(pixels)).float() / 127.5 - 1, manner)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
        color = scene.objects[0].color
        own = str(scene.objects[0].wanted()).removesuffix(" standing still" if name != "wan" else "")
        other = own.replace(color, "white" if color != "white" else "red")
        for caption, kept in ((own, errors), (other, wrong)):
            latents, times, target = objective.noisy(clean, noise, torch.tensor([0.8]))
            arguments = manner.arguments(latents, times, told(pipe, model, manner, caption, size, call))
            with torch.no_grad():
                found = manner.prediction(model(**arguments, return_dict=False))
            kept.append(float((found - target).square().mean() / target.square().mean()))
    assert np.mean(errors) < 0.35 and np.mean(errors) < np.mean(wrong)


@pytest.mark.parametrize("name", ["wan", "sd", "flux"])
def test_latents_are_what_the_pipeline_decodes(name):
    """A pipeline whose steps leave latents as they are gives the clip back."""
    pipe, model = subject(name)
    size, call = size_of(name), CALLS.get(name, {})
    scene = sample_picture(3, 1)
    pixels = torch.from_numpy(np.array(scene.render(size[0], 64))).float() / 127.5 - 1
    latents = latents_of(pipe, model, pixels, listen(pipe, model, size, call))
    step = pipe.scheduler.step
    takes = {"num_frames": size[0]} if name == "wan" else {}
    try:
        pipe.scheduler.step = lambda output, time, sample, *args, **kwargs: (sample,)
        made = pipe(
            "",
            latents=latents,
            height=64,
            width=64,
            num_inference_steps=1,
            output_type="np",
            return_dict=False,
            **takes,
            **call,
        )[0]
    finally:
        pipe.scheduler.step = step
        vars(pipe.scheduler).pop("step")
    back = np.asarray(made)[0].reshape(pixels.shape) * 2 - 1
    assert np.square(back - pixels.numpy()).mean() < 0.01 * float(pixels.var())


@pytest.mark.parametrize(
    ("scheduler", "kind"),
    [
        (FlowMatchEulerDiscreteScheduler(shift=3.0), "flow"),
        (UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0), "flow"),
        (DDIMScheduler(), "epsilon"),
        (EulerDiscreteScheduler(prediction_type="v_prediction"), "v_prediction"),
        (DDIMScheduler(prediction_type="sample"), "sample"),
    ],
)
def test_objectives(scheduler, kind):
    objective = objective_of(scheduler)
    assert objective.kind == kind and objective.shift == (3.0 if kind == "flow" else 1.0)
    clean, noise = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    levels = torch.tensor([0.1, 0.9])
    latents, times, target = objective.noisy(clean, noise, levels)
    for i, level in enumerate(levels.tolist()):
        if kind == "flow":
            assert float(times[i]) == pytest.approx(1000 * level)
            assert (latents[i] - (1 - level) * clean[i] - level * noise[i]).abs().max() < 1e-6
            assert (target[i] - noise[i] + clean[i]).abs().max() < 1e-12
            continue
        assert abs(float(times[i]) - 1000 * level) < 1
        a = float(scheduler.alphas_cumprod[int(times[i])])
        assert (latents[i] - a**0.5 * clean[i] - (1 - a) ** 0.5 * noise[i]).abs().max() < 1e-6
        wanted = {
            "epsilon": noise[i],
            "sample": clean[i],
            "v_prediction": a**0.5 * noise[i] - (1 - a) ** 0.5 * clean[i],
        }
        assert (target[i] - wanted[kind]).abs().max() < 1e-6


@pytest.mark.parametrize("scheme", ["none", "logit_normal", "mode"])
def test_levels_are_drawn_and_shifted(scheme):
    plain, shifted = (objective_of(FlowMatchEulerDiscreteScheduler(shift=s)) for s in (1.0, 4.0))
    one, other = (o.levels(4000, Noise(scheme), torch.Generator().manual_seed(0)) for o in (plain, shifted))
    assert ((one > 0) & (one < 1)).all() and torch.allclose(other, 4 * one / (1 + 3 * one))
    assert one.mean().item() == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("side", [32, 64, 128])
def test_noise_levels_are_shifted_as_the_pipeline_shifts_them(kind, side):
    """Of Flux, by the number of its tokens: levels that are even before are the scheduler's own."""
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    pipe, model = subject("flux")
    of_size = {"base_image_seq_len": 64, "max_image_seq_len": 1024, "base_shift": 0.4, "max_shift": 1.2}
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind, **of_size)
    own = type(pipe)(**{**pipe.components, "scheduler": scheduler})
    own.set_progress_bar_config(disable=True)
    manner = listen(own, model, (1, side, side), CALLS["flux"])
    assert "set_timesteps" not in vars(scheduler)
    even = np.linspace(1, 1 / 6, 6)
    scheduler.set_timesteps(sigmas=even, mu=calculate_shift(manner.shape[0], *of_size.values()))
    objective = objective_of(scheduler).shifted(manner.shift)
    found = objective.shift * even / (1 + (objective.shift - 1) * even)
    assert np.abs(found - scheduler.sigmas[:-1].numpy()).max() < 1e-6
    both = objective, objective_of(scheduler)
    drawn, plain = (one.levels(50, Noise(), torch.Generator().manual_seed(0)) for one in both)
    assert torch.allclose(drawn, objective.shift * plain / (1 + (objective.shift - 1) * plain))
    assert objective.done(scheduler.sigmas[1:2]) == pytest.approx(1 - even[1], abs=1e-5)


def test_shifts_of_the_config_stay():
    pipe, model = subject("flux")
    assert listen(pipe, model, (1, 64, 64), CALLS["flux"]).shift is None
    objective = objective_of(pipe.scheduler)
    assert objective.shifted(None) is objective and objective.shifted(7.0).shift == 7.0


def test_pipelines_that_ask_for_more_are_refused():
    pipe, model = subject("wan")

    class Doubling(type(pipe)):
        def __call__(self, *args, **kwargs):
            step = self.scheduler.step
            self.scheduler.step = lambda output, *others, **options: step(2 * output, *others, **options)
            return super().__call__(*args, **kwargs)

    class Failing(type(pipe)):
        def __call__(self, *args, **kwargs):
            return super().__call__(*args, **{**kwargs, "attention_kwargs": 3, "latents": "none"})

    for kind, says in ((Doubling, "makes something else"), (Failing, "cannot be listened to")):
        other = kind(**pipe.components)
        other.scheduler = FlowMatchEulerDiscreteScheduler()
        other.set_progress_bar_config(disable=True)
        with pytest.raises(ValueError, match=says):
            listen(other, model, (9, 64, 64), {})


@pytest.mark.parametrize("scheduler", [PNDMScheduler, HeunDiscreteScheduler, EulerDiscreteScheduler])
def test_schedulers_that_ask_more_often(scheduler):
    pipe, model = subject("sd")
    own = type(pipe)(
        **{**pipe.components, "scheduler": scheduler.from_config(pipe.scheduler.config)}, requires_safety_checker=False
    )
    own.set_progress_bar_config(disable=True)
    manner = listen(own, model, (1, 64, 64), {})
    assert (manner.factor, manner.offset, manner.sign) == (1.0, 0.0, 1)


def test_times_that_were_rounded_on_the_way():
    pipe, _ = subject("flux")
    half = type(pipe)(**pipe.components)
    half.set_progress_bar_config(disable=True)
    try:
        half.to(torch.bfloat16)
        manner = listen(half, half.transformer, (1, 64, 64), {"max_sequence_length": 16})
    finally:
        half.to(torch.float32)
    assert (manner.factor, manner.offset) == (0.001, 0.0)


def test_two_models_that_share_the_noise_levels():
    pipe, model = subject("wan")
    both = type(pipe)(**{**pipe.components, "transformer_2": deepcopy(model)}, boundary_ratio=0.9)
    both.set_progress_bar_config(disable=True)
    for one in (both.transformer, both.transformer_2):
        manner = listen(both, one, (9, 64, 64), {})
        assert (manner.factor, manner.offset, manner.shape) == (1.0, 0.0, (8, 5, 8, 8))
        assert told(both, one, manner, "a red circle", (9, 64, 64), {})["encoder_hidden_states"].shape[1] == 512
    high = objective_of(both.scheduler, (0.9, 1.0)).levels(50, Noise(), torch.Generator().manual_seed(0))
    assert len(high) == 50 and high.min() >= 0.9


def test_times_that_run_backwards_are_refused():
    with pytest.raises(ValueError, match="invert_sigmas"):
        objective_of(FlowMatchEulerDiscreteScheduler(invert_sigmas=True))
