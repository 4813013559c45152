"""What an edit of a prompt is made of: the controls that the words ask for, and the call that shows source and edit."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

import dattn
from dattn.control import Control, HeatMaps, Refine, Replace, Reweight
from dattn.control.words import Phrase

from ..loading import Loaded
from ..running import Request, clips_of, telling
from .studio import OnStep

MOST_WORDS = 12
HALF = 0.5
"""Of the steps whose words keep the source's layout, those that keep its self-attention too."""


@dataclass(frozen=True)
class Edited:
    """Source and edit, uint8 [frames, height, width, 3] each, the maps of the edit's words, and the seconds."""

    source: np.ndarray
    edit: np.ndarray
    maps: HeatMaps
    seconds: float


def words_of(source: str, edit: str) -> list[str]:
    """The edit's words, once each, those that the source lacks first; not more than ``MOST_WORDS``."""
    there = source.lower().split()
    return sorted(dict.fromkeys(edit.split()), key=lambda word: word.lower() in there)[:MOST_WORDS]


def controls_of(source: str, edit: str, keep: float, strengths: Mapping[str, float]) -> list[Control]:
    """Prompt-to-Prompt's controls from the source to the edit.

    Args:
        keep: share of the steps in which the layout of the source is kept; 0 keeps nothing.
        strengths: of the edit's words; those of 1 change nothing.
    """
    found: list[Control] = []
    if keep and source != edit:
        kind = Replace if len(source.split()) == len(edit.split()) else Refine
        found.append(kind(cross=keep, inject=keep * HALF))
    changed: dict[Phrase, float] = {word: value for word, value in strengths.items() if value != 1}
    if changed:
        found.append(Reweight(changed, prompts=[1]))
    return found


def maps_of(words: Sequence[str], joint: int) -> HeatMaps:
    """Maps of the edit's words.

    Args:
        joint: layers of a model that attends to text and picture together, of which the last third tells words apart
            best (shapes-flux: places of a word get 2 to 3 times the mean there, less than the mean before); 0 of
            models that have cross-attention, whose layers all count.
    """
    return HeatMaps(words, layers=range(2 * joint // 3, joint) if joint else None, prompts=[1])


def edited(
    loaded: Loaded, request: Request, edit: str, controls: Sequence[Control], maps: HeatMaps, on_step: OnStep
) -> Edited:
    """Make both of the same noise, in one call.

    Args:
        request: for the source.
        controls: as ``controls_of`` gives.
        maps: as ``maps_of`` gives.

    Raises:
        ValueError: what a control refuses.
    """
    call = request.call(loaded) | {"prompt": [request.prompt, edit]}
    call["generator"] = [torch.Generator().manual_seed(request.seed) for _ in range(2)]
    if "negative_prompt" in call:
        call["negative_prompt"] = [call["negative_prompt"]] * 2
    if "callback_on_step_end" in loaded.arguments:
        call["callback_on_step_end"] = telling(partial(on_step, "edit"))
    loaded.pipe.set_progress_bar_config(disable=True)
    began = time.perf_counter()
    with dattn.apply(loaded.pipe, None, control=[*controls, maps]):
        source, other = clips_of(loaded.pipe(**call))
    return Edited(source, other, maps, time.perf_counter() - began)


def overlaid(made: Edited, word: str) -> list[Any]:
    """The edit's frames with a word's map over each (PIL)."""
    if len(made.edit) == 1:
        return [made.maps.overlay(made.edit[0], word, sample=1)]
    return made.maps.video(list(made.edit), word, sample=1)
