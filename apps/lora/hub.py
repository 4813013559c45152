"""Hugging Face data sets as files with captions: what the other ways to keep data are too."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .items import CAPTIONS, MEDIA, Item


def items_of_dataset(
    name: str,
    split: str,
    folder: Path,
    media: str | None = None,
    caption: str | None = None,
    config: str | None = None,
    prompt: str | None = None,
) -> list[Item]:
    """The pictures or clips of a data set, written to ``folder`` where they are not files already.

    Args:
        name: on the hub, or a folder that ``datasets.load_dataset`` reads.
        split: such as ``train``.
        folder: made where it is not there.
        media, caption: names of columns; by default the first that have a usual name.
        config: which of several data sets of that name.
        prompt: the caption of all where no column is named or has a usual name.

    Raises:
        ValueError: ``datasets`` is not installed, the data set cannot be loaded, or has no such columns.
    """
    try:
        import datasets
    except ImportError:
        raise ValueError("--dataset_name: the package datasets is not installed; pip install datasets") from None
    try:
        rows = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # whatever a missing network, name or split raises
        raise ValueError(f"--dataset_name {name}: cannot be loaded ({error})") from error
    media = _column(rows.column_names, media, MEDIA, "--media_column")
    if caption is not None or prompt is None or set(CAPTIONS) & set(rows.column_names):
        caption = _column(rows.column_names, caption, CAPTIONS, "--caption_column")
    kind = rows.features[media]
    if isinstance(kind, datasets.Image | datasets.Video):
        rows = rows.cast_column(media, type(kind)(decode=False))
    folder.mkdir(parents=True, exist_ok=True)
    told = (lambda row: str(prompt)) if caption is None else (lambda row: str(row[caption]))
    return [Item(_file(row[media], folder, f"{name}, row {i}"), told(row)) for i, row in enumerate(rows)]


def _column(there: Sequence[str], wanted: str | None, usual: Sequence[str], option: str) -> str:
    """The column that is wanted, or the first usual one that is there."""
    found = next((name for name in ([wanted] if wanted else usual) if name in there), None)
    if found is None:
        raise ValueError(f"{option} {wanted or 'is missing'}: the data set has {', '.join(there)}; name one of them")
    return found


def _file(value: Any, folder: Path, where: str) -> Path:
    """The file of an entry: its path, or its bytes, written under their hash so that several processes may.

    An entry that is neither becomes a file that is not there, which is reported and skipped like any such.
    """
    if isinstance(value, str):
        return Path(value)
    content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (None, None)
    if content is None:
        return Path(path or where)
    place = folder / f"{hashlib.sha256(content).hexdigest()[:32]}{Path(path or '').suffix or '.png'}"
    if not place.is_file():
        part = place.with_suffix(f".{os.getpid()}.part")
        part.write_bytes(content)
        part.replace(place)
    return place
