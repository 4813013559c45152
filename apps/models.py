"""``dattn models``: the model families that ``dattn.apply`` knows, what they were tried with, and the demo models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .arguments import Parser
from .table import table

EXAMPLES = "  dattn models\n  dattn models --presets\n  dattn models --markdown"


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    p = Parser("models", "List the models whose attention can be replaced, and what they were tried with.", EXAMPLES)
    p.add_argument("--presets", action="store_true", help="show the presets of every family instead")
    p.add_argument("--markdown", action="store_true", help="print the table as the README has it")
    options = p.parse_args(argv)
    import dattn

    from .loading import shipped

    rows = dattn.supported_models()
    if options.presets:
        print(table(("family", "presets"), [(row.title, ", ".join(row.presets)) for row in rows]))
        return 0
    if options.markdown:
        print(markdown(rows))
        return 0
    print(plain(rows))
    folders = [folder.name for folder in shipped()]
    print(f"\ndemo models here: {', '.join(folders) or 'none (a clone of the repository has them)'}")
    return 0


def plain(rows: Sequence[Any]) -> str:
    """Every family and what it was tried with; reasons and variants below."""
    head = ("family", "text", *rows[0].tried)
    cells = [(row.title, row.text, *("yes" if not why else "no" for why in row.tried.values())) for row in rows]
    notes = [f"{row.title}: {note}" for row in rows for note in _notes(row)]
    classes = [f"{row.title}: {', '.join(row.models)}" for row in rows]
    return "\n".join([table(head, cells), "", "classes", *classes, "", "notes", *notes])


def markdown(rows: Sequence[Any]) -> str:
    """The same for the README: what works for all families is said once, what does not in each family's row."""
    lines = ["| family | model classes | text | also tried | what the stock model cannot do |", "|---|---|---|---|---|"]
    for row in rows:
        classes = ", ".join(f"`{name}`" for name in row.models)
        without = "; ".join(f"{what} ({why})" for what, why in row.tried.items() if why)
        lines.append(f"| {row.title} | {classes} | {row.text} | {', '.join(row.variants)} | {without} |")
    return "\n".join(lines)


def _notes(row: Any) -> list[str]:
    without = [f"no {what}: {why}" for what, why in row.tried.items() if why]
    return [*without, *([f"also tried: {', '.join(row.variants)}"] if row.variants else [])]
