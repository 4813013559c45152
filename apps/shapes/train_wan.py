"""Train the text-to-video model of Moving Shapes: ``python -m dattn.apps.shapes.train_wan --minutes 70``.

Needs a trained ``vae/`` in the pipeline folder (see ``train_vae``) and completes that folder into a stock
``WanPipeline``: transformer (float16), text encoder, tokenizer and scheduler, with averaged weights.
``--resume`` starts from that folder with a fresh optimiser and warm-up. Encoded clips are kept in ``--cache``.
Two processes are faster than two threads: ``torchrun --nproc-per-node 2 -m dattn.apps.shapes.train_wan --threads 1``.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from .codec import encode, to_video
from .fast_attention import FastAttention
from .text import build_encoder, build_tokenizer, encode_captions
from .training import (
    MODEL_FOLDER,
    Clock,
    Ema,
    average_gradients,
    draw,
    edit_config,
    join,
    optimizers,
    scale_rates,
    scenes_from,
    short_products,
)
from .world import Scene

SHIFT = 3.0


class Denoiser(nn.Module):
    """Transformer and text encoder as one module, so that they train and average together."""

    def __init__(self, transformer: WanTransformer3DModel, text_encoder: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer
        self.text_encoder = text_encoder


@dataclass(frozen=True)
class Data:
    """Normalised latents of long and of short clips, ``[clips, 8, frames, 8, 8]``, and their captions."""

    long: torch.Tensor
    short: torch.Tensor
    captions: list[str]

    def sample(self, rng: np.random.Generator, length: int, count: int) -> tuple[torch.Tensor, list[str]]:
        """Random clips cut to ``length`` latent frames: the code is causal, so its prefix is the prefix's code."""
        fits = len(self.captions) if length <= self.short.shape[2] else len(self.long)
        rows = rng.integers(fits, size=count)
        texts = [self.captions[i] if rng.random() > 0.1 else "" for i in rows]
        return torch.stack([self._clip(i)[:, :length] for i in rows]), texts

    def _clip(self, row: int) -> torch.Tensor:
        return self.long[row] if row < len(self.long) else self.short[row - len(self.long)]


def build(tokenizer: PreTrainedTokenizerFast) -> Denoiser:
    """A fresh model: 6 layers of 6 heads of 32, patch 1; 3.3 million weights."""
    encoder = build_encoder(len(tokenizer))
    transformer = WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=6,
        attention_head_dim=32,
        in_channels=8,
        out_channels=8,
        text_dim=encoder.config.d_model,
        ffn_dim=512,
        num_layers=6,
    )
    nn.init.zeros_(transformer.proj_out.weight)
    return Denoiser(transformer, encoder)


@torch.no_grad()
def encode_scenes(vae: AutoencoderKLWan, scenes: list[Scene], frames: int) -> torch.Tensor:
    """Normalised latents of scenes, as the pipeline's transformer is to make them."""
    parts = []
    for i in tqdm(range(0, len(scenes), 8), desc=f"encode clips of {frames} frames", mininterval=10):
        with short_products():
            parts.append(encode(vae, to_video(draw(scenes[i : i + 8], frames, 64))).float())
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    return (torch.cat(parts)[:, : vae.config.z_dim] - mean) / std


def load_data(folder: Path, cache: Path, rank: int, long: int, short: int) -> Data:
    """This process's own clips, from ``cache`` where they have been encoded before."""
    scenes = scenes_from(1_000_000 * rank, long + short)
    path = cache / f"shapes-latents-{rank}.pt"
    if not path.exists():
        vae = AutoencoderKLWan.from_pretrained(folder / "vae")
        cache.mkdir(parents=True, exist_ok=True)
        torch.save((encode_scenes(vae, scenes[:long], 33), encode_scenes(vae, scenes[long:], 9)), path)
    long_clips, short_clips = torch.load(path)
    return Data(long_clips, short_clips, [scene.caption() for scene in scenes])


