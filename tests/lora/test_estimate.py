"""What a run would take is found out without running it."""

import re
from copy import deepcopy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline

from dattn.apps.cli import main
from dattn.apps.lora.estimate import _preparation
from dattn.apps.lora.live import peak
from tests.pipelines.tiny import MODELS


def empty(*shape):
    return torch.empty(shape, device="meta")


def test_what_lives_at_once_is_counted():
    """By hand: float32 tensors of 1000 numbers, of which views make no more and deleted ones are gone."""

    def steps():
        a = x + 1
        b = a * 2
        c = b.view(10, 100).transpose(0, 1)
        del a
        d = c + 1
        del b, c
        d.mul_(2)
        return d + d

    x = empty(1000)
    assert peak(steps) == 8000
    assert peak(lambda: [x + i for i in range(5)]) == 20000
    assert peak(lambda: x[:10].view(2, 5)) == 4000  # of a view the whole


def test_attention_has_no_map():
    q, v = empty(1, 1, 500, 8), empty(1, 1, 500, 4)
    assert peak(lambda: F.scaled_dot_product_attention(q, q, v)) == 4 * 500 * 4
    assert peak(lambda: F.scaled_dot_product_attention(query=q, key=q, value=v)) == 4 * 500 * 4


def test_preparing_takes_the_pipeline_and_what_its_autoencoder_makes():
    pipe = DiffusionPipeline.from_pretrained(f"{MODELS}/shapes-flux")
    parts = pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2
    weights = sum(2 * p.numel() for part in parts for p in part.parameters())
    own = sum(2 * p.numel() for p in pipe.vae.parameters())
    vae = deepcopy(pipe.vae).to("meta")
    for side in (64, 128):
        clip = empty(1, 3, side, side)
        made = peak(partial(vae.encode, clip)) + clip.nbytes
        assert _preparation(pipe, (1, side, side), False) == weights + own + made


def test_the_larger_is_the_need(pictures, tmp_path, capsys):
    words = ["train-lora", "--model", "shapes-wan", "--data", str(pictures), "--buckets", "33x64x64", "--estimate"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    need, before, training = map(float, re.search(
        r"memory \(estimate, bf16\): ([\d.]+) GiB, the larger of ([\d.]+) in preparation and ([\d.]+) in training", said
    ).groups())  # fmt: skip
    assert need == max(before, training) > 0


def test_patterns_of_steps_count_with_the_steps_that_are_trained(capsys, pictures, tmp_path):
    """Half of the steps dense: half of what the pattern saves; all of it where the other half is trained alone."""

    def attention(*more):
        words = ["train-lora", "--model", "shapes-wan", "--data", str(pictures), "--buckets", "129x64x64", "--estimate"]
        assert main([*words, "--output", str(tmp_path / "out"), *more]) == 0
        dense, sparse = re.search(r"dense ([\d.e+]+) .* ([\d.e+]+): at most", capsys.readouterr().out).groups()
        return float(dense) - float(sparse)

    pattern = "Radial(block_size=64)"
    steps = f"PerStep({{0: Dense(), 0.5: {pattern}}})"
    whole = attention("--attention", pattern)
    assert attention("--attention", steps) == pytest.approx(whole / 2, rel=0.03)
    assert attention("--attention", steps, "--train_window", "0.5", "1") == pytest.approx(whole, rel=0.03)


def test_matching_guidance_takes_twice_the_passes(capsys, pictures, tmp_path):
    def flops(*more):
        words = ["train-lora", "--model", "shapes-wan", "--data", str(pictures), "--buckets", "33x64x64", "--estimate"]
        assert main([*words, "--output", str(tmp_path / "out"), "--distill", *more]) == 0
        return float(re.search(r"dense ([\d.e+]+) ", capsys.readouterr().out)[1])

    assert flops("--distill_guidance", "4") == pytest.approx(2 * flops(), rel=0.01)
