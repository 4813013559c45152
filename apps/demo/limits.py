"""What a visitor may ask for: everything that comes over the network is checked here."""

from __future__ import annotations

import ast
import math
import random
from dataclasses import dataclass
from typing import Any

from dattn.grid import TokenGrid
from dattn.registry import pattern_from_string

from ..arguments import STOCK

LONGEST_PROMPT, MOST_STEPS, LARGEST_SEED = 1000, 200, 2**32 - 1
WITH_FILES = ("gate", "learnedgate")
"""Parts of patterns that open files."""
WORDS = (
    *("row", "head", "layer", "own", "neighbours", "first_frame", "sink"),
    *("block", "cross", "grid", "alternate", "random", "half", "auto", "weight", "error"),
    *("full", "pooled", "cached", "none"),
)
"""Texts that patterns take and that name no file."""


@dataclass(frozen=True)
class Limits:
    """Of one request.

    Attributes:
        pixels: frames × height × width at most.
        tokens: that a layer may attend to.
        seconds: that it may run.
    """

    pixels: int
    tokens: int
    seconds: float

    def prompt(self, text: Any, name: str = "Prompt") -> str:
        """A text that can be shown.

        Raises:
            ValueError: none, or a very long one.
        """
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name}: say what to show")
        if len(text) > LONGEST_PROMPT:
            raise ValueError(f"{name}: {len(text)} characters; {LONGEST_PROMPT} are the most")
        return text.strip()

    def size(self, frames: Any, height: Any, width: Any, multiple: int) -> tuple[int, int, int]:
        """Frames, height and width that this machine may be asked for.

        Raises:
            ValueError: no whole numbers, sides that the model cannot make, too much.
        """
        numbers = [
            whole(value, name, low)
            for value, name, low in ((frames, "Frames", 1), (height, "Height", multiple), (width, "Width", multiple))
        ]
        for name, side in zip(("Height", "Width"), numbers[1:], strict=True):
            if side % multiple:
                raise ValueError(f"{name} {side}: this model makes multiples of {multiple} pixels")
        if math.prod(numbers) > self.pixels:
            shape = f"{' × '.join(map(str, numbers))} = {math.prod(numbers):,} pixels"
            raise ValueError(f"{shape}: {self.pixels:,} are the most here; ask for less")
        return numbers[0], numbers[1], numbers[2]

    def grid(self, grid: TokenGrid) -> TokenGrid:
        """Tokens that this machine may be asked for: a layer's work grows with their square.

        Raises:
            ValueError: too many.
        """
        if grid.tokens > self.tokens:
            most = f"{self.tokens:,} are the most here"
            raise ValueError(f"{grid.tokens:,} tokens: {most}; ask for fewer frames or a smaller size")
        return grid

    def steps(self, value: Any) -> int:
        """Denoising steps.

        Raises:
            ValueError: none, or too many.
        """
        return whole(value, "Steps", 1, MOST_STEPS)

    def number(self, value: Any, name: str, low: float, high: float) -> float:
        """A number in a range.

        Raises:
            ValueError: anything else.
        """
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"{name} {str(value)[:40]!r}: give a number from {low:g} to {high:g}")
        return float(value)

    def seed(self, value: Any) -> int:
        """A seed.

        Raises:
            ValueError: no whole number from 0 to 2³² - 1.
        """
        return whole(value, "Seed", 0, LARGEST_SEED)


def fresh_seed() -> int:
    """A seed that nobody chose."""
    return random.randrange(LARGEST_SEED)


def whole(value: Any, name: str, low: int, high: int | None = None) -> int:
    """A whole number in a range.

    Raises:
        ValueError: anything else.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or int(value) != value or value < low or (high is not None and value > high):
        room = f"from {low} on" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} {str(value)[:40]!r}: give a whole number {room}")
    return int(value)


def attention(text: Any) -> str:
    """A pattern as visitors may write it: one that opens no file.

    Raises:
        ValueError: no pattern, or one that reads from disk.
    """
    if not isinstance(text, str) or not text.strip() or len(text) > LONGEST_PROMPT:
        raise ValueError("Pattern: choose one, or write it as in code, such as Radial(block_size=64)")
    text = text.strip()
    if text.lower() in STOCK:
        return "stock"
    text = _without_files(text)
    try:
        pattern_from_string(text)
    except (RecursionError, MemoryError, OverflowError) as error:
        raise ValueError(f"Pattern {text[:40]!r}: it cannot be read ({type(error).__name__})") from None
    return text


def _without_files(text: str) -> str:
    """The pattern alone, without what Python does not read, if it names no file."""
    try:
        tree = ast.parse(text, mode="eval")
        if isinstance(tree.body, ast.Name):  # as a call, since presets have such names too
            tree.body = ast.Call(tree.body, [], [])
        nodes, text = list(ast.walk(tree)), ast.unparse(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"Pattern {text[:40]!r}: write it as in code, such as Radial(block_size=64)") from None
    names = {node.id.lower() for node in nodes if isinstance(node, ast.Name)}
    strings = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    if names & set(WITH_FILES) or any(value not in WORDS for value in strings):
        raise ValueError(f"Pattern {text[:60]!r}: patterns that read files are not served here; use the library")
    return text
