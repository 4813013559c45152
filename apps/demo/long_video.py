"""The tab that makes one long video of several prompts."""

from __future__ import annotations

import time
from dataclasses import replace
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
from .parts import SizeControls, Update, Wishes
from .serving import DEVICE, served
from .serving import telling as telling_visit
from .studio import OnStep, Studio
from .visits import Visits

PROMPTS = "a red circle moving right\na red circle moving down"
MOST_PROMPTS, MOST_HELD = 6, 8


class LongTab:
    """Its controls, and what they do.

    Args:
        studio: makes the video.
        visits: whose it is.
    """

    def __init__(self, studio: Studio, visits: Visits) -> None:
        self._studio, self._visits = studio, visits
        self._models = [name for name in studio.models if self._fits(name)]

    def _fits(self, name: str) -> bool:
        """Whether a model is one that the pipeline is for; one of the hub is not loaded to find out."""
        return any(part in name.lower() for part in ("wan", "cogvideo"))

    def build(self) -> None:
        """Lay it out, in the Blocks that are open."""
        if not self._models:
            gr.Markdown("None of the models here is a Wan or CogVideoX: start the demo with one as `--model`.")
            return
        name = self._models[0]
        with self._studio.model(name) as loaded:
            wishes = Wishes.of(loaded)
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                self._build_wish(name, wishes)
            with gr.Column(scale=3, min_width=300):
                self.facts = gr.HTML(badges({"Ready": "press Make"}), elem_id="long-facts", min_height=36)
                self.clip = gr.Video(
                    label="Video", autoplay=True, loop=True, interactive=False, elem_classes="clip", elem_id="long-clip"
                )
                self.line = gr.HTML(elem_id="timeline", min_height=60)
        self._connect()

    def _build_wish(self, name: str, wishes: Wishes) -> None:
        """The left side: what is to be made."""
        self.prompts = gr.Textbox(
            PROMPTS, label="Prompts", info=f"One on each line, {MOST_PROMPTS} at most, in their order in time",
            lines=4, max_lines=8, max_length=limits.LONGEST_PROMPT * MOST_PROMPTS, elem_id="long-prompts",
        )  # fmt: skip
        self.model = gr.Dropdown(
            self._models, value=name, label="Model", info="Wan and CogVideoX", elem_id="long-model"
        )
        self.hold = gr.Slider(
            0,
            MOST_HELD,
            0,
            step=1,
            label="Hold",
            info="How much longer middle prompts last",
            elem_id="long-hold",
        )
        self.size = SizeControls(replace(wishes, steps=min(wishes.steps, 12)), "long-")
        with gr.Row():
            self.go = gr.Button("Make", variant="primary", elem_id="long-go")
            self.stop = gr.Button("Stop", variant="stop", elem_id="long-stop")

    def _connect(self) -> None:
        """Say what the controls do."""
        quiet: Any = {"show_progress": "hidden", "api_visibility": "private"}
        alone: Any = {"concurrency_limit": 1, "concurrency_id": DEVICE}
        self.model.change(self.choose_model, self.model, self.size.fitted, **quiet, **alone)
        for control in (self.prompts, self.hold, self.size.frames):
            control.change(
                served(self.preview), [self.model, self.prompts, self.hold, *self.size.size], self.line,
                trigger_mode="always_last", **quiet, **alone,
            )  # fmt: skip
        self.go.click(
            served(self.make), [self.model, self.prompts, self.hold, *self.size.inputs],
            [self.size.seed, self.facts, self.clip, self.line],
            api_name="long_video", api_description="One video of several prompts, one after the other without a cut.",
            show_progress_on=[self.facts], **alone,
        )  # fmt: skip
        self.stop.click(self.halt, None, None, queue=False, api_visibility="private")

    def choose_model(self, name: str) -> list[Update]:
        """Another model: what it likes."""
        with self._studio.model(name) as loaded:
            return SizeControls.fit(Wishes.of(loaded))

    def preview(self, model: Any, prompts: Any, hold: Any, frames: Any, height: Any, width: Any) -> str:
        """The timeline of what would be made."""
        texts = self._texts(prompts)
        wish = self._studio.request(model, texts[0], frames, height, width, 1, 0)
        with self._studio.model(model) as loaded:
            return timeline(texts, self._plan(loaded, wish, texts, hold))

    def make(
        self,
        model: Any,
        prompts: Any,
        hold: Any,
        frames: Any,
        height: Any,
        width: Any,
        steps: Any,
        seed: Any,
        another: Any,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008, Gradio reads it off the signature
    ) -> tuple[Any, ...]:
        """Make the video."""
        texts, seed = self._texts(prompts), limits.fresh_seed() if another is True else seed
        wish = self._studio.request(model, texts[0], frames, height, width, steps, seed)
        visit = self._visits.of(request.session_hash)
        began = time.perf_counter()
        with self._studio.model(model) as loaded:
            segments = self._plan(loaded, wish, texts, hold)
            clip = _made(loaded, wish, texts, int(hold), telling_visit(visit, progress))
        file = write_clip(clip, visit.place(), "long")
        visit.keep(file, f"{' · '.join(texts)} · seed {wish.seed}")
        told = {"Seconds": f"{time.perf_counter() - began:.1f} s", "Frames": str(len(clip)), "Seed": str(wish.seed)}
        return (wish.seed, badges(told), str(file), timeline(texts, segments))

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
        if loaded.name not in self._models and not self._fits(loaded.name):
            raise ValueError(f"Model {loaded.name}: choose a Wan or CogVideoX model")
        pipe = MultiPromptVideoPipeline.from_pipe(loaded.pipe)
        segments = pipe.timeline(len(texts), wish.frames, hold=limits.whole(hold, "Hold", 0, MOST_HELD))
        assert wish.frames and wish.height and wish.width
        self._studio.limits.size(wish.frames * len(segments), wish.height, wish.width, 1)
        return segments

    def halt(self, request: gr.Request) -> None:
        """End the visitor's run within a step."""
        visit = self._visits.known(request.session_hash)
        if visit is not None:
            visit.stop.set()


def _made(loaded: Loaded, wish: Request, texts: list[str], hold: int, on_step: OnStep) -> Any:
    """The video, uint8 [frames, height, width, 3]."""
    pipe = MultiPromptVideoPipeline.from_pipe(loaded.pipe)
    pipe.set_progress_bar_config(disable=True)
    call = wish.call(loaded) | {"prompt": texts, "hold": hold}
    if "callback_on_step_end" in loaded.arguments:
        call["callback_on_step_end"] = telling(lambda done, of: on_step("video", done, of, 0, 1))
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
