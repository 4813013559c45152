"""Pictures of the world, their judge, and the training of the two image models (a few steps of it)."""

import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FluxPipeline, StableDiffusionPipeline

from dattn.apps.shapes import parse_caption, picture_codec, score_pictures, train_flux, train_sd
from dattn.apps.shapes.captions import COLORS
from dattn.apps.shapes.picture_text import TEXT_LENGTH, build_t5, short_tokenizer
from dattn.apps.shapes.picture_words import answers, every_caption, teach
from dattn.apps.shapes.pictures import (
    caption_of,
    draw_pictures,
    is_whole,
    judge_picture,
    sample_picture,
    whole_pictures,
)

OPPOSITE = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}


def test_the_judge_accepts_true_pictures_of_one_and_two_objects():
    scenes = [sample_picture(seed) for seed in range(150)]
    assert {len(scene.objects) for scene in scenes} == {1, 2}
    assert {scene.relation for scene in scenes} == {None, *OPPOSITE}
    assert {scene.objects[0].color for scene in scenes if len(scene.objects) == 1} == set(COLORS)
    verdicts = [judge_picture(p, caption_of(s)) for p, s in zip(draw_pictures(scenes), scenes, strict=True)]
    assert sum(v.ok for v in verdicts) >= 149


@pytest.mark.parametrize("seed", range(12))
def test_the_judge_rejects_another_colour_shape_or_position(seed):
    scene = sample_picture(seed, 2)
    caption, picture = caption_of(scene), draw_pictures([scene])[0]
    first = scene.objects[0]
    other = next(c for c in ("red", "green", "blue") if c not in {o.color for o in scene.objects})
    shape = "circle" if first.shape != "circle" else "square"
    wrong = [caption.replace(first.color, other, 1), caption.replace(first.shape, shape, 1)]
    wrong += [caption.replace(scene.relation, OPPOSITE[scene.relation])] if scene.relation else []
    assert all(not judge_picture(picture, text).ok for text in wrong)


def test_the_same_seed_draws_the_same_picture_and_captions_tell_no_motion():
    scene = sample_picture(7)
    assert scene == sample_picture(7) and caption_of(scene) != caption_of(sample_picture(8))
    assert all(o.motion is None for o in parse_caption(caption_of(scene)).objects)
    clip = scene.render(9)
    assert (clip == clip[:1]).all()


def test_whole_pictures_show_nothing_on_opposite_borders():
    scenes = whole_pictures(20)
    known = [sample_picture(seed) for seed in range(100)]
    assert scenes == [scene for scene in known if is_whole(scene)][:20] and not all(map(is_whole, known))
    for scene, picture in zip(scenes, draw_pictures(scenes), strict=True):
        for o in scene.objects:
            alone = draw_pictures([replace(scene, objects=(o,))])[0].astype(int)
            empty = draw_pictures([replace(scene, objects=())])[0].astype(int)
            seen = abs(alone - empty).max(-1) > 0
            assert (
                seen.any() and not (seen[0].any() and seen[-1].any()) and not (seen[:, 0].any() and seen[:, -1].any())
            )
        assert picture.shape == (64, 64, 3)


def test_no_picture_is_refused():
    with pytest.raises(ValueError, match=r"picture of shape \(5, 64, 64, 3\)"):
        judge_picture(np.zeros((5, 64, 64, 3), np.uint8), "a red circle")


def test_normalising_changes_latents_and_not_pictures():
    torch.manual_seed(0)
    vae = picture_codec.build()
    torch.nn.init.normal_(vae.quant_conv.bias)
    images = picture_codec.pictures(0, 4)
    with torch.no_grad():
        before = vae.decode(vae.encode(images).latent_dist.mode()).sample
        log_variance = vae.encode(images).latent_dist.logvar
        picture_codec.normalise(vae)
        posterior = vae.encode(picture_codec.pictures(picture_codec.HELD_OUT, 64)).latent_dist
        torch.testing.assert_close(vae.decode(vae.encode(images).latent_dist.mode()).sample, before, rtol=0, atol=1e-4)
        shift = vae.encode(images).latent_dist.logvar - log_variance
    latents = posterior.mode()
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-3)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), rtol=1e-3, atol=0)
    torch.testing.assert_close(shift, shift[:1, :, :1, :1].expand_as(shift), rtol=0, atol=1e-4)  # noise scales along


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Both model folders with an autoencoder of two training steps."""
    root = tmp_path_factory.mktemp("models")
    patch = pytest.MonkeyPatch()
    patch.setattr(picture_codec, "FOLDERS", (root / "shapes-sd", root / "shapes-flux"))
    run(patch, picture_codec)
    run(patch, picture_codec, "--resume")
    yield root
    patch.undo()


def run(patch, script, *words):
    patch.setattr(sys, "argv", ["train", "--steps", "2", "--threads", "1", *map(str, words)])
    script.main()


@pytest.mark.parametrize("name", ["shapes-sd", "shapes-flux"])
def test_a_few_steps_leave_a_stock_pipeline_that_goes_on(folders, name, monkeypatch):
    script = {"shapes-sd": train_sd, "shapes-flux": train_flux}[name]
    monkeypatch.setattr(script, "teach", partial(teach, steps=2))
    folder, cache = folders / name, folders / "cache"
    words = ("--out", folder, "--cache", cache, "--pictures", 32, "--batch", 2)
    run(monkeypatch, script, *words)
    first = picture(folder)
    assert first.shape == (64, 64, 3) and np.isfinite(first).all()
    run(monkeypatch, script, *words, "--resume")
    assert not np.array_equal(picture(folder), first)
    assert AutoencoderKL.from_pretrained(folder / "vae").config.scaling_factor == 1
    options = SimpleNamespace(model=folder, captions=3, first=0, steps=2, batch=2, seed=0, sheet=None, threads=1)
    assert all(0 <= score.clips <= 1 for score in score_pictures.run(options).values())


def picture(folder):
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe) in (StableDiffusionPipeline, FluxPipeline)
    more = {"max_sequence_length": TEXT_LENGTH} if isinstance(pipe, FluxPipeline) else {}
    generator = torch.Generator().manual_seed(0)
    size = {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "np"}
    return pipe("a red circle", generator=generator, **size, **more).images[0]


def test_what_words_are_to_tell():
    """Own colour, shape and place, other colour and shape; 0 is nothing."""
    wanted = answers(parse_caption("a red circle above a blue square"), 10)
    assert wanted[:3].tolist() == [[1, 1, 1, 3, 2]] * 3
    assert wanted[3:].tolist() == [[3, 2, 2, 1, 1]] * 7
    assert answers(parse_caption("a white triangle"), 5).tolist() == [[6, 3, 0, 0, 0]] * 5
    assert len({str(caption) for caption in every_caption()}) == len(every_caption()) == 18 + 270 * 5


def test_encoders_are_taught_and_then_kept():
    torch.manual_seed(0)
    tokenizer = short_tokenizer()
    encoder = build_t5(tokenizer)
    first, then = (teach(encoder, tokenizer, steps=steps, batch=32) for steps in (1, 60))
    assert then > first + 0.2
    assert not any(p.requires_grad for p in encoder.parameters())
