"""Tooltips of controls that Gradio has no line of explanation for: buttons, tabs, and what folds away."""

from __future__ import annotations

import json
from typing import Any, TypeVar

import gradio as gr

AnyBlock = TypeVar("AnyBlock", bound=gr.blocks.Block)
SCRIPT = """
<script>
const hints = %s;
new MutationObserver(() => {
  for (const [place, hint] of Object.entries(hints)) {
    const one = document.querySelector(place);
    if (one && one.title !== hint) one.title = hint;
  }
}).observe(document.documentElement, { childList: true, subtree: true });
</script>
"""


def hinted(block: AnyBlock, hint: str) -> AnyBlock:
    """A control that has an ``elem_id``, and shows this while a mouse rests on it."""
    block.hint = hint
    return block


def folded(label: str, hint: str, elem_id: str, away: bool = True) -> gr.Accordion:
    """A box that folds, ``away`` at first."""
    return hinted(gr.Accordion(label, open=not away, elem_id=elem_id), hint)


def script(demo: gr.Blocks) -> str:
    """What the page needs to show them."""
    found = {_place(block): block.hint for block in demo.blocks.values() if hasattr(block, "hint")}
    return SCRIPT % json.dumps(found).replace("<", "\\u003c")  # no hint ends the script


def _place(block: Any) -> str:
    """Where Gradio puts what is pressed, as CSS."""
    if isinstance(block, gr.Tab):
        return f"#{block.elem_id}-button"
    return f"#{block.elem_id} > button" if isinstance(block, gr.Accordion) else f"#{block.elem_id}"
