"""The forward passes of a pipeline's denoisers: recorded, answered from a record, or made again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from dattn.tapped import Tap, Tapped

Again = Callable[[], Any]
"""Makes the pass that is under way, as often as it is called."""


class _Heard(Tapped):
    """A forward that hands each pass to ``after``, which says what it gives."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._after(lambda: self._method(*args, **kwargs))


@contextmanager
def heard(models: Iterable[nn.Module], hear: Callable[[Again], Any]) -> Any:
    """Let ``hear`` make every forward pass of the models, for the length of a ``with`` block."""
    taps = [Tap(model) for model in models]
    try:
        for tap in taps:
            tap.put("forward", _Heard(tap._owner.forward, hear))
        yield
    finally:
        for tap in taps:
            tap.remove()


def first_tensor(result: Any) -> Tensor:
    """The first tensor of what a model gave: a tensor, a tuple, or an output of Diffusers."""
    if isinstance(result, Tensor):
        return result
    return result[0]
