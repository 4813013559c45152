"""Ctrl-C that waits until what must not be torn apart is done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def uninterrupted() -> Iterator[list[int]]:
    """Hold Ctrl-C back until the end of the block, then let it do what it does outside; yields those that came.

    Only the main thread is ever interrupted; in any other this does nothing.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def later(number: int, frame: Any) -> None:
        asked.append(number)

    before = signal.signal(signal.SIGINT, later)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        signal.raise_signal(signal.SIGINT)
