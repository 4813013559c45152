"""Rows with a LoRA of their own: ``PATTERN + PLACE``, such as ``Radial() + my-lora`` or ``stock + my-lora``.

``… + my-lora from 0.25`` leaves it out of the first quarter of the steps.
"""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from .arguments import fraction
from .loading import put_on

AND, FROM = " + ", " from "


class Parts(NamedTuple):
    """What a row says.

    Attributes:
        attention: what is applied.
        lora: the folder or file of the LoRA that it runs with; None for none.
        start: the share of the steps that come before the LoRA acts.
    """

    attention: str
    lora: Path | None
    start: float

    def acting(self, pipe: Any) -> AbstractContextManager[Any]:
        """The LoRA on a pipeline acts from ``start`` on, beside what is applied, for a while."""
        from dattn.control import LoRAWindow

        return LoRAWindow((self.start, 1.0)).on(pipe) if self.start else nullcontext()


def parts(text: str) -> Parts:
    """Take a row's text apart.

    Raises:
        ValueError: a start that is no number from 0 to below 1.
    """
    attention, _, adapter = text.partition(AND)
    place, _, start = adapter.partition(FROM)
    try:
        share = fraction(start) if start else 0.0
    except (ArgumentTypeError, ValueError) as error:
        raise ValueError(f"{text!r}: after{FROM}{error}") from error
    return Parts(attention.strip(), Path(place.strip()) if place.strip() else None, share)


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
