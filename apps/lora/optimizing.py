"""The optimiser and its learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch


@dataclass(frozen=True)
class Optimizing:
    """AdamW and how its rate changes over the steps; see ``dattn train-lora --help``.

    Attributes:
        cycles, power: of the schedules that have them.
        narrow: keep the optimiser's states in 8 bits.
    """

    rate: float = 1e-4
    schedule: str = "constant"
    warmup: int = 0
    cycles: int = 1
    power: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    decay: float = 1e-4
    narrow: bool = False

    def optimizer(self, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        """Of groups of parameters."""
        kind = _narrow() if self.narrow else torch.optim.AdamW
        made = kind(groups, lr=self.rate, betas=self.betas, eps=self.epsilon, weight_decay=self.decay)
        assert isinstance(made, torch.optim.Optimizer)
        return made

    def scheduler(self, optimizer: torch.optim.Optimizer, steps: int) -> Any:
        """The rate over so many steps."""
        from diffusers.optimization import get_scheduler

        return get_scheduler(
            self.schedule,
            optimizer,
            num_warmup_steps=self.warmup,
            num_training_steps=steps,
            num_cycles=self.cycles,
            power=self.power,
        )


def optimizing_of(options: Any, processes: int) -> Optimizing:
    """What the options name.

    Raises:
        ValueError: 8 bits without the package that has them.
    """
    if options.use_8bit_adam and find_spec("bitsandbytes") is None:
        raise ValueError("--use_8bit_adam: bitsandbytes is not installed; pip install bitsandbytes, or leave it out")
    seen = options.train_batch_size * options.gradient_accumulation_steps * processes
    return Optimizing(
        rate=options.learning_rate * (seen if options.scale_lr else 1),
        schedule=options.lr_scheduler,
        warmup=options.lr_warmup_steps,
        cycles=options.lr_num_cycles or 1,
        power=options.lr_power or 1.0,
        betas=(options.adam_beta1, options.adam_beta2),
        epsilon=options.adam_epsilon,
        decay=options.adam_weight_decay,
        narrow=options.use_8bit_adam,
    )


def _narrow() -> Any:
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit
