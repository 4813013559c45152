"""Patterns and operators by name: from the dicts of recipes, and as written on the command line."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from typing import Any

from dattn.operators import OPERATORS
from dattn.orders import ORDERS
from dattn.patterns import DYNAMIC, PATTERNS, SETTINGS
from dattn.scores import SCORES
from dattn.selection import SELECTS
from dattn.spec import Named, Spec

SPECS: dict[str, type[Spec]] = {**PATTERNS, **DYNAMIC, **OPERATORS}
PARTS: dict[str, type[Named]] = {**SCORES, **SELECTS, **ORDERS}
"""What dynamic patterns are made of."""
_KNOWN: dict[str, Callable[..., Named]] = {**SPECS, **SETTINGS, **PARTS}
_BY_LOWER_CASE = {name.lower(): make for name, make in _KNOWN.items()}


def pattern_from_dict(data: dict[str, Any]) -> Spec:
    """The pattern or operator that its ``to_dict`` wrote.

    Raises:
        ValueError: no dict with a known name, or fields that it does not take.
    """
    return _spec(_from_dict(data))


def _from_dict(data: dict[str, Any]) -> Named:
    if not isinstance(data, dict) or "name" not in data:
        raise ValueError(f"{data!r} describes no pattern: give a dict with a name, such as {{'name': 'Radial'}}")
    arguments = {key: _from_plain(value) for key, value in data.items() if key != "name"}
    return _make(data["name"], (), arguments)


def _from_plain(value: Any) -> Any:
    """A field from JSON, nested dicts with a name as what they name."""
    if isinstance(value, list | tuple):
        return tuple(map(_from_plain, value))
    return _from_dict(value) if isinstance(value, dict) and "name" in value else value


def pattern_from_string(text: str) -> Spec:
    """A pattern or operator as written on the command line: ``radial`` or ``"Reshaped(Radial(decay=0.2))"``.

    Arguments are literals, and patterns written the same way.

    Raises:
        ValueError: an unknown name, an argument of another kind, or a value that is refused.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
        parsed = _parse(node if isinstance(node, ast.Call) else ast.Call(node, [], []))
    except (SyntaxError, TypeError, _NoLiteralError) as error:
        raise ValueError(
            f"{text!r} is no pattern: write a name and literal arguments, such as radial or 'Radial(decay=0.2)'"
        ) from error
    return _spec(parsed)


def _spec(made: Named) -> Spec:
    """What was made, if it can stand in for attention.

    Raises:
        ValueError: a part of a pattern alone.
    """
    if not isinstance(made, Spec):
        raise ValueError(f"{made.name} is a part of a pattern: write one around it, such as Selected({made.name}(…))")
    return made


def static_from_string(text: str) -> Any:
    """A static pattern as written on the command line.

    Raises:
        ValueError: as ``pattern_from_string``, or an operator.
    """
    pattern = pattern_from_string(text)
    if not pattern.static:
        raise ValueError(f"pattern {text}: only attention computes it; give a static pattern, see dattn patterns")
    return pattern


class _NoLiteralError(Exception):
    """An expression that is neither a literal nor a pattern."""


def _parse(node: ast.expr) -> Any:
    """A literal, or a call of a known name, inside of tuples, lists and dicts too."""
    if isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name) or any(k.arg is None for k in node.keywords):
            raise _NoLiteralError
        arguments = {k.arg: _parse(k.value) for k in node.keywords if k.arg}
        return _make(node.func.id, tuple(map(_parse, node.args)), arguments)
    if isinstance(node, ast.Name):
        return _make(node.id, (), {})
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(map(_parse, node.elts))
    if isinstance(node, ast.Dict):
        return {_parse(k): _parse(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None}
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise _NoLiteralError from error


def _make(name: Any, positional: tuple[Any, ...], arguments: dict[str, Any]) -> Named:
    make = _BY_LOWER_CASE.get(str(name).lower())
    if make is None:
        raise ValueError(f"unknown pattern {name!r}: choose one of {', '.join([*SPECS, *SETTINGS])}")
    signature = inspect.signature(make)
    try:
        signature.bind(*positional, **arguments)
    except TypeError as error:
        known = ", ".join(signature.parameters) or "none"
        raise ValueError(f"{make.__name__} with {arguments or positional}: its arguments are {known}") from error
    return make(*positional, **arguments)
