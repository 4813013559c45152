"""Train the autoencoder of the two image models: ``python -m dattn.apps.shapes.picture_codec --minutes 8``.

A small stock ``AutoencoderKL``, 64 x 64 pixels to 32 x 32 latents of 4 channels, whose latents have mean 0 and
deviation 1 in every channel: both pipelines read ``scaling_factor`` 1 and ``shift_factor`` 0 from its config.
Writes ``vae/`` into both model folders, averaged weights in float16.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import nn

from .pictures import draw_pictures, sample_picture
from .train_vae import HELD_OUT, importance
from .training import MODEL_FOLDER, Clock, Ema, edit_config, scale_rates, short_products

FOLDERS = tuple(MODEL_FOLDER.parent / name for name in ("shapes-sd", "shapes-flux"))
BATCH = 8


def build() -> AutoencoderKL:
    """A fresh autoencoder, a third of a million weights."""
    return AutoencoderKL(
        block_out_channels=(32, 48),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        mid_block_add_attention=False,
        sample_size=64,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """uint8 ``[batch, height, width, 3]`` to float32 ``[batch, 3, height, width]`` in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def pictures(first_seed: int, count: int) -> torch.Tensor:
    """Pictures of one or two objects, as ``to_tensor`` gives them."""
    return to_tensor(draw_pictures([sample_picture(first_seed + i) for i in range(count)]))


def loss_of(vae: AutoencoderKL, images: torch.Tensor, kl_weight: float) -> torch.Tensor:
    """Weighted L1 + squared error of the round trip, plus a little KL."""
    with short_products():
        posterior = vae.encode(images).latent_dist
        error = vae.decode(posterior.sample()).sample.float() - images
    weight = importance(images[:, :, None])[:, :, 0]
    return (weight * (error.abs() + 2 * error**2)).mean() + kl_weight * posterior.kl().mean() / posterior.mean[
        0
    ].numel()


@torch.no_grad()
def quality(vae: AutoencoderKL, count: int = 32) -> float:
    """Mean PSNR in dB of ``count`` held-out pictures."""
    images = pictures(HELD_OUT, count)
    error = vae.decode(vae.encode(images).latent_dist.mode()).sample.clamp(-1, 1) - images
    return float((10 * torch.log10(4 / (error**2).mean((1, 2, 3)))).mean())


@torch.no_grad()
def normalise(vae: AutoencoderKL, count: int = 64) -> None:
    """Make every latent channel of mean 0 and deviation 1 by the 1 x 1 convolutions around the latents."""
    latents = vae.encode(pictures(HELD_OUT, count)).latent_dist.mode()
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    channels = len(mean)
    vae.quant_conv.weight[:channels] /= deviation.view(-1, 1, 1, 1)
    vae.quant_conv.bias[:channels] = (vae.quant_conv.bias[:channels] - mean) / deviation
    vae.quant_conv.bias[channels:] -= 2 * deviation.log()
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ mean
    vae.post_quant_conv.weight *= deviation.view(1, -1, 1, 1)


def save(vae: AutoencoderKL) -> None:
    """Write the autoencoder, normalised, into both model folders."""
    copy = build()
    copy.load_state_dict(vae.state_dict())
    normalise(copy)
    for folder in FOLDERS:
        copy.half().save_pretrained(folder / "vae")
        edit_config(folder / "vae")


def train(args: argparse.Namespace) -> None:
    """Run until the clock ends, then save the averaged weights."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    vae = AutoencoderKL.from_pretrained(FOLDERS[0] / "vae").float() if args.resume else build()
    vae = vae.to(memory_format=torch.channels_last)
    ema = Ema(vae, 0.995)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    clock = Clock(args.minutes, args.steps)
    recent: list[float] = []
    while clock.done < 1:
        scale_rates([optimizer], clock.rate(warmup=50))
        loss = loss_of(vae, pictures(args.seed * 1_000_000 + clock.step * BATCH, BATCH), args.kl)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(vae)
        clock.tick()
        recent.append(loss.item())
        if clock.step % 50 == 0:
            print(f"{clock.line({1: recent})}  held-out {quality(ema.module):.2f} dB", flush=True)
    save(ema.module)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resume", action="store_true", help="start from the shipped weights")
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--steps", type=float, default=math.inf)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--kl", type=float, default=1e-4, help="weight of the mean KL term")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
