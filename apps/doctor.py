"""``dattn doctor``: what is installed here, what would run, and what is missing."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .arguments import Parser
from .record import machine, versions
from .table import table

EXAMPLES = """\
  dattn doctor
  dattn doctor && dattn generate

Exit code 0: everything that dattn needs is here. 1: something is missing; the table says what to do."""
FLOORS = {"python": "3.11", "torch": "2.11", "diffusers": "0.42", "transformers": "5"}


@dataclass(frozen=True)
class Finding:
    """One line of the table; ``ok`` is None for what may well be absent."""

    what: str
    found: str
    ok: bool | None = True
    remedy: str = ""


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    Parser("doctor", "Say what is installed, which backend would run and what is missing.", EXAMPLES).parse_args(argv)
    findings = [finding for check in CHECKS for finding in check()]
    marks = {True: "ok", False: "MISSING", None: "-"}
    print(table(("", "what", "found", "remedy"), [(marks[f.ok], f.what, f.found, f.remedy) for f in findings]))
    return int(any(f.ok is False for f in findings))


def packages() -> list[Finding]:
    """Versions, against the oldest that work."""
    found = versions()
    needed = [_at_least(name, found.get(name), floor) for name, floor in FLOORS.items()]
    return needed + [Finding(name, v, None) for name, v in found.items() if name not in FLOORS]


def _at_least(name: str, found: str | None, floor: str) -> Finding:
    from packaging.version import Version

    if found is None:
        return Finding(name, "none", False, f"pip install '{name}>={floor}'")
    good = Version(found) >= Version(floor)
    return Finding(name, found, good, "" if good else f"dattn needs {floor} or newer")


def hardware() -> list[Finding]:
    """Processor and graphics device."""
    facts = machine()
    cpu = f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} threads"
    return [
        Finding("processor", cpu),
        Finding("gpu", facts["gpu"] or "none: everything runs on the CPU", None),
    ]


def backend() -> list[Finding]:
    """What ``backend="auto"`` would choose here, and why; found by running it on a small problem."""
    import torch

    import dattn
    from dattn.backends import choose

    device = "cuda" if torch.cuda.is_available() else "cpu"
    grid = dattn.TokenGrid(2, 4, 4)
    query = torch.ones(1, 1, grid.tokens, 16, device=device)
    try:
        output = dattn.attention(query, query, query, dattn.Radial(block_size=16), grid)
    except Exception as error:  # a broken installation may raise anything
        return [Finding("attention", f"{type(error).__name__}: {error}", False, "reinstall PyTorch")]
    good = bool(torch.allclose(output, torch.ones_like(output), atol=1e-5))
    chosen = choose("auto", query.device, torch.bfloat16 if device == "cuda" else torch.float32, 64)
    return [
        Finding("attention", f"{'right' if good else 'wrong numbers'} on {device}", good),
        Finding("backend auto", f"{chosen.name} ({chosen.reason.removeprefix('auto: ')})", None),
    ]


def diffusers_hooks() -> list[Finding]:
    """The few places of Diffusers that dattn hangs on."""
    try:
        from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
        from diffusers.models.transformers.transformer_wan import WanAttnProcessor
    except ImportError as error:
        return [Finding("diffusers compatibility", str(error), False, "install the version of constraints.txt")]
    places = [hasattr(_AttentionBackendRegistry, "register"), hasattr(AttentionBackendName, "_member_map_")]
    good = all([*places, hasattr(WanAttnProcessor, "_attention_backend")])
    found = "attention dispatcher as expected" if good else "attention dispatcher has changed"
    return [Finding("diffusers compatibility", found, good, "" if good else "install the version of constraints.txt")]


def ffmpeg() -> list[Finding]:
    """What writes video files."""
    try:
        module = importlib.import_module("imageio_ffmpeg")
        return [Finding("ffmpeg", f"{module.get_ffmpeg_version()} (imageio-ffmpeg)")]
    except (ImportError, RuntimeError) as error:
        return [Finding("ffmpeg", str(error), False, "pip install imageio-ffmpeg")]


def demo_models() -> list[Finding]:
    """The models of a clone."""
    from .loading import shipped

    names = ", ".join(folder.name for folder in shipped())
    return [Finding("demo models", names or "none", None, "" if names else "a wheel has none: pass --model")]


CHECKS: tuple[Callable[[], list[Finding]], ...] = (
    packages,
    hardware,
    backend,
    diffusers_hooks,
    ffmpeg,
    demo_models,
)
