"""The options of ``dattn train-lora`` as they are given: on the command line, over those of a file."""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .options import parser

SEPARATOR = ":::"
"""Between validation prompts that are given as one, as in the scripts for CogVideoX."""
ONLY_OF: dict[str, tuple[str, tuple[Any, ...]]] = {
    "norm_learning_rate": ("train_norms", (True,)),
    "lr_num_cycles": ("lr_scheduler", ("cosine_with_restarts",)),
    "lr_power": ("lr_scheduler", ("polynomial",)),
    "teach_epochs": ("distill", (True,)),
    "distill_guidance": ("distill", (True,)),
}
"""Options that act only with some values of another."""


def read_options(argv: Sequence[str]) -> argparse.Namespace:
    """The options of the command line, over those of a config file.

    Raises:
        ValueError: what is wrong with them.
    """
    own = parser()
    words = [_underscored(word) for word in argv]
    config = own.parse_args(words).config
    options = own.parse_args([*(_words(config, own) if config is not None else []), *words])
    if options.data and options.dataset_name:
        raise ValueError(f"--data {options.data} and --dataset_name {options.dataset_name}: give one of them")
    if options.validation_data and options.validation_split is not None:
        data, split = options.validation_data, options.validation_split
        raise ValueError(f"--validation_data {data} and --validation_split {split}: give one of them")
    if options.teach_epochs and options.placeholder_token:
        raise ValueError(f"--teach_epochs {options.teach_epochs}: captions with new words change; leave it out")
    _check_guidance(options)
    options.buckets = _buckets(options)
    options.validation_prompts = [p for text in options.validation_prompts for p in text.split(SEPARATOR)]
    for name in ("model", "buckets") if options.dataset_name else ("model", "data", "buckets"):
        if not getattr(options, name):
            raise ValueError(f"--{name} is missing (see dattn train-lora --help)")
    if not 0 <= options.caption_dropout <= 1:
        raise ValueError(f"--caption_dropout {options.caption_dropout}: a share, 0 to 1")
    for name, (other, values) in ONLY_OF.items():
        value, there = getattr(options, name), getattr(options, other)
        if value is not None and there not in values:
            raise ValueError(f"--{name} {value}: acts with --{other} {', '.join(map(str, values))}, this is {there}")
    return options


def _check_guidance(options: argparse.Namespace) -> None:
    scale = options.distill_guidance
    if scale is None:
        return
    if not 1 < scale < 100:
        raise ValueError(f"--distill_guidance {scale:g}: a guidance scale above 1 and below 100; leave it out for none")
    if options.placeholder_token:
        raise ValueError(f"--distill_guidance {scale:g}: the model's own captions teach; new words have no teacher")
    if options.caption_dropout:
        raise ValueError(
            f"--distill_guidance {scale:g}: every example is seen with and without its caption; leave out "
            f"--caption_dropout {options.caption_dropout:g}"
        )


def _buckets(options: argparse.Namespace) -> list[str]:
    """The sizes, written in full where they are given as one.

    Raises:
        ValueError: sizes that are given in two ways, or in half of one.
    """
    names = ("resolution", "height", "width", "num_frames")
    given = [f"--{name}" for name in names if getattr(options, name) is not None]
    if not given:
        return list(options.buckets or [])
    sides = [options.height, options.width]
    if options.buckets or (options.resolution and any(sides)):
        raise ValueError(f"{', '.join(given)}: give one size by --resolution or --height and --width, or --buckets")
    if not options.resolution and not all(sides):
        raise ValueError(f"{', '.join(given)}: a size needs --resolution, or --height and --width")
    size = options.resolution or f"{options.height}x{options.width}"
    return [f"{options.num_frames or 1}x{size if 'x' in size else f'{size}x{size}'}"]


def _underscored(word: str) -> str:
    """An option's name as the parser knows it; values stay."""
    if not word.startswith("--"):
        return word
    name, *value = word[2:].split("=", 1)
    return "=".join(["--" + name.replace("-", "_"), *value])


def _words(path: Path, own: argparse.ArgumentParser) -> list[str]:
    """A config file as words of the command line."""
    try:
        text = path.read_text()
        told = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise ValueError(f"config {path}: {error}") from None
    words: list[str] = []
    for name, value in told.items():
        option = "--" + name.replace("-", "_")
        if option not in own._option_string_actions:
            raise ValueError(f"{path}: unknown option {name!r} (see dattn train-lora --help)")
        if isinstance(value, bool):
            words += [option] if value else []
        elif isinstance(value, list):
            words += [option, *map(str, value)]
        else:
            words.append(f"{option}={json.dumps(value) if isinstance(value, dict) else value}")
    return words
