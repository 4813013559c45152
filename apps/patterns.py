"""``dattn patterns``: every pattern and operator with its fields and defaults."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
    from dattn.orders import ORDERS
    from dattn.patterns import DYNAMIC, PATTERNS, SETTINGS
    from dattn.scores import SCORES
    from dattn.selection import SELECTS

    titled: tuple[tuple[str, Mapping[str, Callable[..., Any]]], ...] = (
        ("pattern", PATTERNS),
        ("pattern that looks at queries and keys", {**DYNAMIC, **SETTINGS}),
        ("operator", OPERATORS),
        ("score of blocks, for Selected", SCORES),
        ("choice of blocks, for Selected", SELECTS),
        ("order of tokens, for Selected", ORDERS),
    )
    for title, kinds in titled:
        print(table((title, "what it does"), [(signature(kind), one_line(kind)) for kind in kinds.values()]), "\n")
    return 0


def signature(kind: Callable[..., Any]) -> str:
    """``Radial(decay=1.0, sink=True, …)``; an argument without a default stands by its name alone."""
    arguments = inspect.signature(kind).parameters.values()
    shown = [p.name if p.default is p.empty else f"{p.name}={written(p.default)}" for p in arguments]
    return f"{kind.__name__}({', '.join(shown)})"


def written(value: Any) -> str:
    """A default; a part as the reports write it, without what is its own default."""
    from dattn.report import describe
    from dattn.spec import Named

    return str(describe(value)) if isinstance(value, Named) else repr(value)


def one_line(kind: Callable[..., Any]) -> str:
    """The first line of the file that defines a pattern, or of its own text where a file holds several."""
    from dattn.spec import Spec

    module = inspect.getmodule(kind)
    alone = isinstance(kind, type) and issubclass(kind, Spec)
    text = (module.__doc__ if module and alone else kind.__doc__) or ""
    return text.strip().splitlines()[0].rstrip(".") if text.strip() else ""
