"""Train the joint transformer of Moving Shapes, for pictures: ``python -m dattn.apps.shapes.train_flux --minutes 70``.

Needs a trained ``vae/`` in the pipeline folder (see ``picture_codec``) and completes it into a stock
``FluxPipeline`` with averaged weights; ``--resume`` starts from those with a fresh optimiser.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import nn
from transformers import PreTrainedTokenizerFast

from .layout import Readout
from .picture_codec import FOLDERS
from .picture_text import TEXT_LENGTH, WIDTH, build_clip, build_t5, short_tokenizer
from .picture_training import PROMPT, fit, options, tokens
from .picture_words import teach
from .training import describe, edit_config, optimizers, short_products

FOLDER = FOLDERS[1]
SHIFT = 2.0
SIDE = 32
NOISIER = 1.0
"""Mean of the normal whose sigmoid is the noise level: what is where is decided in the noise, and learnt last."""


class Denoiser(nn.Module):
    """Transformer and both text encoders as one module; the encoders stay as :func:`teach` left them."""

    def __init__(self, transformer: FluxTransformer2DModel, clip: nn.Module, t5: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer
        self.text_encoder = clip.requires_grad_(False)
        self.text_encoder_2 = t5.requires_grad_(False)


def build(tokenizer: PreTrainedTokenizerFast) -> Denoiser:
    """A fresh model: 2 joint and 4 single layers of 4 heads of 32, over 16 text and 16 x 16 picture tokens."""
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )
    nn.init.zeros_(transformer.proj_out.weight)
    return Denoiser(transformer, build_clip(tokenizer), build_t5(tokenizer))


def fresh(tokenizer: PreTrainedTokenizerFast) -> Denoiser:
    """An untrained model whose encoders know the language."""
    model = build(tokenizer)
    for encoder in (model.text_encoder, model.text_encoder_2):
        teach(encoder, tokenizer)
    return model


def save(model: Denoiser, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write everything but the autoencoder: the pipeline folder is complete and stock afterwards."""
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float16)
    stock = build(tokenizer)
    stock.load_state_dict(model.state_dict())
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=vae,
        text_encoder=stock.text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=stock.text_encoder_2,
        tokenizer_2=tokenizer,
        transformer=stock.transformer.half(),
    )
    pipe.save_pretrained(folder)
    edit_config(folder / "vae")
    extra = {"max_sequence_length": TEXT_LENGTH, "negative_prompt": "", "true_cfg_scale": 3.0}
    describe(folder, frames=1, guidance=None, extra=extra, prompt=PROMPT, pattern="Neighborhood(9)")


def load(folder: Path) -> tuple[Denoiser, PreTrainedTokenizerFast]:
    """The trained model of a pipeline folder, in float32."""
    pipe = FluxPipeline.from_pretrained(folder)
    return Denoiser(pipe.transformer.float(), pipe.text_encoder.float(), pipe.text_encoder_2.float()), pipe.tokenizer


def main() -> None:
    """Read the command line and train."""
    args = options(__doc__, FOLDER)
    tokenizer = short_tokenizer()
    model, tokenizer = load(args.out) if args.resume else (fresh(tokenizer), tokenizer)
    if args.compile:
        model.transformer.compile()
    text_ids = torch.zeros(TEXT_LENGTH, 3)
    picture_ids = FluxPipeline._prepare_latent_image_ids(1, SIDE // 2, SIDE // 2, "cpu", torch.float32)

    def loss_of(latents: torch.Tensor, captions: list[str]) -> torch.Tensor:
        clean = FluxPipeline._pack_latents(latents, *latents.shape)
        noise, sigma = torch.randn_like(clean), torch.sigmoid(NOISIER + torch.randn(len(clean)))
        sigma = SHIFT * sigma / (1 + (SHIFT - 1) * sigma)
        level, words = sigma.view(-1, 1, 1), tokens(tokenizer, captions)
        with short_products():
            velocity = model.transformer(
                hidden_states=(1 - level) * clean + level * noise,
                timestep=sigma,
                pooled_projections=model.text_encoder(words).pooler_output,
                encoder_hidden_states=model.text_encoder_2(words)[0],
                txt_ids=text_ids,
                img_ids=picture_ids,
            ).sample
        return ((velocity.float() - (noise - clean)) ** 2).mean()

    steppers = optimizers(model, "transformer_blocks", args.lr)
    middle = model.transformer.single_transformer_blocks[1]
    readout = Readout(middle, model.transformer.inner_dim, lambda returned: returned[1])  # text first, then picture
    fit(model, steppers, loss_of, readout, lambda averaged: save(averaged, tokenizer, args.out), args)


if __name__ == "__main__":
    main()
