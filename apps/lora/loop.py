"""The training loop: accelerate around one step that is a function of seed and position."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dattn.control.map_store import on_latents

from . import checkpoints
from .adapting import restore, weights
from .asking import Size
from .cache import Example, Prepared, load_latents, load_told
from .interrupts import uninterrupted
from .lessons import Lessons
from .norms import PREFIX as NORMS
from .norms import Norms
from .objective import Noise, Objective
from .optimizing import Optimizing
from .order import Order
from .personal import FOUND, Personal
from .sharding import anywhere, reshard
from .tokens import PREFIX

VALIDATION = 2**40
"""Positions of validation batches start here, where no training gets."""


@dataclass
class Settings:
    """What a run is made of, beside data and model; see ``dattn train-lora --help``."""

    output: Path
    steps: int
    batch: int = 1
    accumulate: int = 1
    optimizing: Optimizing = field(default_factory=Optimizing)
    clip: float = 1.0
    noise: Noise = field(default_factory=Noise)
    dropout: float = 0.0
    distill: bool = False
    teach_epochs: int | None = None
    guidance: float | None = None
    seed: int = 0
    checkpoint_every: int = 500
    checkpoint_limit: int | None = None
    validate_every: int = 100
    resume: str | None = None
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """A short hash of all that tells the run from others."""
        return hashlib.sha256(json.dumps(self.told, sort_keys=True).encode()).hexdigest()[:16]


class Batch:
    """Noisy latents of some examples, and what is to be predicted: the same for the same seed and position.

    Where the settings name a guidance, every example is there twice, the second time without its caption.

    Args:
        prepared: the data.
        examples: all of one size.
        number: the batch's position.
        levels: noise levels, [batch]; None draws them.
        personal: new words to learn, which change what captions tell from step to step.
        indices: of the examples in the data, where a step may be about some of their concepts.
    """

    def __init__(
        self,
        prepared: Prepared,
        objective: Objective,
        settings: Settings,
        examples: Sequence[Example],
        number: int,
        device: Any,
        levels: Tensor | None = None,
        personal: Personal | None = None,
        indices: Sequence[int] = (),
    ) -> None:
        generator = torch.Generator().manual_seed(hash((settings.seed, 1, number)) % 2**63)
        size: Size = examples[0].size
        self.manner = prepared.manners[size]
        objective = objective.shifted(self.manner.shift)
        clean = torch.cat([load_latents(example) for example in examples])
        noise = torch.randn(clean.shape, generator=generator)
        drawn = objective.levels(len(examples), settings.noise, generator)
        dropped = (torch.rand(len(examples), generator=generator) < settings.dropout).tolist()
        left_out = [drop and levels is None for drop in dropped]
        self.captions = ["" if out else e.caption for e, out in zip(examples, left_out, strict=True)]
        areas: list[Tensor | None] = [None] * len(examples)
        if personal is not None and indices:
            about = [personal.about(i, text, generator) for i, text in zip(indices, self.captions, strict=True)]
            self.captions, areas = [text for text, _ in about], [area for _, area in about]
        if personal is None:
            files = [prepared.nothing[size] if out else e.told for e, out in zip(examples, left_out, strict=True)]
            files += [prepared.nothing[size]] * len(files) if settings.guidance else []
            read = [load_told(file) for file in files]
            told: Mapping[str, Tensor] = {name: _stacked(name, [one[name] for one in read]) for name in read[0]}
        else:
            told = personal.tell(self.captions, self.manner)
        levels = drawn if levels is None else levels
        self.done, self.weights = objective.done(levels), objective.weights(levels, settings.noise).to(device)
        latents, times, target = objective.noisy(clean, noise, levels)
        self.target, self._area, self._guidance = target.to(device), _laid_over(areas, target), settings.guidance
        if settings.guidance:
            latents, times = torch.cat([latents, latents]), torch.cat([times, times])
        self.arguments = self.manner.arguments(
            latents.to(device),
            times.to(device),
            {name: tensor.to(device) for name, tensor in told.items()},
        )

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The mean squared error of what is predicted, where the step is about something, weighted by noise level."""
        error = self.error(prediction, target)
        error = error if self._area is None else error * self._area.to(error)
        return (self.weights * error.square().flatten(1).mean(1)).mean()

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """What is wrong with predictions, float32; under a guidance g of u + g (c - u), over g.

        The errors of c and u meet there with factors g and 1 - g, so what they have in common counts little, and what
        they differ in much.
        """
        error = prediction.float() - target.float()
        if not self._guidance:
            return error
        told, untold = error.chunk(2)
        return told + (1 / self._guidance - 1) * untold


def _laid_over(areas: Sequence[Tensor | None], latents: Tensor) -> Tensor | None:
    """Areas [height, width], None for everywhere, in a shape that multiplies latents; None where all are."""
    given = [area for area in areas if area is not None]
    if not given:
        return None
    whole = torch.ones_like(given[0])
    stacked = torch.stack([whole if area is None else area for area in areas])
    return on_latents(stacked[:, None], latents, mode="bilinear")


