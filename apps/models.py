"""``dattn models``: the model families that ``dattn.apply`` knows, and the demo models that are here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

from .arguments import Parser
from .table import table

EXAMPLES = "  dattn models"


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    Parser("models", "List the models whose attention can be replaced.", EXAMPLES).parse_args(argv)
    import dattn

    from .loading import shipped

    print(support_table(dattn.supported_models()))
    folders = [folder.name for folder in shipped()]
    print(f"\ndemo models here: {', '.join(folders) or 'none (a clone of the repository has them)'}")
    return 0


def support_table(support: Any) -> str:
    """The support table as text, whatever rows it is made of."""
    rows = [_as_dict(row) for row in (support.values() if isinstance(support, Mapping) else support)]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return table(columns, [[_cell(row.get(name)) for name in columns] for row in rows])


def _as_dict(row: Any) -> dict[str, Any]:
    if is_dataclass(row) and not isinstance(row, type):
        return asdict(row)
    return dict(row) if isinstance(row, Mapping) else {"model": row}


def _cell(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple | set | frozenset) else value
