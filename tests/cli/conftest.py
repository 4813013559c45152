"""A tiny random WanPipeline folder, and a way to run the command without a new process."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch

from dattn.apps import cli


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def dattn_command(capfd):
    def call(*words):
        capfd.readouterr()
        try:
            code = cli.main([str(word) for word in words])
        except SystemExit as leaving:
            code = leaving.code
        return Outcome(code, *capfd.readouterr())

    return call


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory):
    """A pipeline of the demo model's classes with random weights, for clips of 5 frames of 32 x 32."""
    folder = tmp_path_factory.mktemp("models") / "shapes-tiny"
    build_wan().save_pretrained(folder)
    (folder / "shapes.json").write_text('{"frames": 5, "height": 32, "width": 32, "steps": 2, "guidance": 2.0}')
    return folder


@pytest.fixture(scope="session")
def plain_folder(tmp_path_factory):
    """The same under a name that says nothing: any Diffusers folder."""
    folder = tmp_path_factory.mktemp("models") / "mine"
    build_wan().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def shapes_lora(shapes_folder, tmp_path_factory):
    """The file of a random LoRA for it, and its transformer that has it."""
    from dattn.apps.loading import load
    from dattn.apps.lora.adapting import add_lora, save, targets

    pipe = load(str(shapes_folder)).pipe
    for parameter in add_lora(pipe.transformer, targets(pipe.transformer), 2, 4, 0):
        torch.nn.init.normal_(parameter, std=0.5)
    return save(pipe, "transformer", pipe.transformer, tmp_path_factory.mktemp("lora")), pipe.transformer


def build_wan():
    from diffusers import (
        AutoencoderKLWan,
        FlowMatchEulerDiscreteScheduler,
        WanPipeline,
        WanTransformer3DModel,
    )
    from transformers import UMT5Config, UMT5EncoderModel

    from dattn.apps.shapes.text import build_tokenizer

    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    encoder = UMT5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        is_encoder_decoder=False,
        tie_word_embeddings=False,
    )
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
        scale_factor_temporal=2,
        scale_factor_spatial=8,
    )
    transformer = WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        ffn_dim=16,
        freq_dim=16,
        num_layers=2,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return WanPipeline(tokenizer, UMT5EncoderModel(encoder), vae, scheduler, transformer)


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory):
    """A Stable Diffusion folder with random weights; its latents are half as wide as its pictures."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from dattn.apps.shapes.text import build_tokenizer

    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = 16
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        max_position_embeddings=16,
        eos_token_id=1,
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=16,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 4),
        norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    pipe = StableDiffusionPipeline(
        vae,
        CLIPTextModel(text),
        tokenizer,
        unet,
        DDIMScheduler(steps_offset=1, clip_sample=False),
        None,
        None,
        requires_safety_checker=False,
    )
    folder = tmp_path_factory.mktemp("models") / "sd"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def memory():
    """Tells the bytes in use; what the C library only keeps for later is given back before."""
    import psutil

    def used():
        gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)
        return psutil.Process().memory_info().rss

    return used


PATTERN = "Radial(block_size=16, sink=False)"
"""One that is sparse on the few tokens of the tiny models."""


@pytest.fixture(scope="module")
def served(shapes_folder, sd_folder):
    """Address, studio, visits and Blocks of a demo with tiny models."""
    from dattn.apps.demo import defaults
    from dattn.apps.demo.app import build, launch
    from dattn.apps.demo.studio import Studio
    from dattn.apps.demo.visits import Visits

    studio, visits = Studio([str(shapes_folder), str(sd_folder)], device="cpu"), Visits()
    demo = build(studio, visits)
    _, address, _ = launch(demo, defaults(), prevent_thread_lock=True, quiet=True)
    yield address, studio, visits, demo
    demo.close()
    visits.close()


@pytest.fixture(scope="session")
def demo_process():
    """A demo in a process of its own on two cores: where it begins, as soon as it tells it, and what it tells then."""

    def told(process):
        for line in process.stdout:
            if found := re.search(r"http://[\d.:]+", line):
                yield found[0]

    @contextmanager
    def started(*words):
        command = [sys.executable, "-c", "from dattn.apps.cli import main; main()", "demo", "--device", "cpu", *words]
        cores = {"OMP_NUM_THREADS": "2", "PYTHONUNBUFFERED": "1"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **cores}) as process:
            addresses = told(process)
            try:
                yield next(addresses), addresses
            finally:
                process.terminate()

    return started


@pytest.fixture
def visitor(served):
    """Makes clients of the demo, each a visitor of its own."""
    import gradio_client

    return lambda: gradio_client.Client(served[0], verbose=False)


@pytest.fixture
def client(visitor):
    """One visitor."""
    return visitor()


@pytest.fixture
def wish(shapes_folder):
    """Arguments of ``/generate``, with some changed."""
    usual = {
        "model": str(shapes_folder), "prompt": "a red circle", "pattern": PATTERN, "dense": 0.0, "frames": 9,
        "height": 32, "width": 32, "steps": 2, "seed": 3, "another": False,
    }  # fmt: skip
    return lambda **changed: {**usual, **changed, "api_name": "/generate"}