def _stacked(name: str, tensors: list[Tensor]) -> Tensor:
    if len({tensor.shape for tensor in tensors}) > 1:
        raise ValueError(f"captions give {name} of different shapes: train with --train_batch_size 1")
    return torch.cat(tensors)


def put_back(model: nn.Module, norms: Norms | None, saved: dict[str, Tensor]) -> None:
    """Give a model with LoRA what a checkpoint has of it."""
    beside = checkpoints.taken(saved, NORMS)
    restore(model, saved)
    if norms is not None:
        norms.restore({name.removeprefix(NORMS): tensor for name, tensor in beside.items()})


class Trainer:
    """Trains the parameters of a model that want gradients.

    Args:
        accelerator: of accelerate.
        model: with LoRA.
        prepared: the data.
        objective: what the model predicts.
        settings: of the run.
        moment: called before every pass, see ``Subject.sparse``.
        personal: new words to learn as well.
        norms: weights of normalisation that learn as well.
    """

    def __init__(
        self,
        accelerator: Any,
        model: Any,
        prepared: Prepared,
        objective: Objective,
        settings: Settings,
        moment: Callable[[float | None], None] = lambda done: None,
        personal: Personal | None = None,
        norms: Norms | None = None,
    ) -> None:
        self.accelerator, self.plain, self.settings = accelerator, model, settings
        self._prepared, self._objective, self._moment = prepared, objective, moment
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        beside = [] if norms is None else list(norms.parameters.values())
        ours = {id(parameter) for parameter in beside}
        groups: list[dict[str, Any]] = [{"params": [p for p in learning if id(p) not in ours]}]
        self._norms, self._personal, self._alone = norms, personal, []
        if norms is not None:
            groups.append({"params": beside, "lr": norms.rate or settings.optimizing.rate, "weight_decay": 0.0})
        if personal is not None:
            self._alone = [personal.tokens.vectors]  # no part of the model, so nobody else brings processes together
            groups.append({"params": self._alone, "lr": personal.rate, "weight_decay": 0.0})
        optimizer = settings.optimizing.optimizer(groups)
        self._rate = settings.optimizing.scheduler(optimizer, settings.steps)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self._learning = [p for p in model.parameters() if p.requires_grad]  # others than before, where it is sharded
        if norms is not None:
            norms.follow(model)
        self._order = Order([example.size for example in prepared.examples], settings.batch, settings.seed)
        self._lessons = Lessons(
            settings.output / "taught" / settings.digest,
            settings.teach_epochs and settings.teach_epochs * self._order.per_epoch,
            self._anywhere,
        )
        self.step = 0

    def resume(self) -> None:
        """Go on from the checkpoint that the settings name."""
        if self.settings.resume is None:
            return
        state = checkpoints.read(self.settings.output, self.settings.resume)
        if state is None:
            return
        told = {name: value for name, value in state.told.items() if name != "scaler"}
        changed = [name for name in self.settings.told | told if told.get(name) != self.settings.told.get(name)]
        changed.sort(key="examples".__eq__)  # other options may be why these differ
        if changed:
            was, now = told.get(changed[0]), self.settings.told.get(changed[0])
            raise ValueError(
                f"resume_from_checkpoint {self.settings.resume}: {changed[0]} was {was!r}, now it is {now!r}; go on "
                "with the same"
            )
        own = checkpoints.taken(state.weights, (PREFIX, FOUND))
        if own and self._personal is None:
            raise ValueError(f"resume_from_checkpoint {self.settings.resume}: it learned new words; name them again")
        put_back(self.plain, self._norms, state.weights)
        if self._personal is not None:
            self._personal.restore(own)
        checkpoints.restore_numbers(self.optimizer.optimizer, state.optimizer)
        self.step = state.step
        for _ in range(state.step):
            self._rate.step()
        scaler = state.told.get("scaler")
        if scaler and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(scaler)

    def write(self) -> None:
        """Write a checkpoint on the main process; all take part, as each may have but its part of it."""
        scaler = self.accelerator.scaler
        told = self.settings.told | ({"scaler": scaler.state_dict()} if scaler is not None else {})
        numbers = checkpoints.numbers_of(self.optimizer.optimizer)
        own = {} if self._personal is None else self._personal.state()
        norms = {} if self._norms is None else self._norms.weights()
        beside = own | {NORMS + name: tensor for name, tensor in norms.items()}
        state = checkpoints.State(self.step, weights(self.plain) | beside, numbers, told)
        if self.accelerator.is_main_process:
            checkpoints.write(self.settings.output, state, self.settings.checkpoint_limit)

    def run(self, report: Callable[[dict[str, float]], None]) -> None:
        """Train to the last step; a checkpoint is written where the user interrupts.

        Processes that share a model stop together, after a step.
        """
        self.model.train()
        held: AbstractContextManager[list[int]] = uninterrupted() if self.accelerator.is_fsdp2 else nullcontext([])
        with held as asked:
            if self.settings.validate_every and self.step == 0:
                report({"validation_loss": self.validation_loss()})
            try:
                while self.step < self.settings.steps:
                    self._reported_step(report)
                    if self._anywhere(bool(asked)):
                        raise KeyboardInterrupt
            except KeyboardInterrupt:
                self.write()
                raise

    def forget(self) -> None:
        """Remove what was kept for this run alone."""
        self._lessons.forget()

    def _anywhere(self, so: bool) -> bool:
        return anywhere(self.accelerator, so)

    def _reported_step(self, report: Callable[[dict[str, float]], None]) -> None:
        """A step with what is due after it."""
        began = time.perf_counter()
        told = {"loss": self._one_step()}
        told |= {"seconds": time.perf_counter() - began, "lr": self._rate.get_last_lr()[0]}
        if self.settings.validate_every and self.step % self.settings.validate_every == 0:
            told["validation_loss"] = self.validation_loss()
        report(told)
        if self.step % self.settings.checkpoint_every == 0 and self.step < self.settings.steps:
            self.write()

    def _one_step(self) -> float:
        """All batches of a step; the mean loss over all processes."""
        settings, accelerator = self.settings, self.accelerator
        if self._personal is not None:
            self._personal.look(self.step, len(self._prepared.examples), self.look)
        total = torch.zeros((), device=accelerator.device)
        for part in range(settings.accumulate):
            number = (self.step * settings.accumulate + part) * accelerator.num_processes + accelerator.process_index
            last = part == settings.accumulate - 1
            with nullcontext() if last else accelerator.no_sync(self.model):
                loss = self._loss(number) / settings.accumulate
                accelerator.backward(loss)
            total += loss.detach()
        for vectors in self._alone:
            vectors.grad = accelerator.reduce(vectors.grad, "mean")
        if settings.clip:
            accelerator.unscale_gradients()  # accelerate's own clipping would do this twice under FSDP
            nn.utils.clip_grad_norm_(self._learning, settings.clip)
        with uninterrupted():
            self.optimizer.step()
            self.optimizer.zero_grad()
            self._rate.step()
            self.step += 1
        return float(accelerator.reduce(total, "mean"))

    def _loss(self, number: int) -> Tensor:
        """Of the batch at a position."""
        position = self._lessons.position(number)
        indices = self._order[position]
        batch = self._batch([self._prepared.examples[i] for i in indices], position, indices=indices)
        torch.manual_seed(hash((self.settings.seed, 2, number)) % 2**63)  # dropout inside the model
        target = batch.target
        if self.settings.distill:
            target = self._lessons.target(position, lambda: self._teacher(batch)).to(target.device)
        if self._personal is not None:
            self._personal.watch(batch.captions)
        self._moment(batch.done)
        with self.accelerator.autocast():
            output = self.model(**batch.arguments, return_dict=False)
        loss = batch.loss(batch.manner.prediction(output), target)
        return loss if self._personal is None else loss + self._personal.loss(indices).to(loss)

    def look(self, example: int, level: float) -> None:
        """A forward pass of one example at a noise level, watched for its new words."""
        batch = self._batch([self._prepared.examples[example]], VALIDATION + example, torch.tensor([level]))
        assert self._personal is not None
        self._personal.watch(batch.captions)
        self._moment(batch.done)
        with self.accelerator.autocast():
            self.plain(**batch.arguments, return_dict=False)

    def _batch(
        self, examples: Sequence[Example], number: int, levels: Tensor | None = None, indices: Sequence[int] = ()
    ) -> Batch:
        shared = (self._prepared, self._objective, self.settings, examples, number, self.accelerator.device)
        return Batch(*shared, levels, self._personal, indices)

    @torch.no_grad()
    def _teacher(self, batch: Batch) -> Tensor:
        """What the model predicts without what it learned and by stock attention."""
        self._moment(None)
        reshard(self.plain)
        self.plain.disable_adapters()
        try:
            with self.accelerator.autocast(), nullcontext() if self._norms is None else self._norms.untrained():
                return batch.manner.prediction(self.plain(**batch.arguments, return_dict=False))
        finally:
            reshard(self.plain)
            self.plain.enable_adapters()

    @torch.no_grad()
    def validation_loss(self, levels: Sequence[float] = (0.2, 0.5, 0.8)) -> float:
        """The loss of what is held out at fixed noise and times, so that it can be compared over a run.

        Where the model itself teaches, what it says is the target here too.
        """
        self.plain.eval()
        losses = []
        for number, example in enumerate(self._prepared.validated):
            for level in levels:
                batch = self._batch([example], VALIDATION + number, self._objective.fixed(level))
                target = self._teacher(batch) if self.settings.distill else batch.target
                self._moment(batch.done)
                with self.accelerator.autocast():
                    output = self.plain(**batch.arguments, return_dict=False)
                losses.append(batch.error(batch.manner.prediction(output), target).square().mean())
        self.plain.train()
        return float(torch.stack(losses).mean())

    def forward_arguments(self) -> dict[str, Any]:
        """Arguments of one forward pass, for a check of what was saved."""
        return self._batch(self._prepared.examples[:1], 0, self._objective.fixed(0.5)).arguments
