"""How much memory a computation would take, found out without doing it: on tensors that have shapes and no numbers."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that are made while it is on, for as long as each of them lives.

    Attributes:
        most: bytes that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.most = self._now = 0
        self._holders: Counter[int] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Do what is asked, and count what it made; views share what they are views of."""
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._hold(tensor)
        return made

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        self._now += 0 if self._holders[key] else size
        self._holders[key] += 1
        self.most = max(self.most, self._now)
        weakref.finalize(tensor, self._let_go, key, size)

    def _let_go(self, key: int, size: int) -> None:
        self._holders[key] -= 1
        self._now -= 0 if self._holders[key] else size


class _Fused(TorchFunctionMode):
    """Attention without its map, as kernels compute it."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **given)
        query, _, value = (*args, *(given[name] for name in ("query", "key", "value")[len(args) :]))[:3]
        return query.new_empty(*query.shape[:-1], value.shape[-1])


@torch.no_grad()
def peak(run: Callable[[], Any]) -> int:
    """Bytes of the tensors that a computation makes, at its fullest; those that were there before are not counted."""
    with Live() as live, _Fused():
        run()
    return live.most
