"""The tab that makes a clip by stock attention and by another, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import gradio as gr

from ..media import write_clip
from ..running import Request, Result
from . import knobs, limits
from .hints import folded, hinted
from .look import badges
from .parts import Pair, SizeControls, Update, example, lora_choice
from .serving import ASIDE, QUIET, Given, Job, named, served, while_typing
from .snippet import snippet
from .tab import Tab
from .wishes import Wishes

CLIPS = ("a red circle moving right", "a blue square moving up", "a green triangle moving left")
PICTURES = ("a red circle above a blue square", "a yellow triangle", "a white square left of a green circle")
OWN = "Written by hand"
NO_MASK = "Patterns that choose anew in every step have no mask that could be shown beforehand; the report says more."
BY_HAND = "Write any pattern of the library below"


class GenerateTab(Tab):
    """The first tab."""

    action, hint = "Generate", "Make the clip twice from one noise, by stock attention and by the one chosen"
    stop_api: ClassVar[dict[str, Any]] = {"api_name": "stop", "api_description": "End all that you have asked for."}

    def build_wish(self, name: str, wishes: Wishes) -> None:
        """What is to be made."""
        video, offer = wishes.video, knobs.offers(wishes.video)[0]
        self.prompt = gr.Textbox(
            wishes.prompt, label="Prompt", info="What to show", lines=2, max_length=limits.LONGEST_PROMPT,
            elem_id="prompt",
        )  # fmt: skip
        examples = gr.Dataset(
            components=[gr.Textbox(visible=False)], samples=[[text] for text in (CLIPS if video else PICTURES)],
            label="Examples", elem_id="examples",
        )  # fmt: skip
        self.examples = hinted(examples, "Press one to take it as the prompt")
        self.model = self.model_choice(name, "The shapes models run on any laptop")
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
        self.lora = lora_choice()
        self.size = self.size_controls(wishes)

    def build_results(self, wishes: Wishes) -> None:
        """Both clips, and all that is shown below them."""
        self.pair = Pair("Stock attention", "dattn", wishes.video)
        with folded("The mask: blocks that are computed", "Which queries see which keys", "mask-box"):
            gr.Markdown(NO_MASK, elem_id="mask-note")
            self.mask = gr.Image(label="Mask", show_label=False, interactive=False, elem_id="mask")
        with folded("Report", "Layer by layer, what ran and what it saved", "report-box"):
            self.report = gr.Textbox(
                label="What ran in each layer", lines=12, max_lines=24, interactive=False, elem_id="report",
                elem_classes="monospace", buttons=["copy"],
            )  # fmt: skip
        with folded("The same in Python", "A script that makes exactly this clip", "code-box"):
            self.code = gr.Code(label="Script", language="python", interactive=False, elem_id="code")
        self.gallery = gr.Gallery(
            label="Made in this visit", columns=4, height=220, interactive=False, preview=False, object_fit="contain",
            elem_id="gallery", elem_classes="headed", buttons=["download", "fullscreen"],
        )  # fmt: skip

    def connect(self) -> None:
        """Say what the controls do."""
        told = {"model": self.model, "pattern": self.pattern, **self.size.size, "dense": self.dense}
        self.examples.click(served(lambda row: row[0]), self.examples, self.prompt, **QUIET)
        self.kind.change(served(self.choose_kind), self.kind, [self.kind, *self.sliders, self.pattern], **QUIET)
        for slider in self.sliders:
            slider.change(served(self.retell), [self.kind, self.pattern, *self.sliders], self.pattern, **QUIET)
        chosen = [self.prompt, self.kind, *self.size.fitted, *self.pair.either, self.examples]
        self.on_model(self.choose_model, chosen, [self.prompt])
        gr.on(  # when the page is loaded, and when one of them changes
            None, named("estimate", while_typing(self.guess)), list(told.values()), self.estimate,
            trigger_mode="always_last", api_name="estimate", show_progress="hidden",
            api_description="Tokens of a clip, and the share of attention that a pattern computes.", **ASIDE,
        )  # fmt: skip
        self.on_go(
            self.make,
            {
                "model": self.model, "prompt": self.prompt, "pattern": self.pattern, "dense": self.dense,
                **self.size.inputs, "lora": self.lora,
            },
            [self.size.seed, *self.pair.outputs, self.mask, self.report, self.code, self.gallery],
            "generate",
            "Make a clip or picture by stock attention and under a pattern, from the same noise.",
        )  # fmt: skip

    def refill(self, request: gr.Request) -> list[tuple[str, str]]:
        """What the visitor has made, in other tabs too."""
        visit = self._visits.known(request.session_hash)
        return [] if visit is None else visit.runs

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

    def choose_model(self, name: str, prompt: Any) -> list[Update]:
        """Another model: what it likes."""
        wishes = self.wishes(name)
        video = wishes.video
        titles = _titles(video)
        return [
            example(prompt, [*self._studio.examples, *CLIPS, *PICTURES], wishes.prompt),
            gr.update(choices=titles, value=titles[0]),
            *SizeControls.fit(wishes),
            *Pair.turn(video),
            gr.update(samples=[[text] for text in (CLIPS if video else PICTURES)]),
        ]

    def guess(self, model: Any, pattern: Any, frames: Any, height: Any, width: Any, dense: Any) -> str:
        """Tokens and work of what would be made, before it is.

        Raises:
            ValueError: what is wrong with it.
        """
        request = self._studio.request({"model": model, "frames": frames, "height": height, "width": width})
        attention, first = limits.attention(pattern), self._dense(dense)
        grid = self._studio.grid_now(model, request)
        if grid is None:
            return badges({"Tokens": "counted when the device is free"})
        share = self._studio.share(attention, self._studio.limits.grid(grid))
        told = {"Tokens": f"{grid.tokens:,}", "Attention computed": f"about {first + (1 - first) * share:.0%}"}
        return badges(told | ({"after the dense steps": f"{share:.0%}"} if first and attention != "stock" else {}))

    def _dense(self, value: Any) -> float:
        return self._studio.limits.number(value, "Dense at first", 0, 0.9)

    def make(self, given: Given, job: Job) -> tuple[Any, ...]:
        """Make both, and all that is shown beside them."""
        model, wish = given["model"], self._studio.request(given)
        attention = limits.attention(given["pattern"])
        dense = self._dense(given["dense"])
        lora = job.visit.lora_for(model, given["lora"])
        stock, made = self._studio.make(model, wish, attention, dense, job, lora)
        with self._studio.model(model) as loaded:
            code = snippet(loaded, wish, attention, dense, lora is not None)
        place = job.visit.place()
        files = [write_clip(result.clip, place, name) for name, result in (("stock", stock or made), ("dattn", made))]
        job.visit.keep(files[-1], attention, wish.prompt, wish.seed)
        return (
            badges({**facts(stock, made), "Seed": str(wish.seed)}),
            wish.seed,
            *Pair.shown(files),
            self._mask(attention, model, wish, place),
            made.table or "Stock attention.",
            code,
            job.visit.runs,
        )

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
