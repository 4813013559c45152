"""What a run has besides a LoRA where it learns new words: their vectors, told captions, losses on their maps.

Masks, where they are asked for, are found in a look at every example before the first step, and again now and then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dattn.control.base import Control
from dattn.control.map_store import resize

from .asking import Manner, told_with_graph
from .concept_masks import SIDE, Spread, alike
from .concept_sampling import chances, drawn, scores_of, subsets, told
from .concepts import Concept, ConceptMaps, binding, masking
from .subject import Subject
from .tokens import NewTokens

CLEAR = 0.15
"""The noise level at which a picture is looked at for masks: the mean of its authors', times up to 300 of 1000."""
FOUND = "concepts."
"""Of masks and scores in a checkpoint, before their kind and the example."""


@dataclass
class Weights:
    """Of the losses on maps, beside the model's own."""

    binding: float = 0.0
    masking: float = 0.0


@dataclass
class Personal:
    """New words of a subject's pipeline, and what is asked of them.

    Attributes:
        rate: learning rate of the vectors.
        sampling: which concepts a step is about, see ``concept_sampling``.
        every: masks are looked for again after so many steps; 0: never.
        masks: [concepts, SIDE, SIDE] by example, where these are asked for.
        scores: mean attention to each concept's word in its mask, [concepts], by example, as masks.
    """

    subject: Subject
    tokens: NewTokens
    concepts: Sequence[Concept]
    weights: Weights
    rate: float
    sampling: str = "all"
    every: int = 20
    masks: dict[int, Tensor] = field(default_factory=dict)
    scores: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.maps, self.spread = ConceptMaps(self.tokens, self.concepts), Spread()

    @property
    def controls(self) -> list[Control]:
        """What is applied to the model; nothing where no concepts are named."""
        return [self.maps, self.spread] if self.concepts else []

    def tell(self, captions: Sequence[str], manner: Manner) -> Mapping[str, Tensor]:
        """What the pipeline tells its model of captions, with the graph to the vectors."""
        subject = self.subject
        return told_with_graph(subject.pipeline, subject.model, manner, captions, subject.call)

    def watch(self, captions: Sequence[str]) -> None:
        """A forward pass for these captions comes."""
        if self.concepts:
            self.maps.watch(captions)

    def loss(self, examples: Sequence[int]) -> Tensor:
        """Of the maps of the last forward pass, of these examples; 0 where there is nothing to ask."""
        present = self.maps.present
        if not self.concepts or not present.any():
            return torch.zeros(())
        maps = self.maps.maps()
        present = present.to(maps.device)
        total = self.weights.binding * binding(maps, present)
        if self.weights.masking:
            masks = torch.stack([self.masks[i] for i in examples]).to(maps.device)
            total = total + self.weights.masking * masking(maps, masks, present)
        return total

    def about(self, example: int, caption: str, generator: torch.Generator) -> tuple[str, Tensor | None]:
        """What a step on an example tells of, and where its error counts, [SIDE, SIDE]; None: everywhere.

        It is the whole picture where a concept that the caption names has no mask.
        """
        if self.sampling == "all" or not any(named := self.maps.named(caption)):
            return caption, None
        there, masks = [i for i, yes in enumerate(named) if yes], self.masks[example]
        if any(masks[i].sum() == 0 for i in there):
            return caption, None
        sets = subsets(there)
        members = drawn(sets, chances(sets, self.sampling, self.scores[example]), generator)
        return caption if len(members) == len(there) else told(self.concepts, members), masks[list(members)].amax(0)

    def look(self, step: int, count: int, forward: Callable[[int, float], Any]) -> None:
        """Before a step: fill ``masks`` and ``scores`` of so many examples, if it is time and they are asked for.

        Args:
            forward: runs the model on an example at a noise level, watched for its caption.
        """
        wanted = self.concepts and (self.weights.masking or self.sampling != "all")
        if not wanted or (self.masks and not (self.every and step % self.every == 0)):
            return
        for example in range(count):
            masks, words = self._found(example, forward)
            if example not in self.masks or alike(masks, self.masks[example]):
                self.masks[example] = masks
            self.scores[example] = scores_of(words, self.masks[example])

    @torch.no_grad()
    def _found(self, example: int, forward: Callable[[int, float], Any]) -> tuple[Tensor, Tensor]:
        """The masks of an example and the maps of its new words, each [concepts, SIDE, SIDE]."""
        forward(example, CLEAR)
        if not self.maps.present.any():
            nothing = torch.zeros(len(self.concepts), SIDE, SIDE)
            return nothing, nothing
        maps = self.maps.maps()
        there = self.maps.present[:, :, None, None].to(maps)
        self.spread.watch(maps[:, :, 1] * there)
        forward(example, CLEAR)
        masks = (self.spread.masks() * there)[0].cpu()
        self.spread.watch(None)
        return masks, resize(maps[0, :, :1], (1, SIDE, SIDE))[:, 0].clamp(min=0).cpu()

    def state(self) -> dict[str, Tensor]:
        """All of a checkpoint that is no part of the model, by name, on the CPU."""
        found = {"masks": self.masks, "scores": self.scores}
        places = {f"{FOUND}{kind}.{i}": one for kind, all_of in found.items() for i, one in all_of.items()}
        return self.tokens.weights() | places

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Put back what ``state`` gave."""
        self.tokens.restore(saved)
        for name in (name for name in saved if name.startswith(FOUND)):
            kind, example = name.removeprefix(FOUND).split(".")
            {"masks": self.masks, "scores": self.scores}[kind][int(example)] = saved[name]


def personal_of(options: Any, subject: Subject) -> Personal | None:
    """The new words that the options name; None where they name none.

    Raises:
        ValueError: concepts without new words, or in a model whose text is not what ``tokenizer`` writes; a choice
            among concepts without any.
    """
    if not options.placeholder_token:
        if options.concept:
            raise ValueError(f"--concept {options.concept[0]!r}: name its new word with --placeholder_token")
        return None
    if options.concept and subject.component != "unet":
        raise ValueError(f"--concept: maps of words are those of a UNet's cross-attention, this is {subject.component}")
    if options.concept_sampling != "all" and not options.concept:
        raise ValueError(f"--concept_sampling {options.concept_sampling}: name what to choose from with --concept")
    tokens = NewTokens(subject.pipeline, options.placeholder_token, options.initializer_token)
    concepts = [Concept.read(text, tokens.placeholders) for text in options.concept]
    weights = Weights(options.binding_weight, options.masking_weight)
    sampling, every = options.concept_sampling, options.mask_steps
    return Personal(subject, tokens, concepts, weights, options.token_learning_rate, sampling, every)
