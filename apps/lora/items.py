"""What there is to learn from: pictures or clips and their captions, in any of the ways in which people keep them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CLIPS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".gif")
CAPTIONS = ("text", "caption", "prompt")
MEDIA = ("file_name", "video_path", "image_path", "video", "image", "path")


class Item(NamedTuple):
    """A picture or clip, and what is to be seen in it."""

    path: Path
    caption: str


def find_items(place: Path, prompt: str | None = None) -> list[Item]:
    """All that a folder or a ``.jsonl`` file names.

    Args:
        prompt: the caption of files that have none beside them, which are left out otherwise.

    A folder has ``metadata.jsonl`` (``file_name``, ``text``), or ``prompts.txt`` with ``videos.txt`` or ``images.txt``
    line by line, or files with captions of the same name (``a.mp4``, ``a.txt``), in subfolders too. Lines of a
    ``.jsonl`` file have a path, relative to that file, and a caption.

    Raises:
        ValueError: nothing there, lists of different lengths, lines that name nothing.
    """
    if not place.exists():
        raise ValueError(f"data {place}: no such folder or file")
    items = list(_of_lines(place) if place.is_file() else _of_folder(place, prompt))
    if not items:
        raise ValueError(
            f"data {place}: nothing to learn from; put metadata.jsonl (file_name, text) there, or prompts.txt and "
            "videos.txt, or each clip's caption beside it (a.mp4, a.txt), or give one for all: --instance_prompt"
        )
    return items


def check_there(items: Sequence[Item]) -> None:
    """Raise ``ValueError`` where no file of any item is there: before a model is loaded for nothing."""
    if not any(item.path.is_file() for item in items):
        first = f", such as {items[0].path}" if items else ""
        raise ValueError(f"data: none of {len(items)} files is there{first}; look at where paths start from")


def chosen(items: list[Item], most: int | None, seed: int) -> list[Item]:
    """At most so many of the items, in their order."""
    if most is None or most >= len(items):
        return items
    return [items[i] for i in sorted(random.Random(seed).sample(range(len(items)), most))]


def _of_folder(folder: Path, prompt: str | None) -> Iterator[Item]:
    if (folder / "metadata.jsonl").is_file():
        return _of_lines(folder / "metadata.jsonl")
    if (folder / "prompts.txt").is_file():
        return _of_lists(folder)
    return _of_pairs(folder, prompt)


def _of_lines(path: Path) -> Iterator[Item]:
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            file = next(entry[name] for name in MEDIA if name in entry)
            caption = next(entry[name] for name in CAPTIONS if name in entry)
            if not isinstance(file, str) or not isinstance(caption, str):
                raise TypeError
        except (json.JSONDecodeError, StopIteration, TypeError):
            raise ValueError(
                f"{path}, line {number}: write an object with one of {', '.join(MEDIA)} and one of "
                f"{', '.join(CAPTIONS)}, both of them text"
            ) from None
        yield Item(path.parent / file, caption)


def _of_lists(folder: Path) -> Iterator[Item]:
    captions = _lines(folder / "prompts.txt")
    lists = [folder / name for name in ("videos.txt", "images.txt") if (folder / name).is_file()]
    if not lists:
        raise ValueError(f"data {folder}: prompts.txt without videos.txt or images.txt")
    files = _lines(lists[0])
    if len(files) != len(captions):
        raise ValueError(f"data {folder}: {len(captions)} prompts for {len(files)} lines of {lists[0].name}")
    pairs = [pair for pair in zip(files, captions, strict=True) if any(pair)]
    if not all(map(all, pairs)):
        raise ValueError(f"data {folder}: a line of prompts.txt or {lists[0].name} is empty, and the other's is not")
    return (Item(folder / file, caption) for file, caption in pairs)


def _lines(path: Path) -> list[str]:
    """Stripped, without empty ones at the end; those between keep their place."""
    return [line.strip() for line in path.read_text().rstrip().splitlines()]


def _of_pairs(folder: Path, prompt: str | None) -> Iterator[Item]:
    for path in sorted(folder.rglob("*")):
        caption = path.with_suffix(".txt")
        if path.suffix.lower() not in PICTURES + CLIPS:
            continue
        if caption.is_file():
            yield Item(path, caption.read_text().strip())
        elif prompt is not None:
            yield Item(path, prompt)
