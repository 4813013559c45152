"""The tab that looks inside a model: where attention goes, and what patterns would keep of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
import torch

import dattn
from dattn.registry import pattern_from_string

from ..insight import ENOUGH, Insight, Seen
from ..running import telling
from . import charts, knobs, limits
from .hints import folded
from .look import badges
from .parts import SizeControls, Update, example, lora_choice
from .serving import QUIET, Given, Job, named, served
from .tab import Tab
from .wishes import Wishes

NOTED, SETTINGS = 3, 4
"""Steps in which attention is noted, and settings of each pattern that are tried."""
EVERY = "all heads"
PLACE = (
    ("step", "Step", "0", "From noise to picture"),
    ("layer", "Layer", "0", "0 is the first"),
    ("head", "Head", EVERY, "One, or the mean of all"),
)
EMPTY = '<div class="chart-empty">Press Look: the charts come here.</div>'


@dataclass(frozen=True)
class Inside:
    """What a visitor's last look found: layers by number, by step."""

    steps: Mapping[int, Mapping[int, Seen]]


class InsideTab(Tab):
    """Attention over space and time, its decay, recall of patterns, and heads that could be sparse."""

    prefix, action, hint = "inside-", "Look", "Make a clip, and see what its attention did"

    def build_wish(self, name: str, wishes: Wishes) -> None:
        """What is made meanwhile, and from where to look."""
        self.prompt = gr.Textbox(
            wishes.prompt, label="Prompt", info="What the model makes while it is looked into", lines=2,
            max_length=limits.LONGEST_PROMPT, elem_id="inside-prompt",
        )  # fmt: skip
        self.model = self.model_choice(name, "Runs once, with stock attention")
        self.lora = lora_choice(self.prefix)
        with gr.Row():
            self.across, self.down = (
                gr.Slider(0, 1, 0.5, step=0.05, label=label, info=info, elem_id=f"inside-{label.lower()}")
                for label, info in (("Across", "Where to look from, 0 is left"), ("Down", "0 is the top"))
            )
        self.size = self.size_controls(wishes)

    def build_results(self, wishes: Wishes) -> None:
        """The choice of a place, and its charts."""
        with gr.Row():
            self.step, self.layer, self.head = (
                gr.Dropdown(
                    [only], value=only, label=label, info=info, min_width=110, elem_id=f"inside-{label.lower()}"
                )
                for name, label, only, info in PLACE
            )
        self.charts = gr.HTML(EMPTY, elem_id="inside-charts", min_height=300)
        with folded("The figures", "All that the charts show, as numbers", "inside-figures-box"):
            self.figures = gr.JSON(label="Figures", elem_id="inside-figures")

    def connect(self) -> None:
        """Say what the controls do."""
        self.on_model(self.choose_model, [self.prompt, *self.size.fitted], [self.prompt])
        place, shown = [self.step, self.layer, self.head], [self.charts, self.figures]
        self.on_go(
            self.make,
            {
                "model": self.model, "prompt": self.prompt, "across": self.across, "down": self.down,
                **self.size.inputs, "lora": self.lora,
            },
            [self.size.seed, *place, *shown],
            "look_inside",
            "Run a prompt with stock attention and note where it looks, layer by layer and head by head.",
        )  # fmt: skip
        self.step.input(
            named("inside", served(self.show)), place, shown, api_name="inside", show_progress="hidden",
            api_description="Charts and figures of a step, layer and head of your last look.",
        )  # fmt: skip
        self.layer.input(served(self.choose_layer), place, [self.head, *shown], **QUIET)
        self.head.input(served(self.show), place, shown, **QUIET)

    def choose_model(self, name: str, prompt: Any) -> list[Update]:
        """Another model: what it likes."""
        wishes = self.wishes(name)
        return [example(prompt, self._studio.examples, wishes.prompt), *SizeControls.fit(wishes)]

    def make(self, given: Given, job: Job) -> tuple[Any, ...]:
        """Run once, and show the first layer that could be sparse."""
        wish, allowed = self._studio.request(given), self._studio.limits
        across, down = (allowed.number(given[name], name.title(), 0, 1) for name in ("across", "down"))
        assert wish.steps
        noted = sorted({round(i * (wish.steps - 1) / (NOTED - 1)) for i in range(NOTED)})
        lora = job.visit.lora_for(given["model"], given["lora"])
        with self._studio.at_work(given["model"], wish, job.check, lora) as loaded:
            insight = Insight(noted, wish.steps, across, down, _settings(loaded.makes_video))
            call = wish.call(loaded)
            if "callback_on_step_end" in loaded.arguments:
                call["callback_on_step_end"] = telling(partial(job.tell, "looking"))
            loaded.pipe.set_progress_bar_config(disable=True)
            with torch.no_grad(), dattn.apply(loaded.pipe, insight, dense_steps=0, dense_layers=0):
                loaded.pipe(**call)
        if not insight.seen:
            raise ValueError(f"Model {given['model']}: none of its layers could be looked at; choose another one")
        steps: dict[int, dict[int, Seen]] = {}
        for (step, layer), seen in sorted(insight.seen.items()):
            steps.setdefault(step, {})[layer] = seen
        job.visit.inside = inside = Inside(steps)
        step = max(steps)
        layer = min(steps[step], key=lambda number: float(steps[step][number].needed.mean()))
        seen = steps[step][layer]
        shown = _shown(inside, step, layer, None)
        told = {"Layers": str(len(steps[step])), "Grid": " × ".join(map(str, seen.grid.shape)), "Seed": str(wish.seed)}
        return (badges(told), wish.seed, *_choices(inside, step, layer), *shown)

    def show(self, step: Any, layer: Any, head: Any, request: gr.Request) -> tuple[str, dict[str, Any]]:
        """Charts and figures of a place.

        Raises:
            ValueError: there is none, or it was not noted.
        """
        visit = self._visits.known(request.session_hash)
        if visit is None or visit.inside is None:
            raise ValueError("Nothing to look at: press Look first")
        steps = visit.inside.steps
        chosen = _number(step, "Step", steps)
        place = _number(layer, "Layer", steps[chosen])
        heads = range(len(steps[chosen][place].needed))
        return _shown(visit.inside, chosen, place, None if head == EVERY else _number(head, "Head", heads))

    def choose_layer(self, step: Any, layer: Any, head: Any, request: gr.Request) -> tuple[Update, str, dict[str, Any]]:
        """Another layer, which may have other heads."""
        shown = self.show(step, layer, EVERY, request)
        heads = [EVERY, *map(str, range(shown[1]["heads"]))]
        if head in heads:
            shown = self.show(step, layer, head, request)
        return (gr.update(choices=heads, value=head if head in heads else EVERY), *shown)


