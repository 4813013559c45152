"""MultiPromptVideoPipeline: a plan, segments that agree where they meet, and a stock pipeline underneath."""

from itertools import pairwise

import pytest
import torch
from diffusers import DiffusionPipeline, WanPipeline
from hypothesis import given
from hypothesis import strategies as st

import dattn
import dattn.pipelines.multi_prompt_video as module
from dattn.control.stage import Stage
from dattn.pipelines import MultiPromptVideoPipeline
from dattn.pipelines.segments import Joined, plan, triangle

from .tiny import MODELS, cogvideox_pipeline

PROMPTS = ["a red circle moving left", "a red circle moving up"]
CALL = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2, "output_type": "pt"}


@pytest.fixture(scope="module")
def wan():
    pipe = WanPipeline.from_pretrained(f"{MODELS}/shapes-wan")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def video(pipe, prompt, seed=0, **call):
    return pipe(prompt, generator=torch.Generator().manual_seed(seed), **{**CALL, **call}).frames


def test_a_plan_by_hand():
    first, second, third, fourth = plan(2, tile=13, overlap=9, transitions=2)
    assert [s.frames for s in (first, second, third, fourth)] == [(0, 13), (4, 17), (8, 21), (12, 25)]
    assert [(s.prompt, s.toward) for s in (first, second, third, fourth)] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [s.weight for s in (first, fourth)] == [0, 0]
    assert second.weight == pytest.approx(1 / 3) == third.weight


@given(st.integers(1, 5), st.integers(2, 14), st.data(), st.integers(0, 3), st.integers(0, 2))
def test_plans(prompts, tile, data, transitions, hold):
    overlap = data.draw(st.integers(1, tile - 1))
    segments = plan(prompts, tile, overlap, transitions, hold)
    assert len(segments) == prompts + transitions * (prompts - 1) + hold * max(0, prompts - 2)
    assert segments[-1].frames[1] == tile + (len(segments) - 1) * (tile - overlap)
    assert {s.prompt for s in segments if not s.weight} == set(range(prompts))
    assert all(0 <= s.weight <= 0.5 and abs(s.prompt - s.toward) == (s.weight > 0) for s in segments)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=5), st.integers(0, 2))
def test_prompts_last_as_long_as_each_is_held(hold, transitions):
    segments = plan(len(hold), 5, 2, transitions, hold)
    for number, more in enumerate(hold):
        own = [s.frames for s in segments if s.prompt == number and not s.weight]
        assert len(own) == 1 + more and own[-1][0] - own[0][0] == 3 * more  # one after the other, none in between


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((0, 5, 2), "prompt="),
        ((2, 5, 5), "overlap=5"),
        ((2, 5, 0), "overlap=0"),
        ((2, 5, 2, -1), "transitions=-1"),
        ((2, 5, 2, 1, -1), "hold=-1"),
        ((2, 5, 2, 1, [0, -1]), r"hold=\[0, -1\]"),
        ((2, 5, 2, 1, [1]), "1 numbers for 2 prompts; give one for each"),
    ],
)
def test_plans_that_are_none(arguments, says):
    with pytest.raises(ValueError, match=says):
        plan(*arguments)


def joined(frames_first, samples=4, steps=3):
    control = Joined(plan(2, tile=5, overlap=3, transitions=2))
    control._stage = Stage(lambda: None, frames_first=frames_first)
    control._stage.steps, control._stage.batch, control._stage.samples = steps, samples, samples
    return control


@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("frames_first", [False, True])
def test_outputs_are_blended_where_segments_meet(frames_first, branches):
    control = joined(frames_first)
    torch.manual_seed(0)
    outputs = torch.randn(4 * branches, 2, 5, 3, 4, dtype=torch.float64)  # channels, frames
    given = outputs.transpose(1, 2) if frames_first else outputs
    found = control.guided(given, lambda: given)
    found = found.transpose(1, 2) if frames_first else found
    weights = [min(x, 2 - x) for x in ((i + 0.5) * 2 / 5 for i in range(5))]
    assert triangle(5).tolist() == pytest.approx(weights)
    for branch in range(branches):
        for frame in range(5 + 3 * 2):
            inside = [(s, frame - 2 * s) for s in range(4) if 0 <= frame - 2 * s < 5]
            total = sum(weights[i] for _, i in inside)
            mean = sum(weights[i] / total * outputs[4 * branch + s, :, i] for s, i in inside)
            assert all((found[4 * branch + s, :, i] - mean).abs().max() < 1e-6 for s, i in inside)


