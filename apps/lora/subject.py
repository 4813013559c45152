"""What is trained: a pipeline, one of its models, and the attention that it trains under."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dattn
from dattn.control.base import Control

from ..loading import load, native, resolve
from .asking import Arguments, Size

STEPS = 50
"""Of the denoising call that training stands for."""


@dataclass(frozen=True)
class Subject:
    """A pipeline whose model is trained.

    Attributes:
        pipeline: the stock pipeline.
        component: the name of the model in it.
        attention: what it trains under; None is stock.
        schedule: ``dense_layers`` and ``backend`` for ``dattn.apply``.
        call: further arguments of the pipeline's calls.
    """

    pipeline: Any
    component: str
    attention: Any
    schedule: dict[str, Any]
    call: dict[str, Any]

    @property
    def model(self) -> Any:
        """The model that is trained."""
        return getattr(self.pipeline, self.component)

    @property
    def between(self) -> tuple[float, float]:
        """The noise levels that the model is asked for: of two, one has those above a boundary."""
        boundary = self.pipeline.config.get("boundary_ratio")
        if boundary is None or getattr(self.pipeline, "transformer_2", None) is None:
            return 0.0, 1.0
        return (0.0, boundary) if self.component == "transformer_2" else (boundary, 1.0)

    def sparse(self, teacher: bool, controls: Sequence[Control] = ()) -> Callable[[float | None], None]:
        """Put the pattern on the model, and give the call that says where in a denoising call it is.

        That is a share of the steps, in [0, 1], for patterns that change over them; None stands for stock attention,
        which a teacher has.
        """
        if self.attention is None and not controls:
            return lambda done: None
        options = {"dense_steps": int(teacher), "control": list(controls) or None, **self.schedule}
        handle = dattn.apply(self.model, self.attention, **options)

        def place(done: float | None) -> None:
            if done is None:
                handle.step(0, STEPS)  # the dense one
            elif self.attention is not None:
                handle.step(max(int(teacher), min(int(done * STEPS), STEPS - 1)), STEPS)

        return place

    def write_recipe(self, path: Path, arguments: Arguments, dense_steps: float) -> None:
        """The pattern as a recipe, after a share of dense steps, with the grid of a forward pass."""
        with dattn.apply(self.model, self.attention, dense_steps=dense_steps, **self.schedule) as handle:
            handle.step(STEPS - 1, STEPS)
            with torch.no_grad():
                self.model(**arguments, return_dict=False)
            handle.save_recipe(path)

    def put_away(self, but: str = "") -> None:
        """Move what is needed for data alone off the device, and leave what is named so there."""
        for name, part in self.pipeline.components.items():
            if isinstance(part, torch.nn.Module) and name not in (self.component, but):
                part.to("cpu")

    def samples(self, prompts: Sequence[str], size: Size, seed: int) -> dict[str, np.ndarray]:
        """A clip for each prompt, under what is applied: uint8 [frames, height, width, 3]."""
        takes = inspect.signature(type(self.pipeline).__call__).parameters
        wanted = dict(zip(("num_frames", "height", "width"), size, strict=True))
        call = {name: value for name, value in wanted.items() if name in takes} | self.call
        made = {}
        for prompt in prompts:
            generator = torch.Generator().manual_seed(seed)
            told = {"generator": generator, **call, "output_type": "np", "return_dict": False}
            clip = np.asarray(self.pipeline(prompt, **told)[0][0])
            made[prompt] = (clip.reshape(-1, *clip.shape[-3:]) * 255).round().astype(np.uint8)
        return made


def subject_of(options: Any, attention: Any, device: str, dtype: str) -> Subject:
    """Load what the options name.

    Raises:
        ValueError: no such model, or none such in the pipeline.
    """
    pipeline = load(str(options.model), device, dtype, revision=options.revision, variant=options.variant).pipe
    pipeline.set_progress_bar_config(disable=True)
    there = [name for name in ("transformer", "unet", "transformer_2") if getattr(pipeline, name, None) is not None]
    component = options.component or there[0]
    if component not in there:
        raise ValueError(f"--component {component}: the pipeline has {', '.join(there)}")
    source = resolve(str(options.model))
    demo = native(source) if isinstance(source, Path) else None
    own = {name: value for name, value in (demo.extra if demo else {}).items() if name == "max_sequence_length"}
    dense = {} if options.dense_layers is None else {"dense_layers": options.dense_layers}
    call = own | options.pipeline_args | _named(options, pipeline, getattr(pipeline, component))
    return Subject(pipeline, component, attention, {"backend": options.backend, **dense}, call)


def _named(options: Any, pipeline: Any, model: Any) -> dict[str, Any]:
    """Arguments of the pipeline's calls that have options of their own.

    Raises:
        ValueError: a pipeline that does not take them, or guidance that is no input of the model.
    """
    takes = inspect.signature(type(pipeline).__call__).parameters
    given = {name: getattr(options, name) for name in ("max_sequence_length", "guidance_scale")}
    for name, value in given.items():
        if value is not None and name not in takes:
            raise ValueError(f"--{name} {value}: {type(pipeline).__name__} takes none; leave it out")
    if given["guidance_scale"] is not None and not model.config.get("guidance_embeds"):
        raise ValueError(
            f"--guidance_scale {given['guidance_scale']}: no input of {type(model).__name__} here, and training has no "
            "other guidance; leave it out"
        )
    return {name: value for name, value in given.items() if value is not None}
