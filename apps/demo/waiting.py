"""Calls that wait in Gradio's queue: how those of one visitor leave it before their turn."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.server_messages import ProcessCompletedMessage

STOPPED: dict[str, Any] = {"error": "Stopped.", "title": "Stopped", "visible": True, "duration": 3}
"""What a visitor reads whose call was stopped."""


async def leave(request: gr.Request, line: str) -> None:
    """Let a visitor's calls leave a line at once, and tell the visitor.

    Gradio has no public way. Where its queue is another one than is known here, they stay and end at their turn.

    Args:
        request: of the visitor.
        line: the ``concurrency_id`` of the calls.
    """
    try:
        queue = request.request.app.get_blocks()._queue
        waiting = queue.event_queue_per_concurrency_id[line].queue
        for event in [one for one in waiting if one.session_hash == request.session_hash]:
            await queue.remove_from_queue(event._id)
            queue.send_message(event, ProcessCompletedMessage(output=STOPPED, title="Stopped", success=False))
    except (AttributeError, KeyError, TypeError):
        return
