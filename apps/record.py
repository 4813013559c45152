"""What a report must hold so that its figures can be made again: versions, machine, command."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("dattn", "torch", "triton", "diffusers", "transformers", "accelerate", "peft", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter; a missing one is left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Processor, cores, threads and graphics device."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def fingerprint(folder: Path | None, files: str = "**/*.safetensors") -> str | None:
    """A short hash of a model's or LoRA's weights; None where there is no place: a model of the hub, or no LoRA."""
    if folder is None:
        return None
    digest = hashlib.sha256()
    for path in [folder] if folder.is_file() else sorted(folder.glob(files)):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()[:16]


def provenance(command: str, argv: Sequence[str]) -> dict[str, Any]:
    """The command as it was typed, the versions and the machine; a module's has dots in its name."""
    start = ["python", "-m", command] if "." in command else ["dattn", command]
    return {"command": shlex.join([*start, *argv]), "versions": versions(), "machine": machine()}


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=2, default=str) + "\n")
    part.replace(path)
