"""``dattn plot``: a pattern's mask as a picture: its block grid, and what one token sees, frame by frame; or all."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import Parser, at_least, grid, token, token_index, writable_folder

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from PIL import Image

    from dattn.block_mask import BlockMask
    from dattn.grid import TokenGrid

EXAMPLES = """\
  dattn plot --pattern radial --grid 21x30x52 -o radial.png
  dattn plot --pattern "Neighborhood(window=(5, 9, 9))" --grid 13x30x45 --text 226 --text-first
  dattn plot --pattern "Neighborhood(window=7)" --grid 1x32x32 --token 0,3,3
  dattn plot --gallery -o gallery.png

The grid is counted in tokens: Wan 2.1 at 81 frames of 480 x 832 is 21x30x52. An image has 1 frame."""
PANELS = 24
"""At most this many frames are drawn."""
COLOURS = 128
"""Of a picture of maps: more are not seen, and the file is a third as large."""


def parser() -> Parser:
    """The command's options."""
    p = Parser("plot", "Draw the mask of a pattern: which blocks it computes, and what one token sees.", EXAMPLES)
    p.add_argument(
        "--gallery", action="store_true", help="every pattern and operator, at small grids, in FILE and FILE-maps"
    )
    p.add_argument("--pattern", help='a name or "Radial(decay=0.2)"; see dattn patterns')
    p.add_argument("--grid", type=grid, metavar="FxHxW", help="tokens: frames x height x width")
    p.add_argument("--text", type=at_least(0), default=0, metavar="N", help="text tokens (default: %(default)s)")
    p.add_argument("--text-first", action="store_true", help="text before the frames instead of after")
    p.add_argument("--token", type=token, metavar="F,H,W", help="whose neighbourhood (default: the middle one)")
    p.add_argument("-o", "--output", type=Path, default=Path("mask.png"), metavar="FILE", help="(default: %(default)s)")
    return p


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    options = parser().parse_args(argv)
    if options.output.suffix.lower() != ".png":
        raise ValueError(f"output {options.output}: the picture is a PNG; give a name that ends in .png")
    writable_folder(options.output.parent)
    if options.gallery:
        return _gallery(options.output)
    for name in ("pattern", "grid"):
        if getattr(options, name) is None:
            raise ValueError(f"no --{name}: say what to draw, such as --pattern radial --grid 21x30x52, or --gallery")
    from dattn.grid import TokenGrid

    frames, height, width = options.grid
    tokens = TokenGrid(frames, height, width, options.text, options.text_first)
    place = options.token or tuple((n - 1) // 2 for n in tokens.shape)
    token_index(place, tokens)
    mask = static_mask(options.pattern, tokens)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    beside(mask.plot(), neighbourhood(mask, tokens, place)).save(options.output)
    blocks = " x ".join(map(str, mask.num_blocks))
    print(f"{options.pattern}: density {mask.density:.3f}, {blocks} blocks of {mask.block_size}")
    print(f"written: {options.output}")
    return 0


def _gallery(output: Path) -> int:
    from PIL import Image

    from .gallery import gallery, gallery_of_maps

    output.parent.mkdir(parents=True, exist_ok=True)
    gallery().savefig(output)
    maps = output.with_stem(f"{output.stem}-maps")
    Image.fromarray(_drawn(gallery_of_maps())).quantize(COLOURS).save(maps, optimize=True)
    print(f"written: {output}\nwritten: {maps}")
    return 0


def static_mask(text: str, grid: TokenGrid) -> BlockMask:
    """The mask of a pattern as written on the command line.

    Raises:
        ValueError: an unknown pattern, one that does not fit the grid, or one without a mask of its own.
    """
    from dattn.registry import static_from_string

    return static_from_string(text).mask(grid)


def neighbourhood(mask: BlockMask, grid: TokenGrid, place: tuple[int, int, int]) -> Figure:
    """What one query token sees: a panel for each frame (evenly chosen ones of a long clip).

    Args:
        mask: of the pattern on the grid; its first group of heads is drawn.
        grid: the token grid.
        place: (frame, row, column) of the query token, marked in its own frame.
    """
    import numpy as np
    from matplotlib.figure import Figure

    seen = mask.neighbours(token_index(place, grid)).numpy()
    visual = seen[grid.text_before : grid.text_before + grid.visual].reshape(grid.shape)
    frames = chosen_frames(grid.frames, place[0])
    columns = min(len(frames), 8 if grid.height * 2 > grid.width else 4)
    rows = -(-len(frames) // columns)
    tall = min(4.0, max(0.3, 1.6 * grid.height / grid.width))
    figure = Figure(figsize=(1.6 * columns, 0.5 + (tall + 0.3) * rows), dpi=100, layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for panel in panels[len(frames) :]:
        panel.set_axis_off()
    for panel, frame in zip(panels, frames, strict=False):
        panel.imshow(visual[frame], cmap="Blues", vmin=0, vmax=1.3, interpolation="nearest")
        panel.set(xticks=[], yticks=[])
        panel.set_title(f"frame {frame}", fontsize=8)
        if frame == place[0]:
            panel.plot(place[2], place[1], "o", color="crimson", markersize=5)
    figure.suptitle(
        f"token at frame {place[0]}, row {place[1]}, column {place[2]}: sees {int(seen.sum())} of {grid.tokens} tokens",
        fontsize=10,
    )
    return figure


def chosen_frames(frames: int, always: int) -> list[int]:
    """At most ``PANELS`` frames, evenly spread, with the one that must be there."""
    import numpy as np

    spread = np.linspace(0, frames - 1, min(frames, PANELS)).round().astype(int).tolist()
    if always not in spread:
        nearest = min(range(len(spread)), key=lambda i: abs(spread[i] - always))
        spread[nearest] = always
    return sorted(spread)


def beside(*figures: Figure) -> Image.Image:
    """Figures as one picture, left to right, on white."""
    from PIL import Image

    pictures = [Image.fromarray(_drawn(figure)) for figure in figures]
    size = sum(p.width for p in pictures), max(p.height for p in pictures)
    paper, left = Image.new("RGB", size, "white"), 0
    for picture in pictures:
        paper.paste(picture, (left, (size[1] - picture.height) // 2))
        left += picture.width
    return paper


def _drawn(figure: Figure) -> np.ndarray:
    import numpy as np
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    buffer.seek(0)
    return np.asarray(Image.open(buffer).convert("RGB"))
