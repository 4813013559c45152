"""What a run has besides a LoRA where it learns new words: their vectors, told captions, losses on their maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dattn.control.base import Control

from .asking import Manner, told_with_graph
from .concept_masks import Spread
from .concepts import SIZE, Concept, ConceptMaps, binding, masking
from .subject import Subject
from .tokens import NewTokens

CLEAR = 0.15
"""The noise level at which a picture is looked at for masks; its authors: times up to 300 of 1000."""


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
        masks: [concepts, height, width] by example, where these are asked for.
    """

    subject: Subject
    tokens: NewTokens
    concepts: Sequence[Concept]
    weights: Weights
    rate: float
    masks: dict[int, Tensor] = field(default_factory=dict)

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
        if self.masks:
            masks = torch.stack([self.masks[i] for i in examples]).to(maps.device)
            total = total + self.weights.masking * masking(maps, masks, present)
        return total

    @torch.no_grad()
    def find_masks(self, count: int, forward: Callable[[int, float], Any]) -> None:
        """Fill ``masks`` for so many examples, if they are asked for.

        Args:
            forward: runs the model on an example at a noise level, watched for its caption.
        """
        for example in range(count if self.weights.masking and self.concepts else 0):
            forward(example, CLEAR)
            if not self.maps.present.any():
                self.masks[example] = torch.zeros(len(self.concepts), SIZE, SIZE)
                continue
            maps = self.maps.maps()[:, :, 1]
            there = self.maps.present[:, :, None, None].to(maps)
            self.spread.watch(maps * there)
            forward(example, CLEAR)
            self.masks[example] = (self.spread.masks() * there)[0].cpu()
            self.spread.watch(None)


def personal_of(options: Any, subject: Subject) -> Personal | None:
    """The new words that the options name; None where they name none.

    Raises:
        ValueError: concepts without new words, or in a model whose text is not what ``tokenizer`` writes.
    """
    if not options.placeholder_token:
        if options.concept:
            raise ValueError(f"--concept {options.concept[0]!r}: name its new word with --placeholder_token")
        return None
    if options.concept and subject.component != "unet":
        raise ValueError(f"--concept: maps of words are those of a UNet's cross-attention, this is {subject.component}")
    tokens = NewTokens(subject.pipeline, options.placeholder_token, options.initializer_token)
    concepts = [Concept.read(text, tokens.placeholders) for text in options.concept]
    weights = Weights(options.binding_weight, options.masking_weight)
    return Personal(subject, tokens, concepts, weights, options.token_learning_rate)