@pytest.mark.parametrize("frames_first", [False, True])
def test_noise_agrees_and_the_end_is_one_video(frames_first):
    control = joined(frames_first)
    torch.manual_seed(0)
    noise = torch.randn(4, 5, 2, 3, 4) if frames_first else torch.randn(4, 2, 5, 3, 4)
    ready = control.prepared(noise)
    axis = 1 if frames_first else 2
    assert torch.equal(ready[0], noise[0])
    for one, other in pairwise(ready):
        assert torch.equal(one.narrow(axis - 1, 2, 3), other.narrow(axis - 1, 0, 3))
    assert torch.equal(control.stepped(ready), ready)
    control.stage.step = control.stage.steps - 1
    whole = control.stepped(ready)
    assert whole.shape[0] == 1 and whole.shape[axis] == 11
    assert torch.equal(whole[0].narrow(axis - 1, 6, 5), ready[3])
    with pytest.raises(ValueError, match="3 samples for 4 segments"):
        control.prepared(noise[:3])


def test_one_prompt_is_the_stock_video(wan):
    multi = MultiPromptVideoPipeline.from_pipe(wan)
    assert isinstance(multi, WanPipeline) and multi.stock is WanPipeline
    assert torch.equal(video(multi, PROMPTS[:1]), video(wan, PROMPTS[0]))


def test_a_video_of_two_prompts(wan):
    multi = MultiPromptVideoPipeline.from_pipe(wan)
    made = video(multi, PROMPTS, overlap=2)
    latent = multi.timeline(2, 5, overlap=2)[-1].frames[1]
    assert made.shape == (1, (latent - 1) * multi.vae_scale_factor_temporal + 1, 3, 32, 32)
    assert not torch.equal(made, video(multi, PROMPTS[:1] * 2, overlap=2))
    unshared = video(multi, PROMPTS, overlap=2, share=0.0)
    with_subjects = video(multi, PROMPTS, overlap=2, share=1.0, subjects=["red circle"] * 2)
    assert not torch.equal(made, unshared) and not torch.equal(with_subjects, unshared)
    assert not torch.equal(with_subjects, video(multi, PROMPTS, overlap=2, share=1.0))
    assert not any("_dattn" in name for name in vars(wan.transformer))
    assert torch.equal(video(wan, PROMPTS[0]), video(multi, PROMPTS[:1]))


def test_without_transitions_or_blending_segments_are_stock_ones(wan):
    """Far from where they meet nothing but the noise that they share tells segments from stock videos."""
    multi = MultiPromptVideoPipeline.from_pipe(wan)
    latents = multi(
        PROMPTS, overlap=1, transitions=0, share=0.0, generator=torch.Generator().manual_seed(3),
        **{**CALL, "output_type": "latent", "num_inference_steps": 1},
    ).frames  # fmt: skip
    noise = torch.randn(2, *latents.shape[1:2], 3, *latents.shape[3:], generator=torch.Generator().manual_seed(3))
    alone = wan(PROMPTS[0], latents=noise[:1], **{**CALL, "output_type": "latent", "num_inference_steps": 1}).frames
    assert (latents[:, :, :2] - alone[:, :, :2]).abs().max() < 1e-4
    assert (latents[:, :, 2] - alone[:, :, 2]).abs().max() > 1e-3  # blended


def test_patterns_stay_applied(wan):
    multi = MultiPromptVideoPipeline.from_pipe(wan)
    dense = video(multi, PROMPTS, overlap=2)
    with dattn.apply(multi, dattn.Neighborhood((1, 3, 3))) as handle:
        sparse = video(multi, PROMPTS, overlap=2)
        assert handle.controls == () and "Neighborhood" in str(handle.report())
    assert not torch.equal(sparse, dense)
    assert torch.equal(video(multi, PROMPTS, overlap=2), dense)


