"""``dattn compare``: several patterns against stock attention, same seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .arguments import Parser, add_clip_options, add_model_options, add_schedule_options
from .generate import make

EXAMPLES = """\
  dattn compare --patterns radial "Radial(tail=True)" "Neighborhood(window=(9, None, None))"
  dattn compare --patterns "Radial(decay=1.0)" "Radial(decay=0.2)" --prompt "a green triangle moving left"
  dattn compare --model ./my-wan --prompt "a fox in the snow" --patterns radial recipe.json"""


def parser() -> Parser:
    """The command's options."""
    p = Parser("compare", "Make one clip with each of several patterns and with stock attention.", EXAMPLES)
    p.add_argument("--patterns", nargs="+", required=True, metavar="PATTERN", help="as for dattn generate --pattern")
    p.add_argument("--no-stock", action="store_true", help="leave out the stock run")
    p.add_argument("--output", type=Path, default=Path("outputs/compare"), metavar="DIR", help="(default: %(default)s)")
    add_clip_options(p)
    add_schedule_options(p)
    add_model_options(p)
    return p


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    options = parser().parse_args(argv)
    if len(set(options.patterns)) < len(options.patterns):
        raise ValueError(f"patterns {', '.join(options.patterns)}: one is named twice; name each once")
    return make(options, options.patterns, argv, "compare")
