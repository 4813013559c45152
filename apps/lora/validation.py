"""What validation prompts look like before training, on the way, and after: one picture that grows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dattn

from ..sheet import excerpt, sheet
from .asking import Size
from .moments import Moments
from .subject import Subject

CELL = 96
"""Width of a frame in the picture."""


class Validation:
    """Samples of the prompts, of the stock model at first.

    Args:
        subject: the pipeline.
        prompts: one or more.
        size: of the samples.
        options: of the command line.
        step: where training goes on; what was made up to there is shown again.
    """

    def __init__(self, subject: Subject, prompts: Sequence[str], size: Size, options: Any, step: int = 0) -> None:
        self._subject, self._prompts, self._size, self._options = subject, list(prompts), size, options
        self._kept = Moments(options.output / "validation", [*prompts, size, options.seed], step)
        if not self._kept.shown:
            self._note("before", 0)

    def on_the_way(self, step: int) -> None:
        """What it looks like in the middle of training, which goes on as if nothing had been."""
        model = self._subject.model
        model.eval()
        with own_forward(model), self._all_there():
            self._note(f"step {step}", step)
        model.train()

    def after(self, subject: Subject) -> None:
        """What came of it, in a subject: the LoRA, under the pattern."""
        self._subject = subject
        self._subject.pipeline.to(self._subject.model.device)
        with dattn.apply(self._subject.pipeline, self._subject.attention, dense_steps=0, **self._subject.schedule):
            self._note("after", None)

    @contextmanager
    def _all_there(self) -> Iterator[None]:
        """The parts that training has put away are where the model is."""
        self._subject.pipeline.to(self._subject.model.device)
        try:
            yield
        finally:
            self._subject.put_away()

    def _note(self, when: str, step: int | None) -> None:
        """Make the samples of a moment and write the picture of all; a reader never finds half of one."""
        made = self._subject.samples(self._prompts, self._size, self._options.seed)
        parts = {prompt: excerpt(clip, cell=CELL) for prompt, clip in made.items()}
        numbers = next(iter(parts.values()))[1]
        self._kept.add(when, step, {prompt: frames for prompt, (frames, _) in parts.items()})
        rows = {f"{prompt}, {moment}": clips[prompt] for prompt in self._prompts for moment, clips in self._kept.shown}
        title = f"{Path(self._options.model).name}, {self._options.max_train_steps} steps"
        part, whole = (self._options.output / name for name in ("validation.part.png", "validation.png"))
        sheet(rows, title, cell=CELL, numbers=numbers).save(part)
        part.replace(whole)


@contextmanager
def own_forward(model: Any) -> Iterator[None]:
    """The model without what accelerate wraps around it, whose outputs are of another type than the pipeline's."""
    own = vars(model).get("_original_forward")
    if own is None:
        yield
        return
    wrapped, model.forward = model.forward, own
    try:
        yield
    finally:
        model.forward = wrapped
