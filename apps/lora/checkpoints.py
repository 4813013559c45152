"""Checkpoints: LoRA, optimiser and position, in safetensors and JSON, there whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .sharding import divided, whole

PATTERN = "checkpoint-*"


class State(NamedTuple):
    """What a checkpoint holds."""

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    told: dict[str, Any]


def checkpoints(folder: Path) -> list[Path]:
    """Those of a folder, the oldest first."""
    found = [path for path in folder.glob(PATTERN) if path.name.rpartition("-")[2].isdecimal()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def write(folder: Path, state: State, limit: int | None = None) -> Path:
    """Write a checkpoint, then drop the oldest of those before it beyond ``limit``."""
    path = folder / f"checkpoint-{state.step}"
    for left in folder.glob(f".{PATTERN}"):  # by a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    part = _write(folder / f".checkpoint-{state.step}.part", state)
    if path.is_dir():
        _drop(path)
    part.replace(path)
    for old in [one for one in checkpoints(folder) if one != path][: 1 - limit or None] if limit else []:
        _drop(old)
    return path


def _drop(path: Path) -> None:
    """Remove a checkpoint; there is never half of one under its name."""
    shutil.rmtree(path.replace(path.with_name(f".{path.name}.old")))


def _write(part: Path, state: State) -> Path:
    part.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in state.weights.items()}, part / "lora.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in state.optimizer.items()}, part / "optimizer.safetensors")
    (part / "state.json").write_text(json.dumps({"step": state.step, **state.told}, indent=2))
    return part


def read(folder: Path, which: str) -> State | None:
    """A checkpoint: its path, its name in ``folder``, or ``"latest"``, which may be none.

    Raises:
        ValueError: no such checkpoint.
    """
    path = _named(folder, which)
    if path is None:
        return None
    told = json.loads((path / "state.json").read_text())
    step = told.pop("step")
    return State(step, load_file(path / "lora.safetensors"), load_file(path / "optimizer.safetensors"), told)


def step_of(folder: Path, which: str | None) -> int:
    """How far training had come in a checkpoint, named as for ``read``; 0 where there is none."""
    path = None if which is None else _named(folder, which)
    return 0 if path is None else int(json.loads((path / "state.json").read_text())["step"])


def _named(folder: Path, which: str) -> Path | None:
    if which == "latest":
        return next(reversed(checkpoints(folder)), None)
    path = Path(which) if Path(which).is_dir() else folder / which
    if not (path / "state.json").is_file():
        raise ValueError(
            f"resume_from_checkpoint {which}: no checkpoint there; {folder} has {[p.name for p in checkpoints(folder)]}"
        )
    return path


def taken(weights: dict[str, Tensor], prefix: str | tuple[str, ...]) -> dict[str, Tensor]:
    """Take those out whose names begin so, or in one of some ways."""
    return {name: weights.pop(name) for name in list(weights) if name.startswith(prefix)}


def numbers_of(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimiser whose state is tensors, by ``parameter.name``, whole."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": whole(torch.as_tensor(x)).cpu() for i, own in state.items() for name, x in own.items()}


def restore_numbers(optimizer: torch.optim.Optimizer, numbers: dict[str, Tensor]) -> None:
    """Put what ``numbers_of`` gave back; counts are Python's in optimisers that keep them so."""
    state: dict[int, dict[str, Any]] = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, tensor in numbers.items():
        index, name = key.split(".", 1)
        count = tensor.ndim == 0 and not tensor.is_floating_point()
        own = divided(tensor, parameters[int(index)]) if tensor.ndim else tensor
        state.setdefault(int(index), {})[name] = tensor.item() if count else own
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
