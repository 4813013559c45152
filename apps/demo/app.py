"""The app: its tabs, and how it is served."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from typing import Any

import fastapi
import gradio as gr
from PIL import Image
from starlette.middleware import Middleware

from .edit import EditTab
from .finetune import FinetuneTab
from .generate import GenerateTab
from .inside import InsideTab
from .long_video import LongTab
from .look import IN_STEP, STYLES, theme
from .regions import RegionsTab
from .serving import ASIDE, QUIET, give_memory_back, note_time, served
from .studio import Studio
from .uploads import LARGEST, LARGEST_PICTURE, PicturesOnly, keep_few_canvases, open_only_pictures, refuse_addresses
from .visits import Visits

KEPT = 24 * 3600
"""Seconds that files which were shown can be downloaded."""
TITLE = "dattn: see what attention does"


def build(studio: Studio, visits: Visits) -> gr.Blocks:
    """All tabs."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, KEPT)) as demo:
        gr.Markdown(f"# {TITLE}\nThe same noise, once by stock attention and once by another.", elem_id="hero")
        with gr.Tab("Generate", elem_id="tab-generate") as first:
            generate = GenerateTab(studio, visits)
            generate.build()
        first.select(served(generate.refill), None, generate.gallery, **QUIET, **ASIDE)
        with gr.Tab("Edit", elem_id="tab-edit"):
            EditTab(studio, visits).build()
        with gr.Tab("Regions", elem_id="tab-regions"):
            RegionsTab(studio, visits).build()
        with gr.Tab("Long video", elem_id="tab-long"):
            LongTab(studio, visits).build()
        with gr.Tab("Look inside", elem_id="tab-inside"):
            InsideTab(studio, visits).build()
        with gr.Tab("Fine-tune", elem_id="tab-finetune"):
            FinetuneTab(studio, visits).build()

        def lose(request: gr.Request) -> None:
            visits.lose(request.session_hash)

        demo.unload(lose)
    return demo


def launch(demo: gr.Blocks, options: argparse.Namespace, **more: Any) -> Any:
    """Serve it; what ``Blocks.launch`` returns.

    Raises:
        ValueError: MCP is asked for, and its package is not there.
    """
    if options.mcp and find_spec("mcp") is None:
        raise ValueError('--mcp: the package mcp is not installed; pip install "gradio[mcp]"')
    Image.MAX_IMAGE_PIXELS = LARGEST_PICTURE  # a small file may hold a picture that fills the memory
    give_memory_back()
    refuse_addresses()
    keep_few_canvases()
    demo.queue(max_size=options.queue)
    app = {"dependencies": [fastapi.Depends(note_time)], "middleware": [Middleware(PicturesOnly)]}
    return demo.launch(
        server_name=options.host,
        server_port=options.port,
        share=options.share,
        mcp_server=options.mcp,
        max_file_size=LARGEST,
        show_error=True,
        footer_links=["api"],
        theme=theme(),
        css=STYLES,
        head=IN_STEP,
        app_kwargs=app,
        **more,
    )


def serve(options: argparse.Namespace) -> None:
    """Serve until interrupted."""
    studio = Studio(
        *(options.model, options.device, options.dtype, options.max_pixels, options.deadline, options.data),
        tokens=options.max_tokens,
    )
    visits = Visits()
    open_only_pictures()
    try:
        launch(build(studio, visits), options)
    finally:
        visits.close()
