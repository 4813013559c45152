"""The tab that makes one long video of several prompts."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from html import escape
from typing import Any

import gradio as gr

from dattn.pipelines import MultiPromptVideoPipeline
from dattn.pipelines.segments import Segment

from ..loading import Loaded
from ..media import write_clip
from ..running import Request, clips_of, telling
from . import limits
from .look import badges
from .parts import SizeControls
from .serving import ASIDE, QUIET, Given, Job, served
from .studio import OnStep
from .tab import Tab
from .wishes import Wishes

PROMPTS = "a red circle moving right\na red circle moving down"
MOST_PROMPTS, MOST_HELD = 6, 8
FAMILIES = ("wan", "cogvideo")
"""In the names of pipelines and models that it is for."""


class LongTab(Tab):
    """A tab of the models that the pipeline is for."""

    prefix, action = "long-", "Make"

    @property
    def models(self) -> list[str]:
        """Those that seem to be Wan or CogVideoX; the pipeline itself says when it runs whether it serves one."""
        kinds = {name: self._studio.kind(name).lower() for name in self._studio.models}
        return [name for name, kind in kinds.items() if any(family in kind for family in FAMILIES)]

    def build(self) -> None:
        """Lay it out, in the Blocks that are open."""
        if self.models:
            super().build()
        else:
            gr.Markdown("None of the models here is a Wan or CogVideoX: start the demo with one as `--model`.")

    def build_wish(self, name: str, wishes: Wishes) -> None:
        """What is to be made."""
        self.prompts = gr.Textbox(
            PROMPTS, label="Prompts", info=f"One on each line, {MOST_PROMPTS} at most, in their order in time",
            lines=4, max_lines=8, max_length=limits.LONGEST_PROMPT * MOST_PROMPTS, elem_id="long-prompts",
        )  # fmt: skip
        self.model = self.model_choice(name, "Wan and CogVideoX")
        self.hold = gr.Slider(
            0, MOST_HELD, 0, step=1, label="Hold", info="How much longer middle prompts last", elem_id="long-hold"
        )
        self.size = self.size_controls(replace(wishes, steps=min(wishes.steps, 12)))

    def build_results(self, wishes: Wishes) -> None:
        """The video, and its prompts over time."""
        self.clip = gr.Video(
            label="Video", autoplay=True, loop=True, interactive=False, elem_classes="clip", elem_id="long-clip"
        )
        self.line = gr.HTML(elem_id="timeline", min_height=60)

    def connect(self) -> None:
        """Say what the controls do."""
        told = {"model": self.model, "prompts": self.prompts, "hold": self.hold}
        self.on_model(lambda name: SizeControls.fit(self.wishes(name)), self.size.fitted)
        for control in (self.prompts, self.hold, self.size.frames):
            control.change(
                served(self.preview), [*told.values(), *self.size.size.values()], self.line,
                trigger_mode="always_last", **QUIET, **ASIDE,
            )  # fmt: skip
        self.on_go(
            self.make,
            {**told, **self.size.inputs},
            [self.size.seed, self.clip, self.line],
            "long_video",
            "One video of several prompts, one after the other without a cut.",
        )

    def preview(self, model: Any, prompts: Any, hold: Any, frames: Any, height: Any, width: Any) -> str:
        """The timeline of what would be made."""
        texts = self._texts(prompts)
        wish = self._studio.request({"model": model, "frames": frames, "height": height, "width": width})
        return timeline(texts, self._plan(self._studio.loaded(model), wish, texts, hold))

    def make(self, given: Given, job: Job) -> tuple[Any, ...]:
        """Make the video."""
        texts = self._texts(given["prompts"])
        wish = self._studio.request({**given, "prompt": texts[0]})
        began = time.perf_counter()
        with self._studio.model(given["model"]) as loaded:
            segments = self._plan(loaded, wish, texts, given["hold"])
            clip = _made(loaded, wish, texts, int(given["hold"]), job.tell)
        file = write_clip(clip, job.visit.place(), "long")
        job.visit.keep(file, f"{' · '.join(texts)} · seed {wish.seed}")
        told = {"Seconds": f"{time.perf_counter() - began:.1f} s", "Frames": str(len(clip)), "Seed": str(wish.seed)}
        return (badges(told), wish.seed, str(file), timeline(texts, segments))

    def _texts(self, prompts: Any) -> list[str]:
        """The prompts.

        Raises:
            ValueError: none, or too many.
        """
        lines = [line for line in str(prompts or "").splitlines() if line.strip()]
        if not 1 <= len(lines) <= MOST_PROMPTS:
            raise ValueError(f"Prompts: {len(lines)} lines; write 1 to {MOST_PROMPTS}, each on a line of its own")
        return [self._studio.limits.prompt(line, "Prompts") for line in lines]

    def _plan(self, loaded: Loaded, wish: Request, texts: list[str], hold: Any) -> tuple[Segment, ...]:
        """The segments, if the whole is not too large.

        Raises:
            ValueError: a model that makes no videos of this kind, or too much at once.
        """
        pipe = MultiPromptVideoPipeline.from_pipe(loaded.pipe)
        segments = pipe.timeline(len(texts), wish.frames, hold=limits.whole(hold, "Hold", 0, MOST_HELD))
        assert wish.frames and wish.height and wish.width
        self._studio.limits.size(wish.frames * len(segments), wish.height, wish.width, 1)
        return segments


def _made(loaded: Loaded, wish: Request, texts: list[str], hold: int, on_step: OnStep) -> Any:
    """The video, uint8 [frames, height, width, 3]."""
    pipe = MultiPromptVideoPipeline.from_pipe(loaded.pipe)
    pipe.set_progress_bar_config(disable=True)
    call = wish.call(loaded) | {"prompt": texts, "hold": hold}
    if "callback_on_step_end" in loaded.arguments:
        call["callback_on_step_end"] = telling(partial(on_step, "video"))
    return clips_of(pipe(**call))[0]


def timeline(texts: list[str], segments: tuple[Segment, ...]) -> str:
    """Which prompt rules when, as bars over the latent frames."""
    last = max(segment.frames[1] for segment in segments)
    rows = []
    for number, text in enumerate(texts):
        own = [segment.frames for segment in segments if segment.prompt == number]
        start, end = min(a for a, _ in own), max(b for _, b in own)
        place = f"margin-left: {100 * start / last:.1f}%; width: {100 * (end - start) / last:.1f}%"
        rows.append(f'<div class="bar" style="{place}" title="{escape(text)}">{escape(text)}</div>')
    return f'<div class="timeline">{"".join(rows)}</div>'
