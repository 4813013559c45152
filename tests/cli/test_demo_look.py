"""How the demo looks, as far as no browser is needed."""

import pytest

pytest.importorskip("gradio")

from dattn.apps.demo.look import theme

LEGIBLE = 4.5
"""Contrast of small letters, by WCAG 2.1 AA."""
PAGE = {"": "#ffffff", "_dark": "#1e293b"}
"""What is behind the text of blocks."""


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
