"""Latents and what a pipeline tells its model of captions, made once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from .asking import Manner, Size, listen, told
from .clips import cut, fitting, read
from .items import Item
from .latents import latents_of

Told = dict[str, Tensor]
VALIDATED = 8
"""Training examples that are validated on where none are held out."""


class Example(NamedTuple):
    """A clip that is ready: its size, the files of its latents and of its caption, the caption, its file's hash."""

    size: Size
    latents: Path
    told: Path
    caption: str
    content: str


class Prepared(NamedTuple):
    """All that training needs of data and pipeline.

    Attributes:
        examples: to train on, in the order of the data.
        manners: how the pipeline asks its model, by size.
        nothing: the files of the empty caption, by size.
        skipped: what was left out, and why.
        held_out: examples to validate on, never trained on; none where the first of ``examples`` serve.
    """

    examples: list[Example]
    manners: dict[Size, Manner]
    nothing: dict[Size, Path]
    skipped: list[str]
    held_out: Sequence[Example] = ()

    @property
    def validated(self) -> Sequence[Example]:
        """The examples that are validated on."""
        return self.held_out or self.examples[:VALIDATED]


class Cache:
    """A folder of safetensors files, named by what they are made of: content, size and settings.

    Args:
        folder: made where it is not there.
        pipeline: text encoders and autoencoder.
        model: the one that is trained.
        call: further arguments of the pipeline's calls.
        fps: frames that are taken of each second of a clip; None takes all.
    """

    def __init__(
        self, folder: Path, pipeline: Any, model: Any, call: Mapping[str, Any], fps: float | None = None
    ) -> None:
        self._fps = fps
        self._folder, self._pipeline, self._model, self._call = folder, pipeline, model, call
        folder.mkdir(parents=True, exist_ok=True)
        parts = {name: _tells(part) for name, part in pipeline.components.items() if part is not model}
        self._made_by = {"pipeline": type(pipeline).__name__, "parts": parts, "call": dict(call)}

    def prepare(self, items: Sequence[Item], buckets: Sequence[Size], quiet: bool = False) -> Prepared:
        """Make what is missing.

        Raises:
            ValueError: not one file that can be used.
        """
        prepared = Prepared([], {}, {}, [])
        for item in tqdm(items, desc="preparing", unit="file", disable=quiet):
            try:
                content, size = self._size(item.path, buckets)
            except ValueError as error:
                prepared.skipped.append(str(error))
                continue
            if size not in prepared.manners:
                prepared.manners[size] = listen(self._pipeline, self._model, size, self._call)
                prepared.nothing[size] = self._told("", size, prepared.manners[size])
            prepared.examples.append(self._example(item, content, size, prepared.manners[size]))
        if not prepared.examples:
            raise ValueError(f"none of {len(items)} files can be used: {'; '.join(prepared.skipped[:3])}")
        return prepared

    def _size(self, path: Path, buckets: Sequence[Size]) -> tuple[str, Size]:
        """What a file is known by, and its bucket.

        Raises:
            ValueError: a file that cannot be used.
        """
        content, most = _content(path), max(bucket[0] for bucket in buckets)

        def shape() -> dict[str, Tensor]:
            return {"shape": torch.tensor(read(path, self._fps, most).shape[:3])}

        found = load_file(self._kept(["shape", content, self._fps, most], shape))["shape"].tolist()
        size = fitting(found, buckets)
        if size is None:
            raise ValueError(f"{path}: {found[0]} frames are fewer than any bucket has")
        return content, size

    def _example(self, item: Item, content: str, size: Size, manner: Manner) -> Example:
        """An item, made ready; a file that is known is not decoded again."""

        def latents() -> dict[str, Tensor]:
            return {
                "latents": latents_of(
                    self._pipeline, self._model, cut(read(item.path, self._fps, size[0]), size), manner
                )
            }

        kept = self._kept(["latents", content, size, self._fps], latents)
        return Example(size, kept, self._told(item.caption, size, manner), item.caption, content)

    def _told(self, caption: str, size: Size, manner: Manner) -> Path:
        return self._kept(
            ["told", caption, size], lambda: told(self._pipeline, self._model, manner, caption, size, self._call)
        )

    def _kept(self, key: Any, make: Any) -> Path:
        """The file of a key, which is made where it is not there; a file is there whole or not at all."""
        name = hashlib.sha256(json.dumps([key, self._made_by], sort_keys=True, default=str).encode()).hexdigest()[:32]
        path = self._folder / f"{key[0]}-{name}.safetensors"
        if not path.exists():
            part = path.with_suffix(f".{os.getpid()}.part")
            save_file({name: tensor.contiguous().cpu() for name, tensor in make().items()}, part)
            part.replace(path)
        return path


def _content(path: Path) -> str:
    """What tells a file's content from others'.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None


def _tells(part: Any) -> str:
    """What tells a component from others: configuration, words, and of each tensor size, sum and some numbers."""
    told = hashlib.sha256(_config(part).encode())
    if hasattr(part, "get_vocab"):
        told.update(json.dumps(part.get_vocab(), sort_keys=True).encode())
    for name, tensor in part.state_dict().items() if isinstance(part, torch.nn.Module) else ():
        some = tensor.detach().flatten()[:: max(1, tensor.numel() // 16)][:16].float().cpu()
        wide = tensor.detach() if tensor.element_size() > 1 else tensor.detach().float()  # no sums of 8 bits
        total = wide.sum(dtype=torch.float64).item()
        told.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}{total}{some.tolist()}".encode())
    return told.hexdigest()


def _config(part: Any) -> str:
    """A component's configuration, but for where it was loaded from."""
    config = getattr(part, "config", None) or {}
    entries = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return json.dumps({k: v for k, v in entries.items() if not k.startswith("_")}, sort_keys=True, default=str)


def load_latents(example: Example) -> Tensor:
    """[1, …] float32."""
    return load_file(example.latents)["latents"]


def load_told(path: Path) -> Told:
    """The batched tensors of a caption, [1, …]."""
    return load_file(path)
