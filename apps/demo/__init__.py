"""``dattn demo``: see what attention does, in a browser."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.util import find_spec

from ..arguments import Parser, at_least
from .welcome import Welcome

EXAMPLES = """\
  dattn demo
  dattn demo --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers --device cuda
  dattn demo --host 0.0.0.0 --port 8080 --max-pixels 20000000"""


def parser() -> Parser:
    """The command's options."""
    p = Parser("demo", "Serve the web demo, with the demo models or with models of yours.", EXAMPLES)
    p.add_argument(
        "--model", nargs="+", default=[], metavar="FOLDER_OR_NAME", help="Diffusers models beside the demo models"
    )
    p.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="with captions, for visitors to train on",
    )
    p.add_argument("--device", help="cpu, cuda, cuda:1, mps, … (default: cuda where there is one)")
    p.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="(default: by device)")
    p.add_argument("--host", default="127.0.0.1", help="address to serve on (default: %(default)s)")
    p.add_argument("--port", type=at_least(1), help="(default: the first free one from 7860 on)")
    p.add_argument(
        "--max-pixels",
        type=at_least(1),
        help="of a clip, all frames together (default: by device, 2 million on a CPU)",
    )
    p.add_argument(
        "--max-tokens", type=at_least(1), help="that a layer attends to (default: by device, 32768 on a CPU)"
    )
    p.add_argument(
        "--deadline", type=at_least(1), default=3600, metavar="SECONDS", help="of one call (default: %(default)s)"
    )
    p.add_argument("--queue", type=at_least(1), default=20, help="visitors that may wait (default: %(default)s)")
    p.add_argument(
        "--mcp", action="store_true", help="serve the API as MCP tools too; all who call those are one visitor"
    )
    p.add_argument("--share", action="store_true", help="a public link, through Gradio's servers")
    return p


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    options = parser().parse_args(argv)
    if find_spec("gradio") is None:
        raise ValueError('the package gradio is not installed; pip install "dattn[demo]"')
    if options.mcp and find_spec("mcp") is None:
        raise ValueError('--mcp: the package mcp is not installed; pip install "gradio[mcp]"')
    welcome = Welcome(options.host, options.port)
    options.port = welcome.port
    try:
        print(f"The demo starts at {welcome.address}", flush=True)
        welcome.stage = "Loading Gradio and Diffusers"
        from .app import serve  # only now: this takes seconds

        serve(options, welcome)
    finally:
        welcome.leave()
    return 0


def defaults() -> argparse.Namespace:
    """The options of a demo that is started without any."""
    return parser().parse_args([])
