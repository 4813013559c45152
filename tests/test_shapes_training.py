"""Training the shapes model: the shortcuts that it takes compute what the stock classes compute."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dattn.apps.shapes import judge, sample_scene
from dattn.apps.shapes.codec import decode, encode, psnr, reconstruct, to_clips, to_video

MODEL = Path(__file__).parents[1] / "assets" / "models" / "shapes-wan"
CAPTIONS = ["a red circle moving right", "", "a blue square above a green triangle, both moving left"]
needs_model = pytest.mark.skipif(not (MODEL / "model_index.json").exists(), reason="assets/models/shapes-wan is absent")


@pytest.fixture(scope="module")
def vae():
    from dattn.apps.shapes.train_vae import build

    torch.manual_seed(0)
    return build().eval()


@pytest.fixture(scope="module")
def model():
    from dattn.apps.shapes.text import build_tokenizer
    from dattn.apps.shapes.train_wan import build

    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    denoiser = build(tokenizer)
    torch.nn.init.normal_(denoiser.transformer.proj_out.weight)
    return denoiser.eval(), tokenizer


@torch.no_grad()
def test_two_chunks_equal_the_stock_loop(vae):
    video = torch.randn(2, 3, 9, 16, 16)
    moments = encode(vae, video)
    stock = vae.encode(video).latent_dist
    torch.testing.assert_close(moments, torch.cat([stock.mean, stock.logvar], 1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        decode(vae, stock.mean).clamp(-1, 1), vae.decode(stock.mean).sample, atol=1e-5, rtol=1e-4
    )


@torch.no_grad()
def test_the_latents_of_a_prefix_are_the_prefix_of_the_latents(vae):
    video = torch.randn(1, 3, 13, 16, 16)
    torch.testing.assert_close(encode(vae, video)[:, :, :3], encode(vae, video[:, :, :5]), atol=1e-5, rtol=1e-4)


def test_clips_survive_the_change_of_layout():
    clips = sample_scene(0).render(2, 16)[None]
    assert np.array_equal(to_clips(to_video(clips)), clips)


def test_folded_padding_and_fast_attention_equal_the_pipeline(model):
    from diffusers import WanPipeline

    from dattn.apps.shapes.fast_attention import FastAttention
    from dattn.apps.shapes.text import encode_captions

    denoiser, tokenizer = model
    pipe = WanPipeline(tokenizer, denoiser.text_encoder, None, None, denoiser.transformer)
    with torch.no_grad():
        full, _ = pipe.encode_prompt(CAPTIONS, do_classifier_free_guidance=False, max_sequence_length=512)
        states, bias = encode_captions(tokenizer, denoiser.text_encoder, CAPTIONS)
        latents, times = torch.randn(3, 8, 3, 4, 4), torch.tensor([10.0, 500.0, 990.0])
        stock = denoiser.transformer(latents, times, full).sample
        before = dict(denoiser.transformer.attn_processors)
        fast = FastAttention()
        fast.bias = bias
        denoiser.transformer.set_attn_processor(fast)
        ours = denoiser.transformer(latents, times, states).sample
        denoiser.transformer.set_attn_processor(before)
    assert states.shape[1] < 20 and full.shape[1] == 512
    torch.testing.assert_close(ours, stock, atol=1e-4, rtol=1e-4)


def test_every_word_of_the_world_has_a_token(model):
    tokenizer = model[1]
    for seed in range(200):
        assert tokenizer.unk_token_id not in tokenizer(sample_scene(seed).caption()).input_ids
    assert tokenizer("").input_ids == [tokenizer.eos_token_id]


def test_a_run_needs_an_end():
    from dattn.apps.shapes.training import Clock

    with pytest.raises(ValueError, match="--minutes or --steps"):
        Clock()
    clock = Clock(steps=4)
    rates = []
    while clock.done < 1:
        rates.append(clock.rate(warmup=2))
        clock.tick()
    assert len(rates) == 4 and rates[0] < rates[1] > rates[2] > rates[3] > 0


def test_averaged_weights_follow():
    from dattn.apps.shapes.training import Ema

    module = torch.nn.Linear(2, 2)
    ema = Ema(module, 0.9)
    with torch.no_grad():
        module.weight += 1
    for _ in range(200):
        ema.update(module)
    torch.testing.assert_close(ema.module.weight, module.weight)


def test_training_writes_a_pipeline_that_resumes(tmp_path):
    from types import SimpleNamespace

    from dattn.apps.shapes import train_vae, train_wan

    train_vae.build().half().save_pretrained(tmp_path / "vae")
    args = dict(
        out=tmp_path, cache=tmp_path, long=1, short=2, minutes=9, steps=2, lr=1e-3, skip=0.0, report=9, budget=3
    )
    threads = torch.get_num_threads()
    for resume in (False, True):
        train_wan.train(SimpleNamespace(**args, threads=threads, seed=0, resume=resume))
    assert {p.name for p in tmp_path.iterdir()} >= {"transformer", "text_encoder", "tokenizer", "scheduler", "vae"}


@needs_model
def test_the_judge_believes_the_round_trip():
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan.from_pretrained(MODEL / "vae")
    scenes = [sample_scene((5, seed), 1) for seed in range(4)]
    clips = np.stack([scene.render(13) for scene in scenes])
    back = reconstruct(vae, clips)
    assert psnr(clips, back).mean() > 29
    assert all(judge(clip, scene.caption()).ok for clip, scene in zip(back, scenes, strict=True))


@needs_model
def test_the_folder_is_small_and_stock():
    files = [f for f in MODEL.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 12e6
    assert not any("dattn" in f.read_text() for f in files if f.suffix == ".json")


@pytest.mark.slow
@needs_model
def test_the_model_draws_what_captions_say():
    from diffusers import WanPipeline

    from dattn.apps.shapes.score import Score, fresh_captions, generate

    pipe = WanPipeline.from_pretrained(MODEL)
    captions = fresh_captions(24)
    clips = [clip for i in range(0, 24, 8) for clip in generate(pipe, captions[i : i + 8], seed=i)]
    score = Score.of([judge(clip, caption) for clip, caption in zip(clips, captions, strict=True)])
    assert score.clips >= 0.9, score


def test_muon_takes_the_steps_that_torch_takes_within_its_short_precision():
    from dattn.apps.shapes.muon import Muon

    torch.manual_seed(0)
    shapes = [(24, 40), (40, 24), (16, 16)]
    starts = [torch.randn(shape) for shape in shapes]
    ours, theirs = ([torch.nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    steppers = [
        Muon(ours, lr=0.1, weight_decay=0.02),
        torch.optim.Muon(theirs, lr=0.1, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(4):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for stepper in steppers:
            stepper.step()
    for one, other, start in zip(ours, theirs, starts, strict=True):
        moved = (other - start).norm()
        assert (one - other).norm() < 0.02 * moved < moved


def test_muon_refuses_what_is_no_matrix():
    from dattn.apps.shapes.muon import Muon

    with pytest.raises(ValueError, match=r"shape \(3,\).*AdamW"):
        Muon([torch.nn.Parameter(torch.zeros(3))], lr=0.1)


def test_orthogonal_singular_values_are_about_one():
    from dattn.apps.shapes.muon import orthogonal

    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(20, 50)))
    assert values.min() > 0.6 and values.max() < 1.3


def test_a_layout_names_the_object_at_every_place():
    from dattn.apps.shapes.captions import COLORS, SHAPES
    from dattn.apps.shapes.layout import layout
    from dattn.apps.shapes.pictures import sample_picture

    scene = sample_picture(3, 2)
    places = layout(scene, 32)
    for o in scene.objects:
        named = 1 + COLORS.index(o.color) * len(SHAPES) + SHAPES.index(o.shape)
        assert places[int(o.y * 32) % 32, int(o.x * 32) % 32] == named
        assert 0.02 < (places == named).mean() < 0.15
    assert set(np.unique(places)) - {0} == {
        1 + COLORS.index(o.color) * len(SHAPES) + SHAPES.index(o.shape) for o in scene.objects
    }


def test_a_readout_learns_what_its_block_says():
    from dattn.apps.shapes.layout import Readout

    torch.manual_seed(0)
    block = torch.nn.Linear(5, 8)
    readout = Readout(block, 8, lambda returned: returned)
    places = torch.randint(0, 5, (2, 4, 4), dtype=torch.uint8)
    told = torch.nn.functional.one_hot(places.long(), 5).flatten(1, 2).float()
    stepper = torch.optim.Adam([*block.parameters(), *readout.parameters()], lr=0.1)
    for _ in range(150):
        block(told)
        loss = readout.loss(places)
        loss.backward()
        stepper.step()
        stepper.zero_grad()
    assert loss < 0.05
