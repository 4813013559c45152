"""What the two image models share in training: encoded pictures, the loop, the command line."""

from __future__ import annotations

import argparse
import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import PreTrainedTokenizerFast

from .captions import parse_caption
from .layout import Readout, layouts
from .picture_codec import to_tensor
from .pictures import caption_of, draw_pictures, whole_pictures
from .training import Clock, Ema, scale_rates, short_products
from .world import Scene

Model = TypeVar("Model", bound=nn.Module)
UNCONDITIONAL = 0.1
LAYOUT_WEIGHT = 0.5
"""Of the readout's loss, beside the denoiser's own."""
PROMPT = "a red circle above a blue square"


@dataclass(frozen=True)
class Pictures:
    """Latents of pictures, float16 ``[pictures, 4, 32, 32]``, their captions, and what lies where in them."""

    latents: torch.Tensor
    captions: list[str]
    places: torch.Tensor

    @cached_property
    def _by_objects(self) -> tuple[np.ndarray, np.ndarray]:
        """int64, the pictures of one object and those of two."""
        pairs = np.array([len(parse_caption(caption).objects) == 2 for caption in self.captions])
        return np.flatnonzero(~pairs), np.flatnonzero(pairs)

    def sample(
        self, rng: np.random.Generator, count: int, pairs: float
    ) -> tuple[torch.Tensor, list[str], torch.Tensor]:
        """Random pictures, a share of ``pairs`` with two objects; one caption in ten is left out."""
        rows = np.array([rng.choice(self._by_objects[int(rng.random() < pairs)]) for _ in range(count)])
        captions = [self.captions[i] if rng.random() > UNCONDITIONAL else "" for i in rows]
        return self.latents[rows].float(), captions, self.places[rows]


def load_pictures(folder: Path, cache: Path, count: int) -> Pictures:
    """The first ``count`` whole pictures, encoded once by the folder's autoencoder and kept in ``cache``."""
    weights = (folder / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()
    path = cache / f"shapes-whole-pictures-{count}-{hashlib.sha256(weights).hexdigest()[:12]}.pt"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        torch.save(encode_pictures(AutoencoderKL.from_pretrained(folder / "vae").float(), whole_pictures(count)), part)
        part.replace(path)
    latents, captions = torch.load(path)
    return Pictures(latents, captions, layouts(whole_pictures(count)))


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, scenes: Sequence[Scene]) -> tuple[torch.Tensor, list[str]]:
    """Latents and captions of pictures."""
    parts = []
    for i in range(0, len(scenes), 32):
        with short_products():
            images = to_tensor(draw_pictures(scenes[i : i + 32]))
            parts.append(vae.encode(images).latent_dist.mode().half())
    return torch.cat(parts), [caption_of(scene) for scene in scenes]


def tokens(tokenizer: PreTrainedTokenizerFast, captions: list[str]) -> torch.Tensor:
    """int64 ``[captions, 16]``, padded, as both pipelines tokenize."""
    length = tokenizer.model_max_length
    return tokenizer(captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids


def fit(
    model: Model,
    steppers: list[torch.optim.Optimizer],
    loss_of: Callable[[torch.Tensor, list[str]], torch.Tensor],
    readout: Readout,
    save: Callable[[Model], None],
    args: argparse.Namespace,
) -> None:
    """Train until the clock ends, the readout along with the model; save the averaged weights at every report."""
    data = load_pictures(args.out, args.cache, args.pictures)
    rng = np.random.default_rng(args.seed)
    model.train()
    ema, clock = Ema(model, 0.999), Clock(args.minutes, args.steps)
    reported = 0.0
    recent: list[tuple[float, float]] = []
    steppers = [*steppers, torch.optim.AdamW(readout.parameters(), lr=args.lr)]
    while clock.done < 1:
        scale_rates(steppers, clock.rate(warmup=100))
        latents, captions, places = data.sample(rng, args.batch, args.pairs)
        loss = loss_of(latents, captions)
        named = readout.loss(places)
        (loss + LAYOUT_WEIGHT * named).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad()
        ema.update(model)
        clock.tick()
        recent.append((loss.item(), named.item()))
        if clock.step % 50 == 0:
            means = np.mean(recent[-50:], 0)
            print(f"{clock.line({1: [means[0]]})}  layout {means[1]:.4f}", flush=True)
        if clock.elapsed - reported > args.report or clock.done >= 1:
            reported = clock.elapsed
            save(ema.module)


def options(doc: str | None, out: Path) -> argparse.Namespace:
    """The command line of both scripts."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=out, help="pipeline folder, with its vae/")
    parser.add_argument("--resume", action="store_true", help="start from the weights in --out")
    parser.add_argument("--cache", type=Path, default=Path("runs"), help="folder for encoded pictures")
    parser.add_argument("--pictures", type=int, default=12000, help="pictures to train on")
    parser.add_argument("--pairs", type=float, default=0.7, help="share of pictures with two objects, the harder ones")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--steps", type=float, default=math.inf)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--report", type=float, default=10, help="minutes between saved checkpoints")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="compile the denoiser: minutes first, faster after")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    return args
