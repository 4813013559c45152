"""``dattn patterns``: every pattern with its fields and defaults."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import MISSING, fields

from .arguments import Parser
from .table import table

EXAMPLES = """\
  dattn patterns
  dattn plot --pattern "Radial(decay=0.2)" --grid 21x30x52"""


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    Parser("patterns", "List the patterns. On the command line values are literals.", EXAMPLES).parse_args(argv)
    from dattn.patterns import PATTERNS

    print(table(("pattern", "what it keeps"), [(signature(kind), one_line(kind)) for kind in PATTERNS.values()]))
    return 0


def signature(pattern: type) -> str:
    """``Radial(decay=1.0, sink=True, …)``; a field without a default stands by its name alone."""
    shown = [f.name if f.default is MISSING else f"{f.name}={f.default!r}" for f in fields(pattern)]
    return f"{pattern.__name__}({', '.join(shown)})"


def one_line(pattern: type) -> str:
    """The first line of the file that defines a pattern, or of the class where that says more."""
    module = inspect.getmodule(pattern)
    text = (module.__doc__ if module else None) or pattern.__doc__ or ""
    return text.strip().splitlines()[0].rstrip(".") if text.strip() else ""
