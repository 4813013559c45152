"""Pictures of every tab, light and dark: ``python -m dattn.apps.demo.screenshots FOLDER`` (Playwright and Chromium)."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from . import defaults
from .app import build, launch
from .studio import Studio
from .visits import Visits

TABS = {
    "Generate": ("go", "#dattn-clip video"),
    "Edit": ("edit-go", "#map-dattn-clip video"),
    "Regions": ("regions-go", "#regions-slider img"),
    "Long video": ("long-go", "#long-clip video"),
    "Look inside": ("inside-go", "#inside-charts svg"),
    "Fine-tune": ("finetune-go", "#finetune-facts .badge:has-text('Trained')"),
}
"""The button that starts each, and what is there when it is done."""
COLORS = 128
"""Of a picture, so that it stays small."""
DONE, SETTLED = 600_000, 1_500
"""Milliseconds that a run may take, and that its result takes to be drawn."""


def open_tab(page: Any, name: str) -> None:
    """Open a tab, from the menu where there is no room for it."""
    tab = page.get_by_role("tab", name=name).first
    if not tab.is_visible():
        page.locator(".overflow-menu > button").first.click()
        tab = page.locator(".overflow-dropdown button", has_text=name).first
    tab.click()


def screenshots(browser: Any, address: str, folder: Path, width: int, theme: str, tabs: Sequence[str]) -> None:
    """Make something in every tab and take its picture.

    Args:
        browser: of Playwright.
        address: of a demo.
        folder: for PNG files, which is there.
        width: of the page in pixels.
        theme: ``light`` or ``dark``.
        tabs: of ``TABS``.
    """
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(f"{address}?__theme={theme}")
    page.wait_for_selector("#estimate .badge")
    for name in tabs:
        button, result = TABS[name]
        open_tab(page, name)
        page.click(f"#{button}")
        page.wait_for_selector(result, timeout=DONE)
        page.wait_for_timeout(SETTLED)
        path = folder / f"{name.lower().replace(' ', '-')}-{theme}-{width}.png"
        page.screenshot(path=path, full_page=True)
        Image.open(path).convert("RGB").quantize(COLORS).save(path, optimize=True)
    page.close()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--widths", nargs="+", type=int, default=[1280], help="of the page in pixels")
    parser.add_argument("--themes", nargs="+", choices=("light", "dark"), default=["light", "dark"])
    parser.add_argument("--tabs", nargs="+", choices=TABS, default=list(TABS))
    options = parser.parse_args(argv)
    options.folder.mkdir(parents=True, exist_ok=True)
    studio, visits = Studio(device="cpu"), Visits()
    demo = build(studio, visits)
    _, address, _ = launch(demo, defaults(), prevent_thread_lock=True, quiet=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for width in options.widths:
            for theme in options.themes:
                screenshots(browser, address, options.folder, width, theme, options.tabs)
        browser.close()
    demo.close()
    visits.close()


if __name__ == "__main__":
    main()
