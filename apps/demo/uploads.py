"""What visitors may send: pictures of a few kinds, told by how they begin, and not much at once."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NoReturn

import gradio as gr
from gradio import processing_utils
from gradio.components.base import server
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from .painting import MOST_LAYERS
from .visits import MOST_VISITS

LARGEST = 20 * 2**20
"""Bytes of a call."""
LARGEST_PICTURE = 2**22
"""Pixels; PIL warns at more and refuses twice as many."""
PICTURES = ("PNG", "JPEG", "WEBP")
BEGINNING = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF.{4}WEBP", re.DOTALL)
LONGEST = 12
"""Bytes of it."""
PLACES = (None, "", "null", *map(str, range(MOST_LAYERS)))
"""Of a layer that is sent, as Gradio's canvas writes them; the first three are of what is no layer."""
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class TooLarge(Exception):
    """More than ``LARGEST``."""


class PicturesOnly:
    """An ASGI layer that refuses forms with files of another kind, and calls that are too large."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a call on, or answer why not."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        try:
            body = await _body(receive)
            refused = await _refused(scope, body)
        except TooLarge:
            refused = PlainTextResponse(f"Too large: {LARGEST >> 20} MB are the most.", 413)
        except HTTPException as error:  # a form that cannot be read
            refused = PlainTextResponse(error.detail, error.status_code)
        if refused is None:
            await self._app(scope, _again(body, receive), send)
        else:
            await refused(scope, receive, send)


def open_only_pictures() -> None:
    """Let PIL open what may be sent, and no other format of the many that it knows."""
    Image.init()
    Image.ID[:] = [name for name in Image.ID if name in PICTURES]


def refuse_addresses() -> None:
    """Let Gradio fetch nothing from addresses in calls, as it does before any handler runs, whatever is there."""
    for name in ("async_ssrf_protected_download", "ssrf_protected_download", "save_url_to_cache"):
        setattr(processing_utils, name, _refuse)


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise gr.Error("Addresses are not opened here: upload the picture", print_exception=False)


_accept_blobs = gr.ImageEditor.accept_blobs


def keep_few_canvases() -> None:
    """Let canvases keep the last parts that were sent, not all that no run ever took, and no list of any length."""
    gr.ImageEditor.accept_blobs = _accept_few


@server
def _accept_few(canvas: gr.ImageEditor, data: Any) -> None:
    if data.data["index"] not in PLACES:
        raise HTTPException(400, f"Canvas: {MOST_LAYERS} layers are the most")
    _accept_blobs(canvas, data)
    while len(canvas.blob_storage) > MOST_VISITS:
        canvas.blob_storage.pop(next(iter(canvas.blob_storage)), None)


async def _body(receive: Receive) -> bytes:
    """All of a call.

    Raises:
        TooLarge: more than is allowed.
    """
    parts: list[bytes] = []
    more = True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
        if sum(map(len, parts)) > LARGEST:
            raise TooLarge
    return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """What gives a body that was read once more, and then what comes after it."""
    left = [body]

    async def replay() -> Message:
        return {"type": "http.request", "body": left.pop(), "more_body": False} if left else await receive()

    return replay


async def _refused(scope: Message, body: bytes) -> PlainTextResponse | None:
    """Why a form is not taken; None if it is, or is none."""
    request = Request(scope, _again(body, _nothing))
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return None
    async with request.form() as form:
        for _, file in form.multi_items():
            if isinstance(file, UploadFile) and not BEGINNING.match(await file.read(LONGEST)):
                return PlainTextResponse(f"{file.filename}: only {', '.join(PICTURES)} pictures are taken.", 415)
    return None


async def _nothing() -> Message:
    return {"type": "http.disconnect"}
