"""The tab that makes a clip by stock attention and by another, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from ..media import write_clip
from ..running import Request, Result
from . import knobs, limits
from .look import badges
from .parts import Pair, SizeControls, Update, Wishes
from .serving import DEVICE, served, telling
from .snippet import snippet
from .studio import Studio
from .visits import Visits

CLIPS = ("a red circle moving right", "a blue square moving up", "a green triangle moving left")
PICTURES = ("a red circle above a blue square", "a yellow triangle", "a white square left of a green circle")
OWN = "Written by hand"
BY_HAND = "Write any pattern of the library below"


class GenerateTab:
    """Its controls, and what they do.

    Args:
        studio: makes the clips.
        visits: whose they are.
    """

    def __init__(self, studio: Studio, visits: Visits) -> None:
        self._studio, self._visits = studio, visits

    def build(self, demo: gr.Blocks) -> None:
        """Lay it out, in the Blocks that are open."""
        name = self._studio.models[0]
        with self._studio.model(name) as loaded:
            wishes = Wishes.of(loaded)
        video = wishes.video
        offer = knobs.offers(video)[0]
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                self._build_wish(name, video, wishes, offer)
            with gr.Column(scale=3, min_width=300):
                self._build_results(video)
        self._connect(demo)

    def _build_wish(self, name: str, video: bool, wishes: Wishes, offer: knobs.Offer) -> None:
        """The left side: what is to be made."""
        self.prompt = gr.Textbox(
            wishes.prompt, label="Prompt", info="What to show", lines=2, max_length=limits.LONGEST_PROMPT,
            elem_id="prompt",
        )  # fmt: skip
        self.examples = gr.Dataset(
            components=[gr.Textbox(visible=False)], samples=[[text] for text in (CLIPS if video else PICTURES)],
            label="Examples", elem_id="examples",
        )  # fmt: skip
        self.model = gr.Dropdown(
            self._studio.models, value=name, label="Model", info="The shapes models run on any laptop", elem_id="model"
        )
        self.kind = gr.Dropdown(
            _titles(video), value=offer.title, label="Attention", info=offer.info, elem_id="attention"
        )
        self.sliders = [_slider(offer, i) for i in range(knobs.MOST)]
        self.pattern = gr.Textbox(
            offer.written({knob.name: knob.value for knob in offer.knobs}), label="As in code", elem_id="pattern",
            info="Any pattern of the library that reads no files", max_length=limits.LONGEST_PROMPT,
        )  # fmt: skip
        self.dense = gr.Slider(
            0, 0.9, 0.25, step=0.05, label="Dense at first", elem_id="dense",
            info="Share of the steps with stock attention: first ones decide what is where",
        )  # fmt: skip
        self.estimate = gr.HTML(elem_id="estimate", min_height=36)
        self.size = SizeControls(wishes)
        with gr.Row():
            self.go = gr.Button("Generate", variant="primary", elem_id="go")
            self.stop = gr.Button("Stop", variant="stop", elem_id="stop")

    def _build_results(self, video: bool) -> None:
        """The right side: what was made."""
        self.facts = gr.HTML(badges({"Ready": "press Generate"}), elem_id="facts", min_height=36)
        self.pair = Pair("Stock attention", "dattn", video)
        with gr.Accordion("The mask: blocks that are computed", open=False, elem_id="mask-box"):
            self.mask = gr.Image(label="Mask", show_label=False, interactive=False, elem_id="mask")
        with gr.Accordion("Report", open=False, elem_id="report-box"):
            self.report = gr.Textbox(
                label="What ran in each layer", lines=12, max_lines=24, interactive=False, elem_id="report",
                elem_classes="monospace", buttons=["copy"],
            )  # fmt: skip
        with gr.Accordion("The same in Python", open=False, elem_id="code-box"):
            self.code = gr.Code(label="Script", language="python", interactive=False, elem_id="code")
        self.gallery = gr.Gallery(
            label="Made in this visit", columns=4, height=220, interactive=False, preview=False, object_fit="contain",
            elem_id="gallery", buttons=["download", "fullscreen"],
        )  # fmt: skip

    def _connect(self, demo: gr.Blocks) -> None:
        """Say what the controls do."""
        size = self.size.size
        quiet: Any = {"show_progress": "hidden", "api_visibility": "private"}
        alone: Any = {"concurrency_limit": 1, "concurrency_id": DEVICE}
        self.examples.click(lambda row: row[0], self.examples, self.prompt, **quiet)
        self.kind.change(self.choose_kind, self.kind, [self.kind, *self.sliders, self.pattern], **quiet)
        for slider in self.sliders:
            slider.change(self.retell, [self.kind, self.pattern, *self.sliders], self.pattern, **quiet)
        wish = [self.prompt, self.kind, *self.size.fitted, *self.pair.either, self.examples]
        self.model.change(self.choose_model, self.model, wish, **quiet, **alone)
        for control in (self.pattern, self.model, *size):
            control.change(
                served(self.guess), [self.model, self.pattern, *size], self.estimate, trigger_mode="always_last",
                api_name="estimate", api_visibility="public" if control is self.pattern else "private",
                api_description="Tokens of a clip, and the share of attention that a pattern computes.",
                show_progress="hidden", **alone,
            )  # fmt: skip
        demo.load(self.guess, [self.model, self.pattern, *size], self.estimate, **quiet, **alone)
        self.go.click(
            served(self.make),
            [self.model, self.prompt, self.pattern, self.dense, *self.size.inputs],
            [self.size.seed, self.facts, *self.pair.outputs, self.mask, self.report, self.code, self.gallery],
            api_name="generate",
            api_description="Make a clip or picture by stock attention and under a pattern, from the same noise.",
            show_progress_on=[self.facts],
            **alone,
        )  # fmt: skip
        self.stop.click(self.halt, None, None, queue=False, api_name="stop", api_description="End what runs for you.")

    def choose_kind(self, title: str) -> list[Update]:
        """Another pattern: its line, its sliders, and how it is written."""
        if title == OWN:
            return [gr.update(info=BY_HAND), *[gr.update(visible=False)] * knobs.MOST, gr.update()]
        offer = knobs.by_title(title)
        told = offer.written({knob.name: knob.value for knob in offer.knobs})
        return [gr.update(info=offer.info), *(_slid(offer, i) for i in range(knobs.MOST)), gr.update(value=told)]

    def retell(self, title: str, pattern: str, *values: float) -> str:
        """The pattern with what the sliders say."""
        if title == OWN:
            return pattern
        offer = knobs.by_title(title)
        return offer.written({knob.name: value for knob, value in zip(offer.knobs, values, strict=False)})

    def choose_model(self, name: str) -> list[Update]:
        """Another model: what it likes."""
        with self._studio.model(name) as loaded:
            wishes = Wishes.of(loaded)
        video = wishes.video
        titles = _titles(video)
        return [
            gr.update(value=wishes.prompt),
            gr.update(choices=titles, value=titles[0]),
            *SizeControls.fit(wishes),
            *Pair.turn(video),
            gr.update(samples=[[text] for text in (CLIPS if video else PICTURES)]),
        ]

    def guess(self, model: Any, pattern: Any, frames: Any, height: Any, width: Any) -> str:
        """Tokens and density of what would be made, before it is."""
        request = self._studio.request(model, "a", frames, height, width, 1, 0)
        attention = limits.attention(pattern)
        grid = self._studio.grid(model, request)
        share = self._studio.share(attention, grid)
        return badges({"Tokens": f"{grid.tokens:,}", "Attention computed": f"about {share:.0%}"})

    def make(
        self,
        model: Any,
        prompt: Any,
        pattern: Any,
        dense: Any,
        frames: Any,
        height: Any,
        width: Any,
        steps: Any,
        seed: Any,
        another: Any,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008, Gradio reads it off the signature
    ) -> tuple[Any, ...]:
        """Make both, and all that is shown beside them."""
        seed = limits.fresh_seed() if another is True else seed
        wish = self._studio.request(model, prompt, frames, height, width, steps, seed)
        attention, dense = limits.attention(pattern), self._studio.limits.number(dense, "Dense at first", 0, 0.9)
        visit = self._visits.of(request.session_hash)
        stock, made = self._studio.make(model, wish, attention, dense, telling(visit, progress))
        with self._studio.model(model) as loaded:
            code = snippet(loaded, wish, attention, dense)
        place = visit.place()
        files = [write_clip(result.clip, place, name) for name, result in (("stock", stock or made), ("dattn", made))]
        visit.keep(files[-1], f"{wish.prompt} · {attention} · seed {wish.seed}")
        mask = self._mask(attention, model, wish, place)
        return (
            wish.seed,
            badges(facts(stock, made)),
            *Pair.shown(files),
            mask,
            made.table or "Stock attention.",
            code,
            visit.runs,
        )

    def halt(self, request: gr.Request) -> None:
        """End the visitor's run within a step."""
        visit = self._visits.known(request.session_hash)
        if visit is not None:
            visit.stop.set()

    def _mask(self, attention: str, model: str, wish: Request, place: Path) -> str | None:
        """A picture of a static pattern's mask; None of others."""
        picture = self._studio.mask(attention, self._studio.grid(model, wish))
        if picture is None:
            return None
        picture.save(place / "mask.png")
        return str(place / "mask.png")


