"""What the commands' options have in common: how they are read, and what is wrong with them in one line."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from dattn.grid import TokenGrid

STOCK = ("stock", "dense")
"""Patterns by which the commands mean the pipeline untouched."""


class Parser(argparse.ArgumentParser):
    """A parser that reports a mistake as a ``ValueError``, which ``dattn`` prints as one line."""

    def __init__(self, command: str, description: str, examples: str) -> None:
        super().__init__(
            prog=f"dattn {command}",
            description=description,
            epilog=f"examples:\n{examples}\n\nany command takes --traceback: show where an error comes from",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving."""
        raise ValueError(f"{message} (see {self.prog} --help)")


def at_least(low: int) -> Callable[[str], int]:
    """An option type: a whole number from ``low`` on."""

    def whole(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if number < low:
            raise argparse.ArgumentTypeError(f"{text}: must be at least {low}")
        return number

    return whole


def count_or_share(text: str) -> int | float:
    """An option type: a count such as 3, or a fraction such as 0.25, of steps or layers."""
    try:
        number = float(text) if any(c in text for c in ".eE") else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a count nor a fraction") from None
    if number < 0 or (isinstance(number, float) and not number < 1):
        raise argparse.ArgumentTypeError(f"{text}: give a count from 0 on, or a fraction in [0, 1)")
    return number


def fraction(text: str) -> float:
    """An option type: a number in [0, 1)."""
    return _number(text, lambda number: 0 <= number < 1, "a number from 0 on and below 1")


def positive(text: str) -> float:
    """An option type: a number above 0."""
    return _number(text, lambda number: 0 < number < float("inf"), "a number above 0")


def _number(text: str, fits: Callable[[float], bool], rule: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not fits(number):
        raise argparse.ArgumentTypeError(f"{text}: give {rule}")
    return number


def axes(text: str, separator: str, names: str) -> tuple[int, int, int]:
    """Three whole numbers, as in ``21x30x52``.

    Raises:
        argparse.ArgumentTypeError: not three of them.
    """
    parts = text.split(separator)
    if len(parts) != 3 or not all(p.strip().isdecimal() for p in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: write {names}, such as {separator.join(('21', '30', '52'))}")
    frames, height, width = map(int, parts)
    return frames, height, width


def grid(text: str) -> tuple[int, int, int]:
    """An option type: ``FRAMESxHEIGHTxWIDTH`` in tokens, none of them 0."""
    shape = axes(text, "x", "FRAMESxHEIGHTxWIDTH")
    if min(shape) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: every axis needs at least 1 token")
    return shape


def token(text: str) -> tuple[int, int, int]:
    """An option type: the place of a token, ``FRAME,ROW,COLUMN``, from 0."""
    return axes(text, ",", "FRAME,ROW,COLUMN")


def token_index(place: tuple[int, int, int], grid: TokenGrid) -> int:
    """Where a place lies in the raster order of a grid, text before it included.

    Raises:
        ValueError: a place outside the grid.
    """
    if any(p >= n for p, n in zip(place, grid.shape, strict=True)):
        raise ValueError(f"token {place}: outside the grid {grid.shape}; each number must be below the axis")
    frame, row, column = place
    return grid.text_before + (frame * grid.height + row) * grid.width + column


def writable_folder(folder: Path) -> Path:
    """Make sure that files can be written under ``folder``, without making it yet.

    Raises:
        ValueError: a file is in the way, or the place cannot be written to.
    """
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise ValueError(f"output {folder}: {place} is a file, not a folder; name another place")
    try:
        Path(tempfile.mkdtemp(prefix=".dattn-", dir=place)).rmdir()
    except OSError as error:
        raise ValueError(f"output {folder}: cannot write there ({error.strerror}); name another place") from None
    return folder


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Options that say what runs, and on what."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", metavar="FOLDER_OR_NAME", help="a Diffusers folder, a hub name or a demo model (default: shapes-wan)"
    )
    group.add_argument("--lora", type=Path, metavar="PLACE", help="a LoRA to put on it, of dattn train-lora or others")
    group.add_argument("--device", help="cpu, cuda, cuda:1, mps, … (default: cuda where there is one)")
    group.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="(default: by device)")
    group.add_argument("--backend", default="auto", help="attention backend of the pattern (default: %(default)s)")


def add_clip_options(parser: argparse.ArgumentParser) -> None:
    """Options that say what is made; what is not given is the pipeline's own default."""
    group = parser.add_argument_group("clip")
    positive = at_least(1)
    group.add_argument("--prompt", metavar="TEXT", help="what to show")
    group.add_argument("--frames", type=positive, help="how many frames (demo model: 129, 4x its native length)")
    group.add_argument("--height", type=positive, help="pixels")
    group.add_argument("--width", type=positive, help="pixels")
    group.add_argument("--steps", type=positive, help="denoising steps")
    group.add_argument("--guidance", type=float, help="guidance scale")
    group.add_argument("--seed", type=at_least(0), default=0, help="(default: %(default)s)")
    group.add_argument("--fps", type=positive, default=16, help="of the video file (default: %(default)s)")


def add_schedule_options(parser: argparse.ArgumentParser) -> None:
    """Options that say where attention stays dense."""
    group = parser.add_argument_group("schedule (a count, or a fraction of all such as 0.25)")
    group.add_argument("--dense-steps", type=count_or_share, metavar="N", help="first steps left dense")
    group.add_argument("--dense-layers", type=count_or_share, metavar="N", help="first layers left dense")
