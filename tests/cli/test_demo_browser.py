"""The demo in a real browser; skipped where there is no Playwright or no Chromium."""

import shutil
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
pytest.importorskip("gradio")

from dattn.apps.demo import defaults  # noqa: E402, after the checks for what is installed
from dattn.apps.demo.app import build, launch  # noqa: E402
from dattn.apps.demo.screenshots import TABS, open_tab  # noqa: E402
from dattn.apps.demo.studio import Studio  # noqa: E402
from dattn.apps.demo.visits import Visits  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, such as Debian's package of that name"),
]
PHONE = {"width": 380, "height": 800}
SCREEN = {"width": 1920, "height": 1080}


@pytest.fixture(scope="module")
def address(shapes_folder, sd_folder):
    studio, visits = Studio([str(shapes_folder), str(sd_folder)], device="cpu"), Visits()
    demo = build(studio, visits)
    _, address, _ = launch(demo, defaults(), prevent_thread_lock=True, quiet=True)
    yield address
    demo.close()
    visits.close()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=str(Path(CHROMIUM)), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.errors = []
    page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
    page.goto(address)
    page.wait_for_selector("#estimate .badge")
    yield page
    page.close()


def set_number(page, name, value):
    box = page.locator(f"#{name} input[type=number]").first
    box.fill(str(value))
    box.press("Tab")


def test_a_clip_is_made_with_progress_and_shown(page):
    page.wait_for_selector("#estimate .badge")
    page.click("#size > button")
    set_number(page, "steps", 6)
    page.click("#go")
    page.wait_for_selector("text=/step \\d+ of 6/", timeout=60000)
    page.wait_for_selector("#dattn-clip video", timeout=120000)
    page.wait_for_selector("#stock-clip video")
    assert "Speed-up" in page.inner_text("#facts")
    assert page.locator("#gallery .grid-container button, #gallery .thumbnail-item").count() == 1
    assert not page.errors


def test_what_was_made_is_downloaded_from_the_gallery_and_fits_a_phone(page):
    page.set_viewport_size(PHONE)
    page.click("#size > button")
    set_number(page, "steps", 2)
    page.click("#go")
    page.wait_for_selector("#dattn-clip video", timeout=120000)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.locator("#gallery .grid-container button, #gallery .thumbnail-item").first.click()
    with page.expect_download() as download:
        page.click("#gallery button[aria-label='Download'], #gallery a[download]")
    assert download.value.path().stat().st_size > 100
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert not page.errors


def test_the_first_page_tells_of_the_start_and_gives_way_to_the_demo(browser, demo_process, shapes_folder):
    with demo_process("--model", str(shapes_folder)) as (address, told):
        page = browser.new_page()
        page.goto(address)
        assert page.inner_text("[role=status]").startswith("Loading")
        page.wait_for_selector("#estimate .badge", timeout=120000)
        assert next(told) == address
        page.close()


def test_the_first_page_tells_of_a_demo_that_has_ended(browser, demo_process, shapes_folder):
    page = browser.new_page()
    with demo_process("--model", str(shapes_folder)) as (address, _):
        page.goto(address)
    page.wait_for_selector("text=has ended", timeout=60000)
    page.close()


def test_what_is_pressed_has_a_tooltip(page):
    for place in ("#go", "#stop", "#tab-edit-button", "#size > button", "#examples"):
        page.wait_for_function("place => document.querySelector(place).title.length > 10", arg=place)
    for name in TABS:
        open_tab(page, name)
        bare = "[...document.querySelectorAll('button[role=tab], button.lg, .label-wrap')].filter(b => !b.title)"
        page.wait_for_function(f"{bare}.length === 0")
    assert not page.errors


def test_sliders_write_the_pattern(page):
    before = page.input_value("#pattern textarea")
    set_number(page, "knob-0", 32)
    page.wait_for_function("before => document.querySelector('#pattern textarea').value !== before", arg=before)
    assert page.input_value("#pattern textarea") == "Radial(block_size=32)"


def test_a_run_is_stopped(page):
    page.click("#size > button")
    set_number(page, "steps", 200)
    page.click("#go")
    page.wait_for_selector("text=/step \\d+ of 200/", timeout=60000)
    page.click("#stop")
    page.wait_for_selector("text=Stopped.", timeout=20000)
    assert page.locator("#dattn-clip video").count() == 0


def test_bad_input_is_shown_and_goes_away(page):
    page.fill("#pattern textarea", "Nowhere()")
    page.click("#go")
    page.wait_for_selector("text=unknown pattern", timeout=20000)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, SCREEN], ids=lambda size: str(size["width"]))
def test_no_tab_is_wider_than_the_page(page, address, theme, size):
    page.set_viewport_size(size)
    page.goto(f"{address}?__theme={theme}")
    page.wait_for_selector("#estimate .badge")
    for name, (button, _) in TABS.items():
        if name != "Long video":  # which the tiny models do not serve
            open_tab(page, name)
            page.wait_for_selector(f"#{button}")
            assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], name