def _number(value: Any, name: str, known: Any) -> int:
    """What is chosen of some numbers.

    Raises:
        ValueError: none of them.
    """
    choices = {str(number): number for number in known}
    if str(value) not in choices:
        raise ValueError(f"{name} {str(value)[:40]!r}: choose one of {', '.join(choices)}")
    return choices[str(value)]


def _settings(video: bool) -> dict[str, list[Any]]:
    """The patterns on offer, each from its sparsest setting to its densest."""
    return {offer.title: [pattern_from_string(text) for text in offer.sweep(SETTINGS)] for offer in knobs.offers(video)}


def _choices(inside: Inside, step: int, layer: int) -> list[Update]:
    """What can be chosen of a look."""
    heads = len(inside.steps[step][layer].needed)
    return [
        gr.update(choices=[*map(str, inside.steps)], value=str(step)),
        gr.update(choices=[*map(str, inside.steps[step])], value=str(layer)),
        gr.update(choices=[EVERY, *map(str, range(heads))], value=EVERY),
    ]


def _shown(inside: Inside, step: int, layer: int, head: int | None) -> tuple[str, dict[str, Any]]:
    """The charts of a place, and their figures."""
    layers = inside.steps[step]
    seen = layers[layer]
    drawn = [charts.space(seen, head)]
    if seen.grid.frames > 1:
        drawn.append(charts.time(seen, head))
    drawn += [charts.decay(layers, layer, head), charts.recall(seen, head), charts.sparse(layers, layer, head)]
    return f'<div class="charts">{"".join(drawn)}</div>', _figures(layers, layer, head)


def _figures(layers: Mapping[int, Seen], layer: int, head: int | None) -> dict[str, Any]:
    """What the charts are drawn from, but for the maps."""
    seen = layers[layer]
    of = lambda values: values.mean(0) if head is None else values[head]
    return {
        "heads": len(seen.needed),
        "text": round(float(of(seen.text)), 4),
        "decay": of(seen.decay).round(4).tolist(),
        "recall": {
            name: [[round(d, 4), round(float(of(k)), 4)] for d, k in points] for name, points in seen.kept.items()
        },
        f"keys for {ENOUGH:.0%}": {str(number): one.needed.round(4).tolist() for number, one in layers.items()},
    }
