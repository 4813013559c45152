"""Train the video autoencoder of Moving Shapes: ``python -m dattn.apps.shapes.train_vae --minutes 25``.

Writes ``vae/`` of the pipeline folder: averaged weights in float16, and in its config the mean and standard
deviation of each latent channel. ``--resume`` starts from that folder with a fresh optimiser and warm-up.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import nn

from .codec import decode, encode, psnr, reconstruct, to_video
from .training import (
    MODEL_FOLDER,
    Clock,
    Ema,
    average_gradients,
    draw,
    edit_config,
    join,
    scale_rates,
    scenes_from,
    short_products,
)
from .world import sample_scene

HELD_OUT = 10_000_000
"""Seeds from here on are never trained on."""


def build() -> AutoencoderKLWan:
    """A fresh autoencoder: 33 frames of 64 x 64 become 17 x 8 x 8 latents of 8 channels."""
    vae = AutoencoderKLWan(
        base_dim=16,
        z_dim=8,
        dim_mult=[1, 2, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True, False],
        latents_mean=[0.0] * 8,
        latents_std=[1.0] * 8,
        scale_factor_temporal=2,
        scale_factor_spatial=8,
    )
    start_as_image_model(vae)
    return vae


@torch.no_grad()
def start_as_image_model(vae: AutoencoderKLWan) -> None:
    """Let every frame go through alone at first: only the newest tap of a temporal kernel is not zero.

    Also starts with little noise in the latents, or the decoder would learn to ignore them.
    """
    vae.quant_conv.bias[vae.z_dim :] = -6
    for name, m in vae.named_modules():
        if isinstance(m, nn.Conv3d) and m.kernel_size[0] == 3:
            m.weight[:, :, :2] = 0
            if name.endswith("time_conv"):
                copies = m.out_channels // m.in_channels
                m.weight[:, :, 2, 0, 0] = torch.eye(m.in_channels).repeat(copies, 1)
                m.get_parameter("bias").zero_()


def channels_last(module: nn.Module) -> None:
    """Lay out convolution weights as the fast CPU kernels like them."""
    for m in module.modules():
        if isinstance(m, nn.Conv3d):
            m.weight.data = m.weight.data.contiguous(memory_format=torch.channels_last_3d)
        elif isinstance(m, nn.Conv2d):
            m.weight.data = m.weight.data.contiguous(memory_format=torch.channels_last)


def stage(done: float) -> tuple[int, int]:
    """Frames and clips of a batch, by the share of the run that is done: pictures first, then clips."""
    if done < 0.25:
        return 1, 8
    return (5, 6) if done < 0.6 else (9, 4)


def batch(seed: tuple[int, ...], frames: int, count: int) -> torch.Tensor:
    """Fresh clips ``[count, 3, frames, 64, 64]`` in [-1, 1], more crowded than captions are."""
    rng = np.random.default_rng(seed)
    objects = rng.choice([1, 2, 3], count, p=[0.3, 0.3, 0.4])
    return to_video(draw([sample_scene((*seed, i), int(n)) for i, n in enumerate(objects)], frames, 64))


def importance(video: torch.Tensor) -> torch.Tensor:
    """Weights ``[batch, 1, frames, height, width]`` of mean 1 that favour objects and their outlines."""
    background = torch.tensor([16, 16, 24]).view(1, 3, 1, 1, 1) / 127.5 - 1
    object_ = ((video - background).abs().amax(1, keepdim=True) > 0.05).float()
    weight = 1 + 6 * F.max_pool3d(object_, (1, 5, 5), stride=1, padding=(0, 2, 2))
    return weight / weight.mean()


def loss_of(vae: AutoencoderKLWan, video: torch.Tensor, kl_weight: float) -> torch.Tensor:
    """Weighted L1 + squared error of the round trip, plus a little KL."""
    with short_products():
        mean, log_variance = encode(vae, video).float().chunk(2, dim=1)
        log_variance = log_variance.clamp(-20, 10)
        latents = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        error = decode(vae, latents).float() - video
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    return (importance(video) * (error.abs() + 2 * error**2)).mean() + kl_weight * kl


def quality(vae: AutoencoderKLWan, frames: int = 33, count: int = 6) -> np.ndarray:
    """PSNR in dB of ``count`` held-out clips: ``[count]``."""
    scenes = [s for i in range(count) for s in scenes_from(HELD_OUT + i, 1, 1 + i % 3)]
    clips = draw(scenes, frames, 64)
    return psnr(clips, reconstruct(vae, clips))


def statistics(vae: AutoencoderKLWan, count: int = 48) -> dict[str, list[float]]:
    """Mean and standard deviation of each latent channel over held-out clips, as the config names them."""
    with torch.no_grad():
        parts = [encode(vae, to_video(draw(scenes_from(HELD_OUT + i, 8), 33, 64))) for i in range(0, count, 8)]
    mean = torch.cat(parts).chunk(2, dim=1)[0]
    return {
        "latents_mean": mean.mean((0, 2, 3, 4)).tolist(),
        "latents_std": mean.std((0, 2, 3, 4)).tolist(),
    }


def save(vae: AutoencoderKLWan, folder: Path) -> None:
    """Write the autoencoder in float16 with its latent statistics."""
    figures = statistics(vae)
    build_like = build()
    build_like.load_state_dict(vae.state_dict())
    build_like.half().save_pretrained(folder)
    edit_config(folder, **figures)


def train(args: argparse.Namespace) -> None:
    """Run until the clock ends; save the averaged weights at every report."""
    torch.set_num_threads(args.threads)
    rank = join()
    torch.manual_seed(args.seed)
    folder = args.out / "vae"
    vae = AutoencoderKLWan.from_pretrained(folder) if args.resume else build()
    channels_last(vae)
    torch.manual_seed(args.seed + rank)
    ema = Ema(vae, 0.995)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    clock = Clock(args.minutes, args.steps)
    reported, recent = 0.0, []
    while clock.done < 1:
        scale_rates([optimizer], clock.rate(warmup=50))
        video = batch((args.seed, rank, clock.step), *stage(max(clock.done, args.skip)))
        loss = loss_of(vae, video, args.kl)
        loss.backward()
        average_gradients(vae)
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(vae)
        clock.tick()
        recent.append(loss.item())
        if rank == 0 and clock.step % 25 == 0:
            print(
                f"{clock.elapsed:5.1f} min  step {clock.step:5d}  loss {np.mean(recent[-25:]):.4f}",
                flush=True,
            )
        if rank == 0 and (clock.elapsed - reported > args.report or clock.done >= 1):
            reported = clock.elapsed
            print(f"held-out PSNR {quality(ema.module).mean():.2f} dB", flush=True)
            save(ema.module, folder)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=MODEL_FOLDER, help="pipeline folder")
    parser.add_argument("--resume", action="store_true", help="start from the weights in --out")
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--steps", type=float, default=math.inf)
    parser.add_argument("--lr", type=float, default=7e-4)
    parser.add_argument("--kl", type=float, default=1e-4, help="weight of the mean KL term")
    parser.add_argument("--skip", type=float, default=0.0, help="start the stages at this share of the run")
    parser.add_argument("--report", type=float, default=4, help="minutes between reports")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
