"""Methods of one object that are listened to: wrapped on the instance, and unwrapped without a trace."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

from torch import Tensor


class Tapped:
    """A method whose result goes through ``after``; a deep copy of its owner gets the plain method."""

    def __init__(self, method: Callable[..., Any], after: Callable[[Any], Any]) -> None:
        self._method = method
        self._after = after
        functools.update_wrapper(self, method)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The method, and after it ``after``."""
        return self._after(self._method(*args, **kwargs))

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Any]:
        method = self._method
        if not isinstance(method, MethodType):
            return method
        return MethodType(method.__func__, memo.get(id(method.__self__), method.__self__))


def untapped(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method past the wrapper that listens to it, for calls that are not its owner's user's."""
    return method._method if isinstance(method, Tapped) else method


class Tap:
    """Base of what wraps methods of one object; ``remove`` leaves the instance as it was."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self._before: dict[str, Any] = {}

    def put(self, name: str, tapped: Tapped) -> None:
        """Put a wrapper in place of a method."""
        self._before[name] = vars(self._owner).get(name)
        setattr(self._owner, name, tapped)

    def remove(self) -> None:
        """Take the wrappers off; one that someone has since replaced is left alone."""
        for name, before in self._before.items():
            if not isinstance(vars(self._owner).get(name), Tapped):
                continue
            if before is None:
                delattr(self._owner, name)
            else:
                setattr(self._owner, name, before)


def edited(result: Any, edit: Callable[[Tensor], Tensor]) -> Any:
    """What a method gave, with its first tensor edited: a tensor, a tuple, or an output of Diffusers."""
    if isinstance(result, Tensor):
        return edit(result)
    if isinstance(result, tuple):
        return edit(result[0]), *result[1:]
    first = next(iter(result.keys()))
    result[first] = edit(result[first])
    return result
