"""How far a training is that runs along with a pipeline, and the running of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tqdm import tqdm

from ..loading import Loaded
from ..running import Request


@dataclass
class Progress:
    """Denoising steps done, of all."""

    steps: int
    done: int = 0

    @property
    def share(self) -> float:
        """Of the training that is done, 0 to 1."""
        return min(1.0, self.done / self.steps)


def run_along(
    loaded: Loaded, request: Request, prompts: Sequence[str], rounds: int, progress: Progress, told: Callable[[], str]
) -> None:
    """Call the pipeline for every prompt, ``rounds`` times, each with another seed.

    Args:
        loaded: the pipeline, with what learns applied to it.
        request: what to make, but for prompt and seed.
        progress: is kept up to date.
        told: a few words for the progress bar.
    """
    loaded.pipe.set_progress_bar_config(disable=True)
    bar = tqdm(total=progress.steps, desc="training", unit="step", disable=not sys.stderr.isatty())

    def after_step(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        progress.done += 1
        bar.update()
        bar.set_postfix_str(told())
        return tensors

    with bar:
        for number in range(rounds * len(prompts)):
            asked = replace(request, prompt=prompts[number % len(prompts)], seed=request.seed + number)
            call = asked.call(loaded) | {"callback_on_step_end": after_step, "output_type": "latent"}
            loaded.pipe(**call)