def noise_levels(count: int) -> torch.Tensor:
    """Random sigmas ``[count]`` in (0, 1): logit-normal, moved towards noise like the scheduler's shift."""
    sigma = torch.sigmoid(torch.randn(count))
    return SHIFT * sigma / (1 + (SHIFT - 1) * sigma)


def loss_of(model: Denoiser, states: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Flow matching: from the mix of clip and noise at sigma, predict noise minus clip."""
    sigma = noise_levels(len(latents))
    noise = torch.randn_like(latents)
    level = sigma.view(-1, 1, 1, 1, 1)
    with short_products():
        velocity = model.transformer((1 - level) * latents + level * noise, 1000 * sigma, states).sample
    return ((velocity.float() - (noise - latents)) ** 2).mean()


def lengths(done: float) -> tuple[int, ...]:
    """Latent frames that batches may have, by the share of the run that is done: short clips first."""
    if done < 0.1:
        return (1, 3)
    return (3, 5, 5) if done < 0.45 else (5, 9, 17, 17)


def save(model: Denoiser, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write everything but the autoencoder: the pipeline folder is complete and stock afterwards."""
    vae = AutoencoderKLWan.from_pretrained(folder / "vae", torch_dtype=torch.float16)
    stock = build(tokenizer)
    stock.load_state_dict(model.state_dict())
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    pipe = WanPipeline(tokenizer, stock.text_encoder, vae, scheduler, stock.transformer.half())
    pipe.save_pretrained(folder)
    edit_config(folder / "vae")


def load(folder: Path) -> tuple[Denoiser, PreTrainedTokenizerFast]:
    """The trained model of a pipeline folder, in float32."""
    pipe = WanPipeline.from_pretrained(folder)
    return Denoiser(pipe.transformer.float(), pipe.text_encoder.float()), pipe.tokenizer


def train(args: argparse.Namespace) -> None:
    """Run until the clock ends; save the averaged weights at every report."""
    torch.set_num_threads(args.threads)
    rank = join()
    torch.manual_seed(args.seed)
    rng, own = np.random.default_rng(args.seed), np.random.default_rng((args.seed, rank))
    data = load_data(args.out, args.cache, rank, args.long, args.short)
    tokenizer = build_tokenizer()
    model, tokenizer = load(args.out) if args.resume else (build(tokenizer), tokenizer)
    attention = FastAttention()
    model.transformer.set_attn_processor(attention)
    model.train()
    torch.manual_seed(args.seed + rank)
    ema = Ema(model, 0.999)
    steppers = optimizers(model, ".blocks.", args.lr)
    clock = Clock(args.minutes, args.steps)
    reported = 0.0
    recent: dict[int, list[float]] = {}
    while clock.done < 1:
        scale_rates(steppers, clock.rate(warmup=50))
        length = int(rng.choice(lengths(max(clock.done, args.skip))))
        latents, texts = data.sample(own, length, max(1, args.budget // length))
        states, attention.bias = encode_captions(tokenizer, model.text_encoder, texts)
        loss = loss_of(model, states, latents)
        loss.backward()
        average_gradients(model)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad()
        ema.update(model)
        clock.tick()
        recent.setdefault(length, []).append(loss.item())
        if rank == 0 and clock.step % 50 == 0:
            print(clock.line(recent), flush=True)
        if rank == 0 and (clock.elapsed - reported > args.report or clock.done >= 1):
            reported = clock.elapsed
            save(ema.module, tokenizer, args.out)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=MODEL_FOLDER, help="pipeline folder")
    parser.add_argument("--resume", action="store_true", help="start from the weights in --out")
    parser.add_argument("--cache", type=Path, default=Path("runs"), help="folder for encoded clips")
    parser.add_argument("--long", type=int, default=600, help="clips of 33 frames to train on, per process")
    parser.add_argument("--short", type=int, default=1200, help="clips of 9 frames to train on, per process")
    parser.add_argument("--budget", type=int, default=80, help="latent frames in the batch of a process")
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--steps", type=float, default=math.inf)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--skip", type=float, default=0.0, help="start the length schedule at this share")
    parser.add_argument("--report", type=float, default=5, help="minutes between saved checkpoints")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
