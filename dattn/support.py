"""What each model family was tried with: the results of its tests, as they were last recorded.

``pytest tests/test_families.py --support dattn/support.json`` records them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dattn import presets
from dattn.adapters import ADAPTERS, Adapter

RECORD = Path(__file__).with_suffix(".json")
CONDITIONS = {
    "patterns": "patterns",
    "lora": "LoRA",
    "fused": "fused QKV",
    "offload": "offload",
    "group_offload": "group offload",
    "checkpointing": "training",
    "bfloat16": "bfloat16",
    "float8": "float8",
    "first_block_cache": "caching",
    "guidance": "guidance",
    "guidance_hooks": "guidance hooks",
    "compile": "full graph",
    "compile_repeated_blocks": "repeated blocks",
}
"""What is tried, by the name in the tests, and as tables call it."""


@dataclass(frozen=True)
class SupportedModel:
    """A row of the support table.

    Attributes:
        title: the family.
        models: its model classes.
        text: where text tokens sit in self-attention.
        presets: names that ``dattn.apply`` takes.
        tried: for every condition ``""`` where it works, or why not.
        variants: what else was tried beside the plain model.
    """

    title: str
    models: tuple[str, ...]
    text: str
    presets: tuple[str, ...]
    tried: Mapping[str, str]
    variants: tuple[str, ...]


def supported_models() -> list[SupportedModel]:
    """The model families that ``dattn.apply`` knows, and what they were tried with."""
    return [_row(adapter) for adapter in ADAPTERS]


def _row(adapter: Adapter) -> SupportedModel:
    records = {name: tried for name, tried in _record().items() if name.split("-")[0] == adapter.family}
    plain = records.pop(adapter.family, {})
    tried = {title: plain.get(name, "not tried") for name, title in CONDITIONS.items()}
    variants = tuple(name.split("-", 1)[1] for name in records)
    names = tuple(presets.preset_names(adapter.family))
    return SupportedModel(adapter.title, adapter.models, adapter.text, names, tried, variants)


@cache
def _record() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = json.loads(RECORD.read_text(encoding="utf-8"))
    return found
