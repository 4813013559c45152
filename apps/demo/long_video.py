"""The tab that makes one long video of several prompts."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from html import escape
from typing import Any, NamedTuple

import gradio as gr

from dattn.pipelines import MultiPromptVideoPipeline
from dattn.pipelines.segments import Segment

from ..loading import Loaded
from ..media import write_clip
from ..running import Request, clips_of, telling
from . import limits
from .look import badges
from .parts import SizeControls, lora_choice
from .serving import ASIDE, QUIET, Given, Job, while_typing
from .studio import OnStep
from .tab import Tab
from .wishes import Wishes

PROMPTS = "a red circle moving right\na red circle moving down | 2"
MOST_PROMPTS, LONGEST = 6, 9
FAMILIES = ("wan", "cogvideo")
"""In the names of pipelines and models that it is for."""


class Timed(NamedTuple):
    """A prompt, and how long it lasts: segments of its own, 1 or more."""

    text: str
    length: int


class LongTab(Tab):
    """A tab of the models that the pipeline is for."""

    prefix, action, hint = "long-", "Make", "Make one clip of all prompts, in their order"

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
            PROMPTS, label="Prompts",
            info=f"One on each line, {MOST_PROMPTS} at most. A number after | makes it last longer, such as | 3",
            lines=4, max_lines=8, max_length=limits.LONGEST_PROMPT * MOST_PROMPTS, elem_id="long-prompts",
        )  # fmt: skip
        self.model = self.model_choice(name, "Wan and CogVideoX")
        self.lora = lora_choice(self.prefix)
        self.size = self.size_controls(replace(wishes, steps=min(wishes.steps, 12)))

    def build_results(self, wishes: Wishes) -> None:
        """The video, and its prompts over time."""
        self.clip = gr.Video(
            label="Video", autoplay=True, loop=True, interactive=False, elem_classes="clip", elem_id="long-clip"
        )
        self.line = gr.HTML(elem_id="timeline", min_height=60)

    def connect(self) -> None:
        """Say what the controls do."""
        told = {"model": self.model, "prompts": self.prompts}
        self.on_model(lambda name: SizeControls.fit(self.wishes(name)), self.size.fitted)
        gr.on(  # when the page is loaded, and when one of them changes
            None, while_typing(self.preview), [*told.values(), *self.size.size.values()], self.line,
            trigger_mode="always_last", **QUIET, **ASIDE,
        )  # fmt: skip
        self.on_go(
            self.make,
            {**told, **self.size.inputs, "lora": self.lora},
            [self.size.seed, self.clip, self.line],
            "long_video",
            "One video of several prompts, one on each line, one after the other without a cut. A number after | says "
            "how long a prompt lasts.",
        )

    def preview(self, model: Any, prompts: Any, frames: Any, height: Any, width: Any) -> str:
        """The timeline of what would be made.

        Raises:
            ValueError: what is wrong with it.
        """
        wanted = self._prompts(prompts)
        wish = self._studio.request({"model": model, "frames": frames, "height": height, "width": width})
        return timeline(wanted, self._plan(self._studio.loaded(model), wish, wanted))

    def make(self, given: Given, job: Job) -> tuple[Any, ...]:
        """Make the video."""
        wanted = self._prompts(given["prompts"])
        wish = self._studio.request({**given, "prompt": wanted[0].text})
        began = time.perf_counter()
        lora = job.visit.lora_for(given["model"], given["lora"])
        with self._studio.at_work(given["model"], wish, job.check, lora) as loaded:
            segments = self._plan(loaded, wish, wanted)
            clip = _made(loaded, wish, wanted, job.tell)
        file = write_clip(clip, job.visit.place(), "long")
        job.visit.keep(file, "Long video", ", ".join(one.text for one in wanted), wish.seed)
        told = {"Seconds": f"{time.perf_counter() - began:.1f} s", "Frames": str(len(clip)), "Seed": str(wish.seed)}
        return (badges(told), wish.seed, str(file), timeline(wanted, segments))

    def _prompts(self, given: Any) -> list[Timed]:
        """The prompts, each with its length.

        Raises:
            ValueError: none, too many, or a length that is none.
        """
        lines = [line for line in str(given or "").splitlines() if line.strip()]
        if not 1 <= len(lines) <= MOST_PROMPTS:
            raise ValueError(f"Prompts: {len(lines)} lines; write 1 to {MOST_PROMPTS}, each on a line of its own")
        return [self._timed(line) for line in lines]

    def _timed(self, line: str) -> Timed:
        text, bar, length = line.rpartition("|")
        if bar and not (length.strip().isascii() and length.strip().isdigit() and 1 <= int(length) <= LONGEST):
            raise ValueError(f"Prompts: {line[:60]!r}: write a whole number from 1 to {LONGEST} after |, or no |")
        return Timed(self._studio.limits.prompt(text if bar else line, "Prompts"), int(length) if bar else 1)

    def _plan(self, loaded: Loaded, wish: Request, wanted: list[Timed]) -> tuple[Segment, ...]:
        """The segments, if the whole is not too large.

        Raises:
            ValueError: a model that makes no videos of this kind, or too much at once.
        """
        pipe = MultiPromptVideoPipeline.from_pipe(loaded.pipe)
        segments = pipe.timeline(len(wanted), wish.frames, hold=_hold(wanted))
        assert wish.frames and wish.height and wish.width
        self._studio.limits.size(wish.frames * len(segments), wish.height, wish.width, 1)
        return segments


def _hold(wanted: list[Timed]) -> list[int]:
    return [one.length - 1 for one in wanted]


def _made(loaded: Loaded, wish: Request, wanted: list[Timed], on_step: OnStep) -> Any:
    """The video, uint8 [frames, height, width, 3]."""
    pipe = MultiPromptVideoPipeline.from_pipe(loaded.pipe)
    pipe.set_progress_bar_config(disable=True)
    call = wish.call(loaded) | {"prompt": [one.text for one in wanted], "hold": _hold(wanted)}
    if "callback_on_step_end" in loaded.arguments:
        call["callback_on_step_end"] = telling(partial(on_step, "video"))
    return clips_of(pipe(**call))[0]


def timeline(wanted: list[Timed], segments: tuple[Segment, ...]) -> str:
    """Which prompt rules when, as bars over the latent frames."""
    last = max(segment.frames[1] for segment in segments)
    rows = []
    for number, (text, _) in enumerate(wanted):
        own = [segment.frames for segment in segments if segment.prompt == number]
        start, end = min(a for a, _ in own), max(b for _, b in own)
        place = f"margin-left: {100 * start / last:.1f}%; width: {100 * (end - start) / last:.1f}%"
        rows.append(f'<div class="bar" style="{place}" title="{escape(text)}">{escape(text)}</div>')
    return f'<div class="timeline">{"".join(rows)}</div>'