def test_patterns_of_the_stock_pipeline_stay_applied(wan):
    """What was applied before ``from_pipe`` stays; prompts are the new pipeline's all the same."""
    multi = MultiPromptVideoPipeline.from_pipe(wan)
    pattern = dattn.Neighborhood((1, 3, 3))
    with dattn.apply(multi, pattern):
        wanted = video(multi, PROMPTS, overlap=2, subjects=["red circle"] * 2, share=1.0)
    with dattn.apply(wan, pattern) as handle:
        plain = video(wan, PROMPTS[0])
        assert torch.equal(video(multi, PROMPTS, overlap=2, subjects=["red circle"] * 2, share=1.0), wanted)
        assert handle.controls == () and torch.equal(video(wan, PROMPTS[0]), plain)


@pytest.mark.parametrize("frames", [5, 6])
def test_any_number_of_frames(wan, frames):
    multi = MultiPromptVideoPipeline.from_pipe(wan)
    assert (
        len(video(multi, PROMPTS, num_frames=frames, transitions=0)[0])
        == 2 * multi.timeline(2, frames, transitions=0)[-1].frames[1] - 1
    )


def test_an_error_in_the_middle_leaves_nothing(wan):
    multi = MultiPromptVideoPipeline.from_pipe(wan)

    def fail(pipe, step, time, kwargs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        video(multi, PROMPTS, callback_on_step_end=fail)
    assert torch.equal(video(multi, PROMPTS[:1]), video(wan, PROMPTS[0]))


def test_as_custom_pipeline():
    pipe = DiffusionPipeline.from_pretrained(
        f"{MODELS}/shapes-wan", custom_pipeline=module.__file__, trust_remote_code=True
    )
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe).__name__ == "MultiPromptVideoPipeline" and isinstance(pipe, WanPipeline)
    assert video(pipe, PROMPTS, overlap=1, transitions=0).shape[1] == 9


@pytest.mark.parametrize("options", [{}, {"subjects": ["red circle", "red"], "map_layers": [0, 1]}])
def test_cogvideox(options):
    """Its latents have frames first, its guidance is one batch, and its scheduler adds noise."""
    stock = cogvideox_pipeline()
    multi = MultiPromptVideoPipeline.from_pipe(stock)
    for pipe in (stock, multi):
        pipe.set_progress_bar_config(disable=True)
    call = {"height": 16, "width": 24, "num_frames": 9}
    assert torch.equal(video(multi, PROMPTS[:1], **call), video(stock, PROMPTS[0], **call))
    plain = video(multi, PROMPTS, **call, overlap=3, share=0.0)
    made = video(multi, PROMPTS, **call, overlap=3, share=1.0, share_layers=[1, 2], **options)
    assert made.shape[1] == 2 * multi.timeline(2, 9, 3)[-1].frames[1] - 1
    assert made.isfinite().all() and not torch.equal(made, plain)
    latent = multi(PROMPTS, **{**CALL, **call, "output_type": "latent"}, overlap=3).frames
    assert latent.shape[1] == multi.timeline(2, 9, 3)[-1].frames[1]


@pytest.mark.parametrize(
    ("prompt", "options", "says"),
    [
        ("a red circle", {}, "give a list of prompts"),
        (PROMPTS, {"subjects": ["circle"]}, "subjects for 1 prompts"),
        (PROMPTS, {"num_videos_per_prompt": 2}, "num_videos_per_prompt"),
        (PROMPTS, {"overlap": 9}, "overlap=9"),
    ],
)
def test_bad_calls(wan, prompt, options, says):
    with pytest.raises(ValueError, match=says):
        video(MultiPromptVideoPipeline.from_pipe(wan), prompt, **options)


def test_other_models_are_refused(wan):
    parts = {**wan.components, "transformer": torch.nn.Linear(1, 1)}
    with pytest.raises(ValueError, match="Linear.*CogVideoXPipeline, WanPipeline"):
        MultiPromptVideoPipeline(**parts)
