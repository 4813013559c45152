"""Examples that are validated on and never trained on."""

from __future__ import annotations

import torch

from .cache import Example, Prepared

SHARE, MOST = 0.1, 8
"""Of the files, and at most so many, where nothing is said; of fewer than ten none, which are needed to learn from."""


def hold_out(prepared: Prepared, wanted: int | float | None, seed: int) -> Prepared:
    """Hold some files out, chosen by the seed; whatever else has the same content is left out of training too.

    Args:
        wanted: how many files, or which share of them; None for a tenth, at most ``MOST``.

    Raises:
        ValueError: nothing would be left to train on.
    """
    contents = list(dict.fromkeys(example.content for example in prepared.examples))
    share = SHARE if wanted is None else wanted
    count = share if isinstance(share, int) else int(share * len(contents))
    count = min(count, MOST) if wanted is None else count
    if count >= len(contents):
        raise ValueError(
            f"--validation_split {wanted}: of {len(contents)} files none is left to train on; hold out fewer"
        )
    generator = torch.Generator().manual_seed(hash((seed, 3)) % 2**63)
    chosen = {contents[i] for i in torch.randperm(len(contents), generator=generator)[:count].tolist()}
    return _without(prepared, [example for example in prepared.examples if example.content in chosen])


def validated_on(prepared: Prepared, others: Prepared) -> Prepared:
    """Validate on other data; what is in both is left out of training.

    Raises:
        ValueError: nothing would be left to train on.
    """
    both = prepared._replace(
        manners=others.manners | prepared.manners,
        nothing=others.nothing | prepared.nothing,
        skipped=prepared.skipped + others.skipped,
    )
    found = _without(both, others.examples)
    if not found.examples:
        raise ValueError("--validation_data: it has all files of the data, none is left to train on; name other data")
    return found


def _without(prepared: Prepared, held_out: list[Example]) -> Prepared:
    contents = {example.content for example in held_out}
    rest = [example for example in prepared.examples if example.content not in contents]
    return prepared._replace(examples=rest, held_out=held_out)
