"""Controls that move the latents while a pipeline runs, so that a loss on word maps falls."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dattn.control.base import Call, Control, Layers, Place, check_layers
from dattn.control.map_store import resize, tells_words, word_maps
from dattn.control.solvers import goes_on_from_kept, take_as_it_is
from dattn.control.words import Phrase


class Enough(Exception):
    """All maps that a pass of the model was run for are there; the rest of the model need not run."""


class Optimize(Control):
    """Base of test-time optimisation: z ← z − α ∇_z L at the beginning of denoising steps.

    Latents are local to a pipeline's call, so the tensor that ``prepare_latents`` or the scheduler's last step gave is
    written to in place, and the model's input is made anew. The model runs as far as the last chosen layer, with
    gradients for the latents alone; memory is bounded by choosing early layers.

    Solvers with a corrector (UniPC) leave it out in the step after a move, which it would undo. Nothing is moved, with
    a warning, where a scheduler's step goes on from a sample that it kept (the second half of Heun's).

    Args:
        words: the words or phrases whose maps count.
        step_size: α at the first step; it falls to √½ of that over the call, as √(1 … ½).
        layers: the layers whose maps count; by default those of 16 x 16 tokens, or the level nearest to that.

    Raises:
        ValueError: no words, or a step size of 0 or less.
    """

    keeps_sums = True

    def __init__(self, words: Sequence[Phrase], step_size: float = 20.0, layers: Layers = None) -> None:
        self.words: list[Phrase] = [words] if isinstance(words, str) else list(words)
        if not self.words:
            raise ValueError("words=[]: give the words that the picture has to show, such as ['circle', 'square']")
        if not step_size > 0:
            raise ValueError(f"step_size={step_size!r}: give a number above 0; the published one is 20")
        self.step_size, self.layers = step_size, check_layers(layers)
        self._moved = -1
        self._dtype: torch.dtype | None = None
        self._wanted, self._maps = 0, list[Tensor]()
        self._looking = False

    @abstractmethod
    def move(self, latents: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """The latents for the step that begins, ``latents`` itself to leave them; ``arguments`` are the model's."""

    def start(self) -> None:
        """Forget the last call."""
        super().start()
        self._moved = -1

    def prepared(self, latents: Tensor) -> Tensor:
        """A copy: some pipelines go on with the very tensor that their user gave them."""
        self._dtype = latents.dtype
        return latents.clone()

    def stepped(self, latents: Tensor) -> Tensor:
        """In the precision in which the call began: what a pipeline would cast would be a copy out of reach."""
        return latents if self._dtype is None else latents.to(self._dtype)

    def inputs(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Move the latents once in a step, where the prompt is followed."""
        if self._looking:
            return arguments
        name, given = next(iter(arguments.items()))
        latents = self._checked(given)
        rows = self.stage.rows(len(given))
        if self._moved != self.stage.step and rows.stop > rows.start:
            self._compare(given, self._as_input(latents, given))
            self._move(latents, arguments)
            self._moved = self.stage.step
        return arguments if self._moved != self.stage.step else {**arguments, name: self._as_input(latents, given)}

    def _move(self, latents: Tensor, arguments: Mapping[str, Any]) -> None:
        """Write where the latents are moved to into them."""
        scheduler = self.stage.pipeline.scheduler
        if goes_on_from_kept(scheduler):
            warnings.warn(
                f"dattn: {type(self).__name__} leaves out steps in which {type(scheduler).__name__} goes on from a "
                "sample that it kept, where a move would be lost",
                stacklevel=2,
            )
            return
        own = latents.detach().clone()
        with torch.enable_grad():
            moved = self.move(own, arguments)
        if moved is not own:
            latents.copy_(moved)
            take_as_it_is(scheduler)

    def _as_input(self, latents: Tensor, given: Tensor) -> Tensor:
        """What a pipeline makes of latents for its model: scaled by the scheduler, once for every guidance branch."""
        scheduler, stage = self.stage.pipeline.scheduler, self.stage
        if hasattr(scheduler, "scale_model_input"):
            time = scheduler.timesteps[len(scheduler.timesteps) - stage.steps + stage.step]
            latents = scheduler.scale_model_input(latents, time)
        return latents.repeat(len(given) // len(latents), *[1] * (latents.ndim - 1)).to(given.dtype)

    def _checked(self, given: Any) -> Tensor:
        """The pipeline's latents.

        Raises:
            ValueError: they are not known, or the model is given something else than a batch of them.
        """
        name, latents = type(self).__name__, self.stage.latents
        if latents is None or not isinstance(given, Tensor):
            raise ValueError(
                f"{name} moves the latents of a pipeline, which has to call its model with one tensor of them; "
                "apply it to such a pipeline, not to a bare model"
            )
        if self.stage.samples > 1 and len(self.stage.texts) > 1:
            raise ValueError(
                f"{name}: this model attends to each sample by itself; call the pipeline for one at a time"
            )
        return latents

    def _compare(self, given: Tensor, made: Tensor) -> None:
        if given.shape != made.shape or not torch.allclose(given, made, atol=1e-3, rtol=1e-2):
            raise ValueError(
                f"{type(self).__name__}: this pipeline's model is not given the plain latents {tuple(made.shape)} but "
                f"{tuple(given.shape)}, with something beside them, which is not supported"
            )

    def look(self, latents: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """The maps of the words at such latents: [samples, words, frames, height, width], differentiable.

        Raises:
            ValueError: no layer looks at the prompt, or attention has no gradient.
        """
        name, given = next(iter(arguments.items()))
        self._wanted, found, self._looking = 0, list[Tensor](), True
        self._maps = found
        try:
            self.stage.observe(self, {**arguments, name: self._as_input(latents, given)})
        except Enough:
            pass
        finally:
            self._maps, self._looking = [], False
        if not found:
            raise ValueError(f"{type(self).__name__}: no layer looks at the prompt in {self.layers!r}: choose others")
        frames, height, width = found[0].shape[-3:]
        together = torch.stack([resize(maps, (frames, height, width)) for maps in found]).mean(0)
        if latents.requires_grad and torch.is_grad_enabled() and not together.requires_grad:
            raise ValueError(
                f"{type(self).__name__} follows gradients of attention, of which this model's backend has none: call "
                'set_attention_backend("native") on the model, or choose layers without this pattern'
            )
        return together

    def acts(self, place: Place) -> bool:
        """Where text is seen, while maps are looked for."""
        acts = self._looking and tells_words(self.layers, self.stage, place)
        self._wanted += acts
        return acts

    def edit(self, call: Call) -> Tensor:
        """Take the maps; attention as it is, until there is enough."""
        if call.rows.stop > call.rows.start:
            self._maps.append(self.maps_of(call))
        if len(self._maps) == self._wanted:
            raise Enough
        return call.attend()

    def maps_of(self, call: Call) -> Tensor:
        """The maps of a layer, [samples, words, frames, height, width]."""
        return word_maps(call, self, [self.words]).mean(1).float()

    def descend(self, latents: Tensor, loss: Tensor) -> Tensor:
        """Latents after a step down the gradient of a loss that was computed at them, summed over samples."""
        (gradient,) = torch.autograd.grad(loss, latents)
        share = self.stage.step / max(1, self.stage.steps - 1)
        return (latents - self.step_size * (1 - share / 2) ** 0.5 * gradient).detach()
