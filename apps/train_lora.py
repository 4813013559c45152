"""``dattn train-lora``: fine-tune a model of any family with LoRA, under any attention."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .arguments import STOCK
from .lora.reading import read_options

if TYPE_CHECKING:
    from .lora.items import Item


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    options = read_options(argv)
    from .lora.clips import bucket
    from .lora.items import chosen, find_items

    try:
        buckets = [bucket(text) for text in options.buckets]
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"--buckets {error}") from None
    found = find_items(options.data, options.instance_prompt) if options.data else _of_dataset(options)
    items = _there(chosen(found, options.max_train_samples, options.seed), options)
    other = options.validation_data
    validated = _there(find_items(other, options.instance_prompt), options) if other else []
    attention = None if options.attention in STOCK else options.attention
    if attention == "auto":
        raise ValueError(
            "--attention auto: chooses for each clip, and would train nothing in particular; name a pattern, a preset "
            "or a recipe, such as one that dattn tune wrote"
        )
    if options.estimate:
        from .lora.estimate import lines

        print("\n".join(lines(options, attention, buckets, len(items))))
    else:
        from .lora.run import train

        train(options, attention, buckets, items, validated, argv)
    return 0


def _there(items: list[Item], options: argparse.Namespace) -> list[Item]:
    """Items some of which are there, with their captions whole."""
    from .lora.items import check_there

    check_there(items)
    before = f"{options.id_token} " if options.id_token else ""
    return [item._replace(caption=before + item.caption) for item in items]


def _of_dataset(options: argparse.Namespace) -> list[Item]:
    from .lora.hub import items_of_dataset

    folder = (options.cache_dir or options.output / "cache") / "dataset"
    return items_of_dataset(
        options.dataset_name,
        options.dataset_split,
        folder,
        options.media_column,
        options.caption_column,
        options.dataset_config_name,
        options.instance_prompt,
    )


if __name__ == "__main__":
    import sys

    from .cli import main as dattn

    sys.exit(dattn(["train-lora", *sys.argv[1:]]))
