"""Train the UNet of Moving Shapes, for pictures: ``python -m dattn.apps.shapes.train_sd --minutes 70``.

Needs a trained ``vae/`` in the pipeline folder (see ``picture_codec``) and completes it into a stock
``StableDiffusionPipeline`` with averaged weights; ``--resume`` starts from those with a fresh optimiser.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import nn
from transformers import PreTrainedTokenizerFast

from .layout import Readout
from .picture_codec import FOLDERS
from .picture_text import WIDTH, build_clip, short_tokenizer
from .picture_training import PROMPT, fit, options, tokens
from .picture_words import teach
from .training import describe, edit_config, optimizers, short_products

FOLDER = FOLDERS[0]
LAID_OUT = (0.65, 0.75)
"""From which time on a picture is laid out, and the share of training there: from less noise it always comes right."""


class Denoiser(nn.Module):
    """UNet and text encoder as one module; the encoder stays as :func:`teach` left it."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: nn.Module) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder.requires_grad_(False)


def build(tokenizer: PreTrainedTokenizerFast) -> Denoiser:
    """A fresh model: three levels of 1024, 256 and 64 tokens, attention in all of them."""
    unet = UNet2DConditionModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=WIDTH,
        attention_head_dim=(1, 2, 4),
        transformer_layers_per_block=(1, 2, 2),  # cheap where the picture is small, and there it is laid out
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
    )
    nn.init.zeros_(unet.conv_out.weight)
    return Denoiser(unet, build_clip(tokenizer))


def fresh(tokenizer: PreTrainedTokenizerFast) -> Denoiser:
    """An untrained model whose encoder knows the language."""
    model = build(tokenizer)
    teach(model.text_encoder, tokenizer)
    return model


def scheduler() -> DDIMScheduler:
    """Velocity prediction down to no signal at all, so that a picture's brightness is not given away."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,
    )


def save(model: Denoiser, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write everything but the autoencoder: the pipeline folder is complete and stock afterwards."""
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float16)
    stock = build(tokenizer)
    stock.load_state_dict(model.state_dict())
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=stock.text_encoder,
        tokenizer=tokenizer,
        unet=stock.unet.half(),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    edit_config(folder / "vae")
    describe(folder, frames=1, guidance=3.0, prompt=PROMPT, pattern="Neighborhood(9)")


def load(folder: Path) -> tuple[Denoiser, PreTrainedTokenizerFast]:
    """The trained model of a pipeline folder, in float32."""
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    return Denoiser(pipe.unet.float(), pipe.text_encoder.float()), pipe.tokenizer


def fastest(name: str) -> AttnProcessor | AttnProcessor2_0:
    """Flash attention of the picture over itself; plain matrix products are faster over the few tokens of text."""
    return AttnProcessor2_0() if ".attn1." in name else AttnProcessor()


def random_times(count: int) -> torch.Tensor:
    """float32 ``[count]`` in [0, 1): evenly from the times that lay a picture out, or from all."""
    first, share = LAID_OUT
    least = torch.where(torch.rand(count) < share, first, 0.0)
    return least + (1 - least) * torch.rand(count)


def main() -> None:
    """Read the command line and train."""
    args = options(__doc__, FOLDER)
    tokenizer = short_tokenizer()
    model, tokenizer = load(args.out) if args.resume else (fresh(tokenizer), tokenizer)
    model.unet.set_attn_processor({name: fastest(name) for name in model.unet.attn_processors})
    model.unet.to(memory_format=torch.channels_last)
    if args.compile:
        model.unet.compile()
    noise_schedule = scheduler()

    def loss_of(latents: torch.Tensor, captions: list[str]) -> torch.Tensor:
        noise = torch.randn_like(latents)
        times = (1000 * random_times(len(latents))).long()
        states = model.text_encoder(tokens(tokenizer, captions))[0]
        noisy = noise_schedule.add_noise(latents, noise, times).contiguous(memory_format=torch.channels_last)
        with short_products():
            guess = model.unet(noisy, times, states).sample
        return ((guess.float() - noise_schedule.get_velocity(latents, noise, times)) ** 2).mean()

    steppers = optimizers(model, "transformer_blocks", args.lr)
    readout = Readout(model.unet.up_blocks[0], 128, lambda returned: returned.flatten(2).mT)  # 16 x 16 by then
    fit(model, steppers, loss_of, readout, lambda averaged: save(averaged, tokenizer, args.out), args)


if __name__ == "__main__":
    main()
