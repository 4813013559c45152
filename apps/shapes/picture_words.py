"""Teach the image models' text encoders what captions say, before any picture is drawn.

The encoders of real models come with their knowledge of language; learnt from pictures alone, ours would stay bags of
words for hours: a red circle above a blue square is then the same to them as a blue circle above a red square. Here
every state of a caption has to tell, through a linear readout that is thrown away, the object that its word belongs
to, where that is, and the other object; CLIP, which sees no later word, tells what it can. It takes a minute, and the
encoders are kept as they are afterwards.
"""

from __future__ import annotations

from itertools import permutations, product

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from .captions import COLORS, RELATIONS, SHAPES, Caption, Wanted

NOTHING = 0
"""Class of what a caption does not say; the others count from 1."""
QUESTIONS = (len(COLORS), len(SHAPES), len(RELATIONS), len(COLORS), len(SHAPES))
"""Answers to each, besides nothing: colour, shape and place of the own object, colour and shape of the other."""


def every_caption() -> list[Caption]:
    """The empty one is none of them: 18 of one object, 270 of two, 1 080 with a relation."""
    single = [(Wanted(color, shape),) for color, shape in product(COLORS, SHAPES)]
    pairs = [
        (Wanted(*first), Wanted(*second))
        for first, second in permutations(product(COLORS, SHAPES), 2)
        if first[0] != second[0]
    ]
    return [Caption(objects, relation) for objects in pairs for relation in (None, *RELATIONS)] + [
        Caption(objects) for objects in single
    ]


def answers(caption: Caption, length: int) -> torch.Tensor:
    """What each token of a caption is to tell: int64 ``[length, questions]``.

    The words up to the relation belong to the first object, all that follows, also the padding, to the last.
    """
    places = [NOTHING, NOTHING]
    if caption.relation is not None:
        directions = list(RELATIONS.values())
        x, y = RELATIONS[caption.relation]
        places = [1 + directions.index((x, y)), 1 + directions.index((-x, -y))]
    told = [(1 + COLORS.index(o.color), 1 + SHAPES.index(o.shape)) for o in caption.objects]
    told = told if len(told) > 1 else [*told, (NOTHING, NOTHING)]
    rows = [(*told[own], places[own], *told[1 - own]) for own in (0, 1)]
    last = rows[len(caption.objects) - 1]
    return torch.tensor([rows[0]] * 3 + [last] * (length - 3))


def teach(encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, steps: int = 1500, batch: int = 128) -> float:
    """Train a text encoder on every caption of the world; the mean share of right answers at the end."""
    length = tokenizer.model_max_length
    captions = every_caption()
    words = tokenizer([*map(str, captions), ""], padding="max_length", return_tensors="pt").input_ids
    nothing = torch.full((1, length, len(QUESTIONS)), NOTHING)
    wanted = torch.cat([torch.stack([answers(caption, length) for caption in captions]), nothing])
    readout = nn.Linear(encoder.config.hidden_size, sum(1 + n for n in QUESTIONS))
    weights = [*encoder.parameters(), *readout.parameters()]
    stepper = torch.optim.AdamW(weights, lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(stepper, 2e-3, total_steps=steps)
    encoder.requires_grad_(True).train()
    for _ in range(steps):
        rows = torch.randint(len(words), (batch,))
        right, loss = _ask(readout(encoder(words[rows])[0]), wanted[rows])
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        stepper.step()
        stepper.zero_grad()
        schedule.step()
    encoder.requires_grad_(False)
    return right


def _ask(told: torch.Tensor, wanted: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Share of right answers among all, and the mean cross-entropy; ``told [batch, length, answers]``."""
    parts = list(zip(told.split([1 + n for n in QUESTIONS], -1), wanted.unbind(-1), strict=True))
    losses = [nn.functional.cross_entropy(part.flatten(0, 1), right.flatten()) for part, right in parts]
    shares = [(part.argmax(-1) == right).float().mean() for part, right in parts]
    return float(torch.stack(shares).mean()), torch.stack(losses).mean()
