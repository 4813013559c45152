"""How the demo looks: theme, styles, and the few lines of script for what Gradio lacks."""

from __future__ import annotations

from typing import Any

STYLES = """
.badges { display: flex; flex-wrap: wrap; gap: .5rem; margin: .25rem 0; }
.badge { border: 1px solid var(--border-color-primary); border-radius: 999px; padding: .15rem .7rem;
  background: var(--background-fill-secondary); color: var(--body-text-color); font-size: .9rem; white-space: nowrap; }
.badge b { color: var(--primary-600); } .dark .badge b { color: var(--primary-400); }
button[role=tab][aria-selected=true] { color: var(--primary-600); }
.dark button[role=tab][aria-selected=true] { color: var(--primary-400); }
.not-yet { overflow-wrap: anywhere; }
.clip video, .clip img { image-rendering: pixelated; width: 100%; object-fit: contain; }
.monospace textarea { font-family: monospace; font-size: .75rem; white-space: pre; overflow-x: auto; }
.timeline .bar { background: var(--primary-600); color: white; border-radius: 6px; padding: .2rem .6rem;
  margin-top: .3rem; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; font-size: .85rem;
  box-sizing: border-box; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(280px, 100%), 1fr)); gap: 1rem; }
.chart { margin: 0; color: var(--body-text-color); border: 1px solid var(--border-color-primary); border-radius: 8px;
  padding: .6rem; background: var(--background-fill-primary); min-width: 0; }
.chart svg { width: 100%; height: auto; display: block; }
.chart figcaption { font-size: .85rem; margin-top: .3rem; }
.chart-empty { color: var(--body-text-color-subdued); padding: 2rem 1rem; text-align: center; }
#regions-canvas .empty, #regions-canvas .empty * { color: #475569; }
#gallery .grid-container { grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)) !important; }
#gallery .thumbnail-item video, #gallery .thumbnail-item img { object-fit: contain !important; }
#gallery .caption-label { max-width: 100%; font-size: .7rem; line-height: 1.2; white-space: normal; }
#finetune-grid .icon-button-wrapper { top: -2.2rem; }
.headed { padding-top: 2.6rem !important; }
@media (max-width: 500px) { .headed > label { max-width: calc(100% - 6.5rem); } }
#hero h1 { margin-bottom: .1rem; }
@media (max-width: 500px) { .gradio-container { padding: .5rem !important; } }
"""
IN_STEP = """
<script>
const near = 0.03;  // seconds: half a frame at 16 a second
const together = (one) => {  // all pairs of a tab: a word's map goes with the edit that it is of
  const tab = one.closest?.(".pair") && one.closest("[role=tabpanel]");
  return tab ? [tab, [...tab.querySelectorAll(".pair video")].filter((other) => other !== one)] : [null, []];
};
document.addEventListener("play", (event) => {
  const one = event.target, [tab, others] = together(one);
  if (!tab || tab.dataset.busy) return;
  tab.dataset.busy = "1";
  for (const other of others) { other.currentTime = one.currentTime; other.play(); }
  setTimeout(() => delete tab.dataset.busy, 200);
}, true);
for (const name of ["pause", "seeked"]) document.addEventListener(name, (event) => {
  const one = event.target, [, others] = together(one);
  if (one.ended) return;
  for (const other of others) {
    if (name === "pause" && !other.paused) other.pause();
    if (Math.abs(other.currentTime - one.currentTime) > near) other.currentTime = one.currentTime;
  }
}, true);

// the divider of two pictures, which Gradio lets mice move alone
const dividers = "div[data-testid=slider]", stride = { ArrowLeft: -5, ArrowDown: -5, ArrowRight: 5, ArrowUp: 5 };
const placed = (one) => {  // percent of the width; Gradio keeps the place in the transform alone
  const x = new DOMMatrix(getComputedStyle(one).transform).m41;
  return Math.round(100 * x / one.parentElement.clientWidth) || 0;
};
new MutationObserver(() => {
  for (const one of document.querySelectorAll(`${dividers}[role=none]`))
    Object.assign(one, { role: "slider", tabIndex: 0, ariaLabel: "Divider of the two pictures", ariaValueNow: "50" });
}).observe(document.documentElement, { childList: true, subtree: true });
document.addEventListener("focusin", (event) => {
  if (event.target.matches(dividers)) event.target.ariaValueNow = placed(event.target);
});
document.addEventListener("keydown", (event) => {
  const one = event.target;
  if (!stride[event.key] || !one.matches(dividers)) return;
  event.preventDefault();
  const to = Math.min(100, Math.max(0, placed(one) + stride[event.key]));
  const box = one.parentElement.getBoundingClientRect();
  const at = { bubbles: true, view: window, clientX: box.left + to * box.width / 100, clientY: box.top };
  for (const kind of ["mousedown", "mouseup"]) one.dispatchEvent(new MouseEvent(kind, at));
  one.ariaValueNow = to;
});
</script>
"""


def theme() -> Any:
    """Gradio's own, in one colour, where letters are pale a shade darker or lighter."""
    import gradio as gr

    return gr.themes.Soft(primary_hue="indigo", neutral_hue="slate").set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_700",
        block_label_text_color="*primary_700",
        block_title_text_color="*primary_700",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
    )


def not_yet(error: ValueError) -> str:
    """What is still wrong, in place of what would be told."""
    from html import escape

    return f'<div class="not-yet" role="status">Not yet: {escape(str(error))}</div>'


def badges(facts: dict[str, str]) -> str:
    """Facts as a row of small labels."""
    from html import escape

    parts = (f'<span class="badge">{escape(name)} <b>{escape(value)}</b></span>' for name, value in facts.items())
    return f'<div class="badges" role="status">{"".join(parts)}</div>'
