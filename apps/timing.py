"""Milliseconds of a call on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

DEVICE = "cuda"


def gpu_needed(what: str) -> None:
    """Raise ``ValueError`` where there is no CUDA device."""
    import torch

    if not torch.cuda.is_available():
        raise ValueError(f"bench {what}: needs a CUDA device, and there is none here; `dattn bench cpu` needs none")


def milliseconds(call: Callable[[], object], repeats: int, warm_up: int = 2) -> float | None:
    """The median over ``repeats`` calls, by CUDA events; None, and a line that says why, where it cannot run.

    The first ``warm_up`` calls, which compile, do not count.
    """
    import torch
    from triton.runtime.errors import OutOfResources

    try:
        for _ in range(warm_up):
            call()
        return median(_event_time(call) for _ in range(repeats))
    except (torch.OutOfMemoryError, OutOfResources, RuntimeError) as error:
        print(f"left out: {str(error).splitlines()[0]}", flush=True)
        return None


def _event_time(call: Callable[[], object]) -> float:
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)
