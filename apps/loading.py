"""Finding and loading Diffusers pipelines: folders, hub names and the demo models of a clone."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dattn
from dattn.norms import NORMS

DEFAULT = "shapes-wan"
STRETCH = 4
"""The demo clip is this many times as long as the clips that the demo model was trained on."""


@dataclass(frozen=True)
class Native:
    """What a demo model was trained for, and how it samples well, unless its ``shapes.json`` says else.

    Attributes:
        frames, height, width, steps, guidance: of the pipeline's call; guidance None where it takes another way.
        extra: further arguments of the call.
        prompt, pattern: what is made where nothing is asked for.
    """

    frames: int = 33
    height: int = 64
    width: int = 64
    steps: int = 20
    guidance: float | None = 4.0
    extra: dict[str, Any] = field(default_factory=dict)
    prompt: str = "a red circle moving right"
    pattern: str = "Radial(block_size=64)"  # this model has 64 tokens per frame, half of the published block

    def frames_at(self, stretch: float) -> int:
        """Frames of a clip ``stretch`` times as long: 33 is 1 + 32, twice that is 1 + 64."""
        return 1 + round((self.frames - 1) * stretch)


@dataclass(frozen=True)
class Loaded:
    """A pipeline and what the commands know of it."""

    pipe: Any
    name: str
    folder: Path | None
    native: Native | None
    """Set for the models of Moving Shapes, whose output the judge can read."""

    @property
    def arguments(self) -> set[str]:
        """The names that the pipeline's call takes."""
        return set(inspect.signature(self.pipe.__call__).parameters)

    @property
    def makes_video(self) -> bool:
        """Whether the pipeline's call takes a number of frames."""
        return "num_frames" in self.arguments

    @property
    def denoisers(self) -> list[Any]:
        """The networks that the steps run through."""
        found = (getattr(self.pipe, name, None) for name in ("transformer", "transformer_2", "unet"))
        return [network for network in found if network is not None]


def shipped_folder() -> Path:
    """Where the demo models of a clone are; a wheel has none."""
    return Path(dattn.__file__).resolve().parents[1] / "assets" / "models"


def shipped() -> Iterator[Path]:
    """The demo models that are here and complete enough to name a pipeline."""
    yield from sorted(p.parent for p in shipped_folder().glob("*/model_index.json"))


def native(folder: Path) -> Native | None:
    """What a folder of Moving Shapes was trained for; None for any other model."""
    if (folder / "shapes.json").is_file():
        return Native(**json.loads((folder / "shapes.json").read_text()))
    return Native() if folder.name.startswith("shapes-") else None


def resolve(model: str | None) -> Path | str:
    """The folder, or the hub name, that ``--model`` means.

    Raises:
        ValueError: no such folder, a folder that is no pipeline, or no demo model to fall back on.
    """
    if model is None:
        folder = shipped_folder() / DEFAULT
        if not (folder / "model_index.json").is_file():
            raise ValueError(
                "no --model: this installation carries no models (a wheel has none); "
                "name a Diffusers folder or hub name with --model, or run from a clone of the repository"
            )
        return folder
    folder = Path(model).expanduser()
    if not folder.exists():
        demos = {demo.name: demo for demo in shipped()}
        if model in demos:
            return demos[model]
        if _is_hub_name(model):
            return model
        raise ValueError(
            f"model {model}: no such folder; name a Diffusers folder, a hub name (owner/name)"
            f"{''.join(f', {name}' for name in demos)}"
        )
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"model {model}: no Diffusers pipeline, it has no model_index.json; name another folder")
    return folder


def _is_hub_name(model: str) -> bool:
    return model.count("/") == 1 and model[0] not in "./~" and not model.endswith("/")


def pick_device(device: str | None) -> str:
    """The device to run on: as asked, or CUDA where there is one.

    Raises:
        ValueError: no device of that name here.
    """
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {device}: not usable here ({_first_line(error)}); try --device cpu") from None
    return device


def load(
    model: str | None,
    device: str | None = None,
    dtype: str | None = None,
    lora: Path | None = None,
    revision: str | None = None,
    variant: str | None = None,
    safe: bool = False,
) -> Loaded:
    """Load a pipeline, silently.

    Args:
        model: a folder, a hub name, or None for the demo model.
        device: None picks one.
        dtype: a name such as ``bfloat16``; None is float32 on CPU, bfloat16 elsewhere.
        lora: a folder or file of a LoRA that is put on the model; None for none.
        revision, variant: of a model of the hub, and of its files.
        safe: read weights from safetensors alone, never from pickles, which can run code.

    Raises:
        ValueError: what cannot be loaded, and why.
    """
    source = resolve(model)
    if revision is not None and isinstance(source, Path):
        raise ValueError(f"revision {revision}: model {model} is a folder here, which has none; leave it out")
    device = pick_device(device)
    import torch
    from diffusers import DiffusionPipeline

    _be_quiet()
    kind = getattr(torch, dtype or ("float32" if device == "cpu" else "bfloat16"))
    try:
        pipe = DiffusionPipeline.from_pretrained(
            source, dtype=kind, revision=revision, variant=variant, use_safetensors=safe or None
        )
    except Exception as error:  # whatever a broken folder, a missing network or a missing class raises
        raise ValueError(f"model {source}: cannot be loaded ({_first_line(error)})") from error
    if lora is not None:
        put_on(pipe, lora)
    folder = source if isinstance(source, Path) else None
    name = folder.resolve().name if folder else str(source)
    return Loaded(pipe.to(device), name, folder, native(folder.resolve()) if folder else None)


def put_on(pipe: Any, lora: Path) -> None:
    """Load a LoRA.

    Raises:
        ValueError: there is none, or it is not for this pipeline.
    """
    if not lora.exists():
        raise ValueError(f"lora {lora}: no such folder or file; give what dattn train-lora wrote")
    if not hasattr(pipe, "load_lora_weights"):
        raise ValueError(f"lora {lora}: {type(pipe).__name__} loads no LoRA in Diffusers; leave it out")
    place, options = (lora.parent, {"weight_name": lora.name}) if lora.is_file() else (lora, {})
    try:
        pipe.load_lora_weights(str(place), **options)
    except Exception as error:  # whatever Diffusers raises at a file for another model
        raise ValueError(f"lora {lora}: cannot be loaded on {type(pipe).__name__} ({_first_line(error)})") from error
    if not any(pipe.get_list_adapters().values()):
        raise ValueError(f"lora {lora}: nothing in it is for {type(pipe).__name__}; it was made for another model")
    if (place / NORMS).is_file():
        dattn.load_norms(pipe, place)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


def _be_quiet() -> None:
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
