"""The app: its tabs, and how it is served."""

from __future__ import annotations

import argparse
from typing import Any

import fastapi
import gradio as gr
from PIL import Image
from starlette.middleware import Middleware

from .edit import EditTab
from .finetune import FinetuneTab
from .generate import GenerateTab
from .hints import hinted, script
from .inside import InsideTab
from .long_video import LongTab
from .look import IN_STEP, STYLES, theme
from .regions import RegionsTab
from .serving import ASIDE, QUIET, give_memory_back, note_time, served
from .studio import Studio
from .tab import Tab
from .uploads import LARGEST, LARGEST_PICTURE, PicturesOnly, keep_few_canvases, open_only_pictures, refuse_addresses
from .visits import Visits
from .welcome import Welcome

KEPT = 24 * 3600
"""Seconds that files which were shown can be downloaded."""
TITLE = "dattn: see what attention does"
OTHERS: tuple[tuple[str, str, type[Tab]], ...] = (
    ("Edit", "Change words of a prompt, and little else of the clip", EditTab),
    ("Regions", "A prompt for each part of the picture", RegionsTab),
    ("Long video", "Several prompts one after the other", LongTab),
    ("Look inside", "Where attention looks, and what could be left out", InsideTab),
    ("Fine-tune", "Teach the model clips of yours under a pattern", FinetuneTab),
)
"""Tabs after the first: title, tooltip, class."""


def build(studio: Studio, visits: Visits) -> gr.Blocks:
    """All tabs."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, KEPT)) as demo:
        gr.Markdown(f"# {TITLE}\nThe same noise, once by stock attention and once by another.", elem_id="hero")
        with hinted(gr.Tab("Generate", elem_id="tab-generate"), "One prompt, by stock attention and another") as first:
            generate = GenerateTab(studio, visits)
            generate.build()
        first.select(served(generate.refill), None, generate.gallery, **QUIET, **ASIDE)
        for title, hint, kind in OTHERS:
            with hinted(gr.Tab(title, elem_id=f"tab-{kind.prefix.strip('-')}"), hint):
                kind(studio, visits).build()

        def lose(request: gr.Request) -> None:
            visits.lose(request.session_hash)

        demo.unload(lose)
    return demo


def launch(demo: gr.Blocks, options: argparse.Namespace, **more: Any) -> Any:
    """Serve it; what ``Blocks.launch`` returns."""
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
        head=IN_STEP + script(demo),
        app_kwargs=app,
        **more,
    )


def serve(options: argparse.Namespace, welcome: Welcome) -> None:
    """Serve until interrupted, in the place of the page that tells of the start."""
    welcome.stage = "Loading the first models"
    studio = Studio(
        *(options.model, options.device, options.dtype, options.max_pixels, options.deadline, options.data),
        tokens=options.max_tokens,
    )
    visits = Visits()
    open_only_pictures()
    try:
        demo = build(studio, visits)
        welcome.leave()
        launch(demo, options)
    finally:
        visits.close()
