"""What the training scripts share: the clock, the learning rate, averaged weights, fresh clips."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from .muon import Muon
from .world import Scene, sample_scene

Model = TypeVar("Model", bound=nn.Module)
EMULATED = ("DEFAULT", "NO AVX", "AVX2")  # processors without bfloat16
MODEL_FOLDER = Path(__file__).resolve().parents[2] / "assets" / "models" / "shapes-wan"


@dataclass
class Clock:
    """How far a run is, by steps or by minutes, whichever limit comes first."""

    minutes: float = math.inf
    steps: float = math.inf
    step: int = 0
    started: float = field(default_factory=time.monotonic)
    now: float = 0.0

    def __post_init__(self) -> None:
        if math.isinf(self.minutes) and math.isinf(self.steps):
            raise ValueError("no end: a run needs a limit; give --minutes or --steps")

    @property
    def elapsed(self) -> float:
        """Minutes since the start."""
        return (time.monotonic() - self.started) / 60

    @property
    def done(self) -> float:
        """The share that is done; 1 at the end."""
        return min(1.0, max(self.now / self.minutes, self.step / self.steps))

    def tick(self) -> None:
        """One step more; every process adopts the time of the first, so that all end together."""
        self.step += 1
        if dist.is_initialized():
            now = torch.tensor([self.elapsed], dtype=torch.float64)
            dist.broadcast(now, 0)
            self.started = time.monotonic() - 60 * now.item()
        self.now = self.elapsed

    def rate(self, warmup: int, floor: float = 0.02) -> float:
        """Factor of the learning rate: linear warm-up, then a half cosine down to ``floor``."""
        cosine = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * self.done))
        return min(1.0, (self.step + 1) / warmup) * cosine

    def line(self, losses: dict[int, list[float]]) -> str:
        """A line for the log: the mean of the last 25 losses of each length of clip."""
        means = "  ".join(f"loss[{n}] {np.mean(losses[n][-25:]):.4f}" for n in sorted(losses))
        return f"{self.elapsed:5.1f} min  step {self.step:5d}  {means}"


def join() -> int:
    """Join the other processes of a ``torchrun``, each with its own share of every batch: rank of this one."""
    if "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("gloo")
    return dist.get_rank() if dist.is_initialized() else 0


def average_gradients(module: nn.Module) -> None:
    """Replace the gradients by their mean over the processes; nothing to do where there is one."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    together = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(together)
    together /= dist.get_world_size()
    parts = together.split([g.numel() for g in gradients])
    torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])


def short_products() -> torch.autocast:
    """Products in bfloat16 from AVX-512 on; on older processors they are emulated and take ten times as long."""
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.backends.cpu.get_cpu_capability() not in EMULATED)


def scale_rates(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Set every learning rate to ``factor`` times what it was at first."""
    for group in (g for optimizer in optimizers for g in optimizer.param_groups):
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def optimizers(model: nn.Module, blocks: str, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of modules whose name holds ``blocks``, AdamW for everything else."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = [p for name, p in trained.items() if blocks in name and p.ndim == 2]
    chosen = set(map(id, matrices))
    others = [p for p in trained.values() if id(p) not in chosen]
    return [
        Muon(matrices, lr=lr, weight_decay=0.02),
        torch.optim.AdamW(others, lr=lr / 2, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


class Ema(Generic[Model]):
    """An exponential moving average of a module's weights; the decay grows with the steps up to ``decay``."""

    def __init__(self, module: Model, decay: float) -> None:
        self.module: Model = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the present weights of ``module``."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.module.parameters()), list(module.parameters()), 1 - decay)


def draw(scenes: list[Scene], frames: int, size: int) -> np.ndarray:
    """Render scenes of one size: uint8 ``[scenes, frames, size, size, 3]``."""
    return np.stack([scene.render(frames, size) for scene in scenes])


def scenes_from(first_seed: int, count: int, objects: int | None = None) -> list[Scene]:
    """``count`` scenes with consecutive seeds."""
    return [sample_scene(first_seed + i, objects) for i in range(count)]


def describe(folder: Path, **settings: object) -> None:
    """Write ``shapes.json``: how the commands are to call this model; see ``Native`` in ``apps/loading.py``."""
    (folder / "shapes.json").write_text(json.dumps(settings, indent=2) + "\n")


def edit_config(folder: Path, **changes: object) -> None:
    """Change entries of the ``config.json`` in ``folder``, and drop where on this machine it was loaded from."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2) + "\n")
