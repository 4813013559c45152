"""``dattn patterns``: every pattern and operator with its fields and defaults."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import MISSING, fields

from .arguments import Parser
from .table import table

EXAMPLES = """\
  dattn patterns
  dattn plot --pattern "Radial(decay=0.2)" --grid 21x30x52
  dattn generate --prompt "a red circle moving up" --pattern "Reshaped(Radial(block_size=64), refresh=5)" """


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    Parser(
        "patterns", "List patterns and operators. On the command line values are literals, or patterns.", EXAMPLES
    ).parse_args(argv)
    from dattn.operators import OPERATORS
    from dattn.patterns import PATTERNS

    for title, kinds in (("pattern", PATTERNS), ("operator", OPERATORS)):
        print(table((title, "what it does"), [(signature(kind), one_line(kind)) for kind in kinds.values()]), "\n")
    return 0


def signature(pattern: type) -> str:
    """``Radial(decay=1.0, sink=True, …)``; a field without a default stands by its name alone."""
    ordered = sorted(fields(pattern), key=lambda f: f.kw_only is True)
    shown = [f.name if f.default is MISSING else f"{f.name}={f.default!r}" for f in ordered]
    return f"{pattern.__name__}({', '.join(shown)})"


def one_line(pattern: type) -> str:
    """The first line of the file that defines a pattern, or of the class where that says more."""
    module = inspect.getmodule(pattern)
    text = (module.__doc__ if module else None) or pattern.__doc__ or ""
    return text.strip().splitlines()[0].rstrip(".") if text.strip() else ""
