"""The forward passes of a pipeline's denoisers: recorded, answered from a record, or made again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

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
        with torch.compiler.set_stance("force_eager"):  # a graph would hold what it heard when it was made
            yield
    finally:
        for tap in taps:
            tap.remove()


def numbers(result: Any) -> Tensor:
    """All numbers of what a model gave, float64 [n]: of a tensor, a tuple, a list or an output of Diffusers."""
    return torch.cat([leaf.flatten().double() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)])
