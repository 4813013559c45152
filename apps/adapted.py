"""Rows with a LoRA of their own: ``PATTERN + PLACE``, such as ``Radial() + my-lora`` or ``stock + my-lora``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .loading import put_on

AND = " + "


def parts(text: str) -> tuple[str, Path | None]:
    """What is applied, and the folder or file of the LoRA that it runs with; None for none."""
    attention, _, place = text.partition(AND)
    return attention.strip(), Path(place.strip()) if place.strip() else None


@contextmanager
def with_lora(pipe: Any, place: Path | None) -> Iterator[None]:
    """A pipeline with a LoRA, for a while.

    Raises:
        ValueError: there is none, it is not for this pipeline, or the pipeline has one already.
    """
    if place is None:
        yield
        return
    if hasattr(pipe, "get_list_adapters") and any(pipe.get_list_adapters().values()):
        raise ValueError(f"lora {place}: the model has one already; leave --lora out, or '{AND}{place}'")
    put_on(pipe, place)
    try:
        yield
    finally:
        pipe.unload_lora_weights()
