"""The tab that fine-tunes: a LoRA of a folder of clips, trained under a pattern, for this visitor alone."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from ..lora.adapting import WEIGHTS
from ..running import Request
from ..shapes.folder import write_folder
from . import charts, knobs, limits
from .look import badges
from .parts import SizeControls, Update, example
from .serving import Given, Job
from .tab import Tab
from .training import Training, training
from .wishes import Wishes

SHAPES, WHITE = "Moving Shapes", "Moving Shapes, all white"
"""Data sets that are made for the visitor; a LoRA of the second one is soon seen to work."""
CLIPS, FRAMES = 8, 9
"""Of them: how many, and how long training clips are at first."""
MOST_TRAINING, MOST_RANK = 2000, 128
RATES = 1e-6, 1e-1
PRECISIONS = {"torch.bfloat16": "bf16", "torch.float16": "fp16"}
MOMENT = 0.3
"""Seconds between looks at the log."""
EMPTY = '<div class="chart-empty">The loss is drawn here while it learns.</div>'


class FinetuneTab(Tab):
    """Data, pattern and settings; loss and validation; the LoRA."""

    prefix, action, hint = "finetune-", "Train", "Train a LoRA, which the other tabs can use then"

    def build_wish(self, name: str, wishes: Wishes) -> None:
        """What is to be learnt, and how."""
        sets = [WHITE, SHAPES, *self._studio.data]
        self.data = gr.Dropdown(
            sets, value=sets[0], label="Data", info="Clips with captions: made for you, or folders that are here",
            elem_id="finetune-data",
        )  # fmt: skip
        self.model = self.model_choice(name, "Learns in a process of its own")
        self.pattern = gr.Dropdown(
            _patterns(wishes.video), value="stock", label="Attention", info="A pattern, as in code, to learn under",
            allow_custom_value=True, elem_id="finetune-pattern",
        )  # fmt: skip
        self.train_steps = gr.Slider(
            1, MOST_TRAINING, 80, step=1, label="Training steps", info="One clip each", elem_id="finetune-train-steps"
        )
        with gr.Row():
            self.rank = gr.Slider(
                1,
                MOST_RANK,
                16,
                step=1,
                label="Rank",
                info="Larger learns more",
                min_width=140,
                elem_id="finetune-rank",
            )
            self.rate = gr.Number(
                4e-3,
                label="Learning rate",
                info="How much each step changes",
                min_width=140,
                elem_id="finetune-rate",
                step="any",
            )
        self.prompt = gr.Textbox(
            wishes.prompt, label="Validation prompt", info="Made before, a few times on the way, and after",
            max_length=limits.LONGEST_PROMPT, elem_id="finetune-prompt",
        )  # fmt: skip
        self.size = self.size_controls(_small(wishes))

    def build_results(self, wishes: Wishes) -> None:
        """The loss while it learns, then the comparison and the file."""
        self.loss = gr.HTML(EMPTY, elem_id="finetune-loss", min_height=240)
        self.grid = gr.Image(
            label="Before, on the way and after", interactive=False, buttons=["download", "fullscreen"],
            elem_id="finetune-grid", elem_classes="headed",
        )  # fmt: skip
        self.file = gr.File(label="LoRA, as safetensors", interactive=False, elem_id="finetune-file")

    def connect(self) -> None:
        """Say what the controls do."""
        self.on_model(self.choose_model, [self.pattern, self.prompt, *self.size.fitted], [self.prompt])
        self.on_go(
            self.make,
            {
                "model": self.model, "data": self.data, "pattern": self.pattern, "train_steps": self.train_steps,
                "rank": self.rank, "learning_rate": self.rate, "prompt": self.prompt, **self.size.inputs,
            },
            [self.size.seed, self.loss, self.grid, self.file],
            "fine_tune",
            "Train a LoRA on a folder of the server's or on shapes; it is yours alone, until you leave.",
        )  # fmt: skip

    def choose_model(self, name: str, prompt: Any) -> list[Update]:
        """Another model: what it likes."""
        wishes = self.wishes(name)
        pattern = gr.update(choices=_patterns(wishes.video), value="stock")
        return [pattern, example(prompt, self._studio.examples, wishes.prompt), *SizeControls.fit(_small(wishes))]

    def make(self, given: Given, job: Job) -> Iterator[tuple[Any, ...]]:
        """Train; what is known so far, again and again, and at last the LoRA."""
        wish = self._studio.request(given)
        folder = job.visit.folder / "training"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "run").mkdir(parents=True)
        words = self._words(given, wish, folder, job)
        steps, began = int(given["train_steps"]), time.monotonic()
        with training(words, folder / "run", self._studio.device) as run:
            for told, losses, picture in _news(run, job):
                drawn = charts.loss(losses, steps) if losses else EMPTY
                yield told, wish.seed, drawn, picture, gr.skip() if losses else None
            run.check()
            last = charts.loss(run.losses(), steps)
        place = job.visit.folder / "lora"
        shutil.rmtree(place, ignore_errors=True)
        shutil.move(folder / "run", place)
        job.visit.lora = given["model"], place
        told = badges({"Trained": f"{time.monotonic() - began:.0f} s", "LoRA": "choose it in the other tabs"})
        yield told, wish.seed, last, str(place / "validation.png"), str(place / WEIGHTS)

    def _words(self, given: Given, wish: Request, folder: Path, job: Job) -> list[str]:
        """The command line of a run.

        Raises:
            ValueError: what is wrong with what was given.
        """
        allowed = self._studio.limits
        attention = limits.attention(given["pattern"])
        steps = limits.whole(given["train_steps"], "Training steps", 1, MOST_TRAINING)
        rank = limits.whole(given["rank"], "Rank", 1, MOST_RANK)
        rate = allowed.number(given["learning_rate"], "Learning rate", *RATES)
        data = self._data(given["data"], wish, folder, job)
        with self._studio.model(given["model"]) as loaded:
            precision = PRECISIONS.get(str(loaded.pipe.dtype), "no")
        guidance = {} if wish.guidance is None else {"guidance_scale": wish.guidance}
        options = {
            "model": self._studio.place(given["model"]),
            "data": data,
            "attention": attention,
            "buckets": f"{wish.frames or 1}x{wish.height}x{wish.width}",
            "cache_dir": folder.parent / "cache",
            "max_train_steps": steps,
            "validation_steps": max(1, steps // 5),
            "rank": rank,
            "learning_rate": rate,
            "lr_scheduler": "cosine",  # in so few steps the last ones decide where it ends
            "seed": wish.seed % 2**31,
            "mixed_precision": precision,
            "validation_prompts": wish.prompt,
            "pipeline_args": json.dumps({"num_inference_steps": wish.steps, **guidance}),
        }
        return [f"--{name}={value}" for name, value in options.items()]

    def _data(self, name: Any, wish: Request, folder: Path, job: Job) -> Path:
        """The folder of a data set; that of shapes is written, for as long as the job is to go on.

        Raises:
            ValueError: none of that name.
        """
        if name in self._studio.data:
            return self._studio.data[name]
        if name not in (SHAPES, WHITE):
            sets = ", ".join([WHITE, SHAPES, *self._studio.data])
            raise ValueError(f"Data {escape(str(name)[:40])!r}: choose one of {sets}")
        assert wish.height and wish.width

        def change(clip: np.ndarray) -> np.ndarray:
            job.check()
            return _white(clip) if name == WHITE else clip

        write_folder(folder / "data", CLIPS, wish.frames or 1, (wish.height, wish.width), change=change)
        return folder / "data"


def _news(run: Training, job: Job) -> Iterator[tuple[str, list[dict[str, float]], Any]]:
    """What it does, its losses and its picture, each time that there is more; a picture that is shown is left alone."""
    known: tuple[int, float] | None = None
    while run.runs:
        job.check()
        what, done, of = run.stage() or ("starting", 0, 1)
        losses, (picture, written) = run.losses(), run.picture()
        if (len(losses), written) != known:
            old, known = known, (len(losses), written)
            shown = gr.skip() if old is not None and old[1] == written else picture
            yield badges({what.capitalize(): f"{done} of {of}"}), losses, shown
        job.tell(what, done, of)
        time.sleep(MOMENT)


def _white(clip: np.ndarray) -> np.ndarray:
    """A clip in which all colours are as bright as their brightest part."""
    return clip.max(-1, keepdims=True).repeat(3, -1)


def _patterns(video: bool) -> list[str]:
    """Patterns as in code, as the sliders of the first tab have them at first."""
    return ["stock", *(offer.written({knob.name: knob.value for knob in offer.knobs}) for offer in knobs.offers(video))]


def _small(wishes: Wishes) -> Wishes:
    """Sizes to train at first: short clips."""
    return replace(wishes, frames=min(wishes.frames, FRAMES))
