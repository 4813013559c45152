"""The tab of regions: a prompt for each part of the picture, painted on a canvas or given as a box."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import gradio as gr
from PIL import Image

import dattn
from dattn.control import Region, Regions

from ..media import write_clip
from ..running import run
from . import limits
from .hints import folded, hinted
from .look import badges
from .painting import COLORS, around, boxed, outlined, painted, softened, zoom
from .parts import Pair, SizeControls, Update, examples, lora_choice
from .serving import ASIDE, QUIET, Given, Job, served
from .tab import Tab
from .wishes import Wishes

FIRST = {
    True: (
        "a red circle standing still and a blue square standing still",
        "a red circle standing still",
        "a blue square standing still",
    ),
    False: ("a red circle and a blue square", "a red circle", "a blue square"),
}
"""Base prompt and those of two regions, of videos and of pictures."""
HELP = "Paint each region in its colour. One that is not painted is its box. Another shape empties the canvas."
ORDER = ("shapes-sd", "shapes-flux", "shapes-wan")
BOXES = ("0, 0, 0.5, 1", "0.5, 0, 1, 1", "", "")
MOST_SOFT = 32
PAINTED, AROUND = "as painted", "the box around it"
"""What counts of what is painted."""
APART: dict[bool, tuple[Any, ...]] = {True: (0.15, True, True, 0.5, 0), False: (0.2, False, False, 1.0, 0)}
"""Base ratio, isolation, avoidance, share of the steps and soft edge that place shapes best, in videos or pictures."""


class RegionsTab(Tab):
    """Up to four regions."""

    prefix, action, hint = "regions-", "Make", "Make it without and with the regions, from one noise"

    @property
    def models(self) -> list[str]:
        """The demo's own in the order in which they keep objects apart, that of videos last."""
        return sorted(self._studio.models, key=lambda name: ORDER.index(name) if name in ORDER else -1)

    def build_wish(self, name: str, wishes: Wishes) -> None:
        """The prompts, and where each of them holds."""
        most = limits.LONGEST_PROMPT
        self.prompt = gr.Textbox(
            FIRST[wishes.video][0], label="Base prompt", info="Of the whole picture", lines=2, max_length=most,
            elem_id="regions-prompt",
        )  # fmt: skip
        canvas = gr.ImageEditor(
            type="pil", image_mode="RGBA", sources=[], transforms=[], layers=False, fixed_canvas=True,
            brush=gr.Brush(16, [*COLORS.values()], next(iter(COLORS.values())), "fixed"), buttons=["fullscreen"],
            canvas_size=_canvas(wishes.height, wishes.width), label="Canvas", elem_id="regions-canvas",
        )  # fmt: skip
        self.canvas = hinted(canvas, "Paint a region in the colour that is beside its prompt")
        self.shape = gr.State(_canvas(wishes.height, wishes.width))
        self.paint = gr.Radio(
            [PAINTED, AROUND], value=PAINTED, label="A painted region is", info="Draw a box by a stroke across it",
            elem_id="regions-paint",
        )  # fmt: skip
        gr.Markdown(HELP, elem_id="regions-help")
        texts = [*FIRST[wishes.video][1:], "", ""]
        rows = [self._build_region(*row) for row in zip(range(1, 5), COLORS, texts, BOXES, strict=True)]
        self.prompts, self.boxes = zip(*rows, strict=True)
        self.model = self.model_choice(name, "Any that Regions serves; others say why not")
        self.how = self._build_how(*APART[wishes.video])
        self.lora = lora_choice(self.prefix)
        self.size = self.size_controls(wishes)

    def _build_region(self, number: int, color: str, text: str, box: str) -> tuple[gr.Textbox, gr.Textbox]:
        """The prompt and the box of one region."""
        with gr.Row(elem_classes=f"region-{number}"):
            prompt = gr.Textbox(
                text, label=f"Region {number}, {color}", info="A prompt; empty for none", min_width=160,
                max_length=limits.LONGEST_PROMPT, elem_id=f"regions-prompt-{number}",
            )  # fmt: skip
            where = gr.Textbox(
                box, label="Box", info="Left, top, right, bottom, 0 to 1", min_width=120, max_length=60,
                elem_id=f"regions-box-{number}",
            )  # fmt: skip
        return prompt, where

    def _build_how(self, ratio: float, isolate: bool, avoid: bool, window: float, soft: int) -> dict[str, Any]:
        """How strictly regions are kept, by names of the API."""
        with folded("How strictly", "How much the regions know of each other", "regions-how"):
            return {
                "base_ratio": gr.Slider(
                    0, 1, ratio, step=0.05, label="Base ratio", elem_id="regions-ratio",
                    info="How much of the base prompt there is inside the regions",
                ),
                "isolate": gr.Checkbox(
                    isolate, label="Isolate", info="Regions do not see each other", elem_id="regions-isolate"
                ),
                "avoid": gr.Checkbox(
                    avoid, label="Avoid the others", info="Each region has the others' prompts as negative ones",
                    elem_id="regions-avoid",
                ),
                "window": gr.Slider(
                    0.05, 1, window, step=0.05, label="Share of the steps", elem_id="regions-window",
                    info="First steps decide what is where; later ones may see everything",
                ),
                "soft": gr.Slider(
                    0, MOST_SOFT, soft, step=1, label="Soft edge", info="Pixels of the picture", elem_id="regions-soft"
                ),
            }  # fmt: skip

    def build_results(self, wishes: Wishes) -> None:
        """Without and with regions."""
        self.pair = Pair("Base prompt", "Regions", wishes.video, "regions-", position=5)

    def connect(self) -> None:
        """Say what the controls do."""
        texts = [self.prompt, *self.prompts[:2]]
        changed = [*texts, self.canvas, *self.how.values(), *self.size.fitted, *self.pair.either]
        self.on_model(self.choose_model, changed, texts)
        sides = [self.size.height, self.size.width]
        gr.on(
            [side.change for side in sides], served(self.fit_canvas), [self.model, *sides, self.shape],
            [self.canvas, self.shape], trigger_mode="always_last", **QUIET, **ASIDE,
        ).then(lambda: gr.update(visible=True), None, self.canvas, **QUIET, **ASIDE)  # fmt: skip
        regions = {f"prompt_{number}": one for number, one in enumerate(self.prompts, 1)}
        regions |= {f"box_{number}": one for number, one in enumerate(self.boxes, 1)}
        self.on_go(
            self.make,
            {
                "model": self.model, "prompt": self.prompt, **regions, **self.how, **self.size.inputs,
                "lora": self.lora, "paint": self.paint, "canvas": self.canvas,
            },
            [self.size.seed, *self.pair.outputs],
            "regions",
            "Make a prompt with up to four regions that have prompts of their own. A region is its box, as fractions "
            "of the picture, unless its colour is painted on the canvas: then that, or the box around it.",
        )  # fmt: skip

    def choose_model(self, name: str, *prompts: Any) -> list[Update]:
        """Another model: what it likes."""
        wishes = self.wishes(name)
        texts = examples(prompts, FIRST, wishes.video)
        how = [gr.update(value=value) for value in APART[wishes.video]]
        return [*texts, gr.update(value=None), *how, *SizeControls.fit(wishes), *Pair.turn(wishes.video)]

    def fit_canvas(self, model: Any, height: Any, width: Any, shape: tuple[int, int]) -> list[Any]:
        """An empty canvas where the picture has another shape that the model makes, and its shape.

        It is hidden, for it takes a size only when it is shown anew.
        """
        try:
            wish = self._studio.request({"model": model, "frames": 1, "height": height, "width": width})
        except ValueError:  # half written
            return [gr.skip(), shape]
        assert wish.height and wish.width
        size = _canvas(wish.height, wish.width)
        if size[0] * shape[1] == size[1] * shape[0]:
            return [gr.skip(), shape]
        return [gr.update(visible=False, value=None, canvas_size=size), size]

    def make(self, given: Given, job: Job) -> tuple[Any, ...]:
        """Make the base prompt alone, and with the regions."""
        allowed, wish = self._studio.limits, self._studio.request(given)
        assert wish.height and wish.width
        scale = zoom(wish.height, wish.width)
        masks = self._masks(given, (wish.width * scale, wish.height * scale))
        control = Regions(
            self._regions(given, masks, allowed.number(given["soft"], "Soft edge", 0, MOST_SOFT) * scale),
            base_ratio=allowed.number(given["base_ratio"], "Base ratio", 0, 1),
            isolate=given["isolate"] is True,
            window=allowed.number(given["window"], "Share of the steps", 0.05, 1),
        )
        lora = job.visit.lora_for(given["model"], given["lora"])
        with self._studio.at_work(given["model"], wish, job.check, lora) as loaded:
            plain = run(loaded, wish, "stock", on_step=partial(job.tell, "base prompt", part=0, parts=2))
            with dattn.apply(loaded.pipe, None, control=[control]):
                made = run(loaded, wish, "stock", on_step=partial(job.tell, "regions", part=1, parts=2))
        colors = [*COLORS.values()]
        drawn = outlined(made.clip, {colors[number - 1]: mask for number, mask in masks.items()}, scale)
        place = job.visit.place()
        files = [write_clip(outlined(plain.clip, {}, scale), place, "plain"), write_clip(drawn, place, "regions")]
        job.visit.keep(files[-1], f"{len(masks)} regions", wish.prompt, wish.seed)
        told = {"Base prompt": f"{plain.seconds:.1f} s", "Regions": f"{made.seconds:.1f} s", "Seed": str(wish.seed)}
        return (badges(told), wish.seed, *Pair.shown(files))

    def _masks(self, given: Given, size: tuple[int, int]) -> dict[int, Image.Image]:
        """The regions that have a prompt, by number from 1 on.

        Raises:
            ValueError: none has, or one is nowhere.
        """
        found: dict[int, Image.Image] = {}
        for number, mask in enumerate(painted(given["canvas"], size), 1):
            prompt, box = given[f"prompt_{number}"], given[f"box_{number}"]
            if not isinstance(prompt, str) or not prompt.strip():
                continue
            self._studio.limits.prompt(prompt, f"Region {number}")
            if mask is None and not (isinstance(box, str) and box.strip()):
                color = [*COLORS][number - 1]
                raise ValueError(f"Region {number}: paint it in {color}, or give it a box such as 0, 0, 0.5, 1")
            found[number] = _drawn(mask, given["paint"]) if mask else boxed(box, size)
        if not found:
            raise ValueError("No region has a prompt: say what is to be where")
        return found

    def _regions(self, given: Given, masks: Mapping[int, Image.Image], soft: float) -> list[Region]:
        """The library's regions."""
        prompts = {number: given[f"prompt_{number}"] for number in masks}
        avoid = given["avoid"] is True and len(prompts) > 1
        others = {number: ", ".join(prompts[other] for other in prompts if other != number) for number in prompts}
        return [
            Region(prompts[number], mask=softened(mask, soft), negative=others[number] if avoid else None)
            for number, mask in masks.items()
        ]


def _drawn(mask: Image.Image, paint: Any) -> Image.Image:
    """What counts of a painted mask.

    Raises:
        ValueError: neither of the two.
    """
    if paint not in (PAINTED, AROUND):
        raise ValueError(f"Painted region {str(paint)[:40]!r}: choose {PAINTED} or {AROUND}")
    return around(mask) if paint == AROUND else mask


def _canvas(height: int, width: int) -> tuple[int, int]:
    """Width and height of the canvas."""
    scale = zoom(height, width)
    return width * scale, height * scale
