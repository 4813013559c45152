"""Patterns: who may attend to whom. One file per pattern; add yours to the table."""

from __future__ import annotations

import ast
from typing import Any

from dattn.patterns.base import Pattern
from dattn.patterns.block_causal import BlockCausal
from dattn.patterns.dense import Dense
from dattn.patterns.grouped import Grouped
from dattn.patterns.multi_axis import MultiAxis
from dattn.patterns.neighborhood import Neighborhood
from dattn.patterns.radial import Radial
from dattn.patterns.sliding_tile import SlidingTile
from dattn.patterns.sparse_frames import SparseFrames
from dattn.patterns.windows import Windows

_ALL = (Dense, Radial, Neighborhood, Grouped, SlidingTile, SparseFrames, BlockCausal, Windows, MultiAxis)
PATTERNS: dict[str, type[Pattern]] = {pattern.__name__: pattern for pattern in _ALL}

__all__ = [
    "PATTERNS",
    "BlockCausal",
    "Dense",
    "Grouped",
    "MultiAxis",
    "Neighborhood",
    "Pattern",
    "Radial",
    "SlidingTile",
    "SparseFrames",
    "Windows",
    "pattern_from_dict",
    "pattern_from_string",
]


def pattern_from_dict(data: dict[str, Any]) -> Pattern:
    """The pattern that ``Pattern.to_dict`` wrote.

    Raises:
        ValueError: no dict with a known name, or fields that the pattern does not take.
    """
    if not isinstance(data, dict) or "name" not in data:
        raise ValueError(f"{data!r} describes no pattern: give a dict with a name, such as {{'name': 'Radial'}}")
    arguments = {key: value for key, value in data.items() if key != "name"}
    return _make(data["name"], (), arguments)


def pattern_from_string(text: str) -> Pattern:
    """A pattern as written on the command line: ``radial`` or ``"Radial(decay=0.2)"``; literals only.

    Raises:
        ValueError: an unknown pattern, an argument that is no literal, or a value that the pattern refuses.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        if not isinstance(call.func, ast.Name) or any(k.arg is None for k in call.keywords):
            raise ValueError("a name and its arguments are wanted")
        positional = tuple(ast.literal_eval(a) for a in call.args)
        arguments = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg}
    except (SyntaxError, ValueError, TypeError) as error:
        raise ValueError(
            f"{text!r} is no pattern: write a name and literal arguments, such as radial or 'Radial(decay=0.2)'"
        ) from error
    return _make(call.func.id, positional, arguments)


def _make(name: Any, positional: tuple[Any, ...], arguments: dict[str, Any]) -> Pattern:
    found = {known.lower(): cls for known, cls in PATTERNS.items()}.get(str(name).lower())
    if found is None:
        raise ValueError(f"unknown pattern {name!r}: choose one of {', '.join(PATTERNS)}")
    try:
        return found(*positional, **arguments)
    except TypeError as error:
        known = ", ".join(found.__dataclass_fields__) or "none"
        raise ValueError(f"{found.__name__} with {arguments or positional}: its arguments are {known}") from error
