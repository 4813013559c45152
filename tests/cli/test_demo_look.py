"""How the demo looks, as far as no browser is needed."""

import json
import re

import pytest

gr = pytest.importorskip("gradio")

from dattn.apps.demo.edit import EditTab  # noqa: E402, after the check for gradio
from dattn.apps.demo.finetune import FinetuneTab  # noqa: E402
from dattn.apps.demo.generate import GenerateTab  # noqa: E402
from dattn.apps.demo.hints import script  # noqa: E402
from dattn.apps.demo.inside import InsideTab  # noqa: E402
from dattn.apps.demo.look import STYLES, theme  # noqa: E402
from dattn.apps.demo.regions import RegionsTab  # noqa: E402
from dattn.apps.demo.wishes import Wishes  # noqa: E402

LEGIBLE = 4.5
"""Contrast of small letters, by WCAG 2.1 AA."""
PAGE = {"": "#ffffff", "_dark": "#1e293b"}
"""What is behind the text of blocks."""
BEHIND_TABS = {"": ("#ffffff", "#f8fafc"), "_dark": ("#1e293b", "#0f172a", "#0a0f1e")}
OPEN_TAB = {
    mode: rf"{dark}button\[role=tab\]\[aria-selected=true\]" for mode, dark in (("", ""), ("_dark", r"\.dark "))
}
"""Its rule in the styles."""


def luminance(color):
    shares = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def color(found, name):
    """A colour of the theme, through all that it refers to."""
    value = getattr(found, name)
    while value.startswith("*"):
        value = getattr(found, value[1:])
    return {"white": "#ffffff", "black": "#000000"}.get(value, value)


def test_contrast_is_what_it_is_known_to_be():
    assert contrast("#ffffff", "#000000") == pytest.approx(21) and contrast("#767676", "#ffffff") > LEGIBLE


@pytest.mark.parametrize("mode", ["", "_dark"], ids=["light", "dark"])
def test_small_letters_are_legible(mode):
    found = theme()
    for state in ("", "_hover"):
        text = color(found, f"button_primary_text_color{mode}")
        assert contrast(text, color(found, f"button_primary_background_fill{state}{mode}")) >= LEGIBLE, state
    assert contrast(color(found, f"block_info_text_color{mode}"), PAGE[mode]) >= LEGIBLE
    behind_labels = color(found, f"block_label_background_fill{mode}")
    for name in ("label", "title"):
        assert contrast(color(found, f"block_{name}_text_color{mode}"), behind_labels) >= LEGIBLE, name
    (open_tab,) = re.findall(rf"^{OPEN_TAB[mode]} {{ color: var\(--(\w+-\d+)\)", STYLES, re.MULTILINE)
    for page in BEHIND_TABS[mode]:
        assert contrast(color(found, open_tab.replace("-", "_")), page) >= LEGIBLE


def test_every_control_of_every_tab_is_labelled_explained_and_named(served):
    from dattn.apps.demo.app import build

    demo = build(served[1], served[2])
    given = {one for fn in demo.fns.values() for one in fn.inputs if not isinstance(one, gr.Dataset | gr.State)}
    assert len(given) > 60
    for one in given:
        assert one.elem_id, one
        assert not one.visible or (one.label and (getattr(one, "info", "") or isinstance(one, gr.ImageEditor))), (
            one.elem_id
        )
    pressed = (gr.Button, gr.Tab, gr.Accordion, gr.Dataset, gr.ImageEditor)
    hints = [one.hint for one in demo.blocks.values() if isinstance(one, pressed) and one.elem_id]
    assert len(hints) == sum(isinstance(one, pressed) for one in demo.blocks.values()) > 20 and all(hints)
    assert all(json.dumps(hint) in script(demo) for hint in hints)
    names = [one.elem_id for one in demo.blocks.values() if one.elem_id]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("tab", [GenerateTab, EditTab, RegionsTab, InsideTab, FinetuneTab], ids=lambda tab: tab.action)
def test_a_prompt_that_was_typed_stays_when_the_model_changes(served, sd_folder, tab):
    with gr.Blocks() as demo:
        tab(*served[1:3]).build()
    (changed,) = (one for one in demo.fns.values() if one.fn.__name__ == "choose_model")
    prompts = changed.inputs[1:]
    assert prompts and set(prompts) <= set(changed.outputs) and changed.show_progress == "minimal"
    for texts, stay in (([one.value for one in prompts], False), (["my own"] * len(prompts), True)):
        updates = dict(zip(changed.outputs, changed.fn(str(sd_folder), *texts), strict=True))
        assert all(("value" not in updates[one]) == stay for one in prompts)


@pytest.mark.parametrize("wish", [(81, 480, 480), (1, 4096, 4096), (513, 16, 16), (33, 64, 64)])
@pytest.mark.parametrize("pixels", [5_000, 2_200_000])
def test_what_is_wished_for_at_first_may_be_made(wish, pixels):
    usual = Wishes("", *wish, 30, True)
    found = usual.within(pixels, 16)
    assert found.frames * found.height * found.width <= pixels and found.height % 16 == found.width % 16 == 0
    assert (found == usual) == (wish[0] * wish[1] * wish[2] <= pixels)