def facts(stock: Result | None, made: Result) -> dict[str, str]:
    """What is written above a result."""
    told = {"dattn" if stock else "Seconds": f"{made.seconds:.1f} s"}
    if stock is not None:
        told = {"Stock": f"{stock.seconds:.1f} s", **told, "Speed-up": f"{stock.seconds / made.seconds:.2f} ×"}
    if made.density is not None:
        told["Density"] = f"{made.density:.0%}"
    if stock is not None:
        told["PSNR"] = "∞" if made.psnr is None else f"{made.psnr:.1f} dB"
    if made.judged is not None:
        told["Judge"] = "as asked" if made.judged else "not as asked"
    return told


def _titles(video: bool) -> list[str]:
    return [*(offer.title for offer in knobs.offers(video)), OWN]


def _slider(offer: knobs.Offer, index: int) -> gr.Slider:
    """The slider at a place; hidden where the pattern has no knob for it."""
    if index >= len(offer.knobs):
        return gr.Slider(0, 1, visible=False, elem_id=f"knob-{index}")
    return gr.Slider(visible=True, elem_id=f"knob-{index}", **offer.knobs[index].slider)


def _slid(offer: knobs.Offer, index: int) -> Update:
    """The same, for one that is there."""
    if index >= len(offer.knobs):
        return dict(gr.update(visible=False))
    return dict(gr.update(visible=True, **offer.knobs[index].slider))