def test_a_painted_mask_is_the_region(page):
    open_tab(page, "Regions")
    page.fill("#regions-prompt-2 input, #regions-prompt-2 textarea", "")
    page.fill("#regions-box-1 input, #regions-box-1 textarea", "")
    page.click("#regions-canvas button[aria-label=Brush]")
    canvas = page.locator("#regions-canvas canvas").first.bounding_box()
    middle = canvas["x"] + canvas["width"] / 2, canvas["y"] + canvas["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 40, middle[1] + 20, steps=8)
    page.mouse.up()
    page.click("#regions-size > button")
    set_number(page, "regions-steps", 2)
    page.click("#regions-go")
    page.wait_for_selector("#regions-dattn-clip video, #regions-slider img", timeout=120000)
    assert "Regions" in page.inner_text("#regions-facts") and not page.errors


def test_the_canvas_follows_the_size(page):
    open_tab(page, "Regions")
    page.wait_for_selector("#regions-canvas canvas")
    page.click("#regions-size > button")
    enlarged = "() => parseInt(document.querySelector('#regions-canvas')?.innerText.match(/(\\d+)%/)?.[1])"
    page.wait_for_function(enlarged)
    before = page.evaluate(enlarged)
    set_number(page, "regions-height", 16)  # half as high: there is room to show it larger
    page.wait_for_function(f"before => ({enlarged})() > 1.2 * before", arg=before)
    assert not page.errors


@pytest.fixture
def edited(page):
    """The page with an edit on it."""
    open_tab(page, "Edit")
    page.click("#edit-size > button")
    set_number(page, "edit-steps", 2)
    page.click("#edit-go")
    page.wait_for_selector("#edit-facts .badge:has-text('Both')", timeout=120000)
    return page


def test_the_divider_of_two_pictures_is_moved_by_keyboard(edited):
    page, divider = edited, edited.get_by_role("slider", name="Divider of the two pictures")
    divider.wait_for()
    assert "edit-slider" in page.evaluate(CONTROLS)
    divider.focus()
    seen = [divider.bounding_box()["x"]]
    for key in ("ArrowRight", "ArrowLeft", "ArrowLeft"):
        page.keyboard.press(key)
        page.wait_for_timeout(200)
        seen.append(divider.bounding_box()["x"])
    start, right, back, left = seen
    assert right - start == pytest.approx(start - left, abs=8) and right - start > 8 and abs(back - start) < 8
    assert divider.get_attribute("aria-valuenow") == "45"


def test_what_another_tab_made_is_in_the_gallery(edited):
    page = edited
    open_tab(page, "Generate")
    page.wait_for_selector("#gallery :text('Edit ·')", timeout=20000)


def test_no_panel_of_a_look_inside_is_empty(page):
    open_tab(page, "Look inside")
    page.click("#inside-size > button")
    set_number(page, "inside-steps", 2)
    page.click("#inside-go")
    page.wait_for_selector("#inside-charts svg", timeout=120000)
    assert page.locator("#inside-charts figure").count() == 5
    marks = "all => all.map(x => x.querySelectorAll('path, image').length)"
    drawn = page.eval_on_selector_all("#inside-charts svg", marks)
    assert min(drawn) > 1, drawn
    before = page.inner_html("#inside-charts")
    page.click("#inside-head input")
    page.locator("[role=option]", has_text="1").first.click()
    page.wait_for_function("before => document.querySelector('#inside-charts').innerHTML !== before", arg=before)
    assert not page.errors


def test_the_loss_is_seen_while_it_learns(page):
    open_tab(page, "Fine-tune")
    set_number(page, "finetune-train-steps", 300)
    page.click("#finetune-go")
    page.wait_for_selector("#finetune-loss svg", timeout=120000)
    before = page.inner_html("#finetune-loss")
    page.wait_for_function("before => document.querySelector('#finetune-loss').innerHTML !== before", arg=before)
    page.click("#finetune-stop")
    page.wait_for_selector("text=Stopped.", timeout=20000)


CONTROLS = """() => {
  const panel = [...document.querySelectorAll("[role=tabpanel]")].find((one) => one.offsetParent);
  window.controls = [...panel.querySelectorAll("input, textarea, button, select, [tabindex]")].filter(
    (one) => one.checkVisibility() && one.getClientRects().length && !one.disabled && one.tabIndex >= 0);
  controls[0].focus();
  return controls.map((one) => one.closest("[id]").id);
}"""
"""Gives what can be used in the tab that is open, each by the id of its block, and begins with the first."""
NEXT = "controls.indexOf(document.activeElement)"


def by_tab(page, names):
    """Places of the controls in the order in which Tab comes to them."""
    found = []
    for _ in range(2 * len(names)):
        found.append(page.evaluate(NEXT))
        page.keyboard.press("Tab")
        if found[-1] == len(names) - 1:
            break
    return [place for place in found if place >= 0]


@pytest.mark.parametrize("name", TABS)
def test_every_tab_is_used_by_keyboard(page, name):
    """Tab comes to all controls from first to last, folded ones too, and Enter on the main one makes something."""
    button = TABS[name][0]
    prefix = button.removesuffix("go")
    open_tab(page, name)
    page.wait_for_selector(f"#{button}")
    while (folded := page.locator("[role=tabpanel] button.label-wrap:not(.open):visible")).count():
        folded.first.click()
    for steps in ("steps", "train-steps"):
        if page.locator(f"#{prefix}{steps}").count():
            set_number(page, f"{prefix}{steps}", 2)
    names = page.evaluate(CONTROLS)
    assert {button, f"{prefix}stop", f"{prefix}model", f"{prefix}seed"} <= set(names)
    assert by_tab(page, names) == [*range(len(names))], names
    page.focus(f"#{button}")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"#{prefix}facts .badge:not(:has-text('Ready'))", timeout=240_000)
    assert not page.errors


def test_every_control_has_a_name(page):
    names = page.eval_on_selector_all(
        "input:not([type=hidden]), textarea, button",
        "all => all.filter(x => x.offsetParent && !(x.ariaLabel || x.innerText || x.labels?.length || x.title))"
        ".map(x => x.outerHTML.slice(0, 120))",
    )
    assert names == []
