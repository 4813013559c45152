"""What a call takes: milliseconds on a GPU, seconds where its tensors are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

DEVICE = "cuda"
CALLS = ((100, 20), (1000, 10))  # calls shorter than so many milliseconds are timed so often at least
LONG, FEW = 10_000, 2  # and those that take longer than this so often at most
LAUNCH_CYCLES = 20_000_000  # about ten milliseconds: a call of a dozen launches may take that long to be made


def gpu_needed(what: str) -> None:
    """Raise ``ValueError`` where there is no CUDA device."""
    import torch

    if not torch.cuda.is_available():
        raise ValueError(f"bench {what}: needs a CUDA device, and there is none here; `dattn bench cpu` needs none")


def seconds(call: Callable[[], T], tensor: Tensor) -> tuple[T, float]:
    """What a call returns, and its seconds on the tensor's device.

    On a CPU they are the process' own, so that what else the machine does matters little.
    """
    if not tensor.is_cuda:
        start = time.process_time()
        return call(), time.process_time() - start
    import torch

    torch.cuda.synchronize(tensor.device)
    start = time.perf_counter()
    result = call()
    torch.cuda.synchronize(tensor.device)
    return result, time.perf_counter() - start


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: those that wait for each other would count as the process' own time."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def milliseconds(call: Callable[[], object], repeats: int, warm_up: int = 2, may_fail: bool = False) -> float | None:
    """The median over ``repeats`` calls, or as many as ``CALLS`` and ``FEW`` say, by CUDA events.

    None, and a line that says why, where memory or the GPU's resources do not suffice, or a kernel cannot be compiled;
    with ``may_fail`` after any error at run time. The first ``warm_up`` calls, which compile, do not count.
    """
    import torch
    from triton.errors import TritonError
    from triton.runtime.errors import OutOfResources

    gaps = torch.OutOfMemoryError, OutOfResources, TritonError, *([RuntimeError] if may_fail else [])
    try:
        for _ in range(warm_up):
            call()
        times = [_event_time(call)]
        return median(times + [_event_time(call) for _ in range(_enough(times[0], repeats) - 1)])
    except gaps as error:
        print(f"left out: {str(error).splitlines()[0]}", flush=True)
        return None


def _enough(ms: float, repeats: int) -> int:
    least = next((calls for limit, calls in CALLS if ms < limit), 1)
    return min(repeats, FEW) if ms > LONG else max(repeats, least)


def _event_time(call: Callable[[], object]) -> float:
    """Milliseconds on the GPU alone: it is kept busy while the call is being launched."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(LAUNCH_CYCLES)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)
