"""The tab that edits a prompt: source and edit of the same noise, and where the picture looks at its words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from ..media import write_clip
from . import limits
from .edits import controls_of, edited, maps_of, overlaid, shared_words
from .look import badges
from .parts import Pair, SizeControls, Update, Wishes
from .serving import DEVICE, served, telling
from .studio import Studio
from .visits import Visits

WORDS = 8
"""Words of an edit that get a slider."""
RANGE = -2.0, 5.0
"""Of strengths."""
EDITS = {True: ("a red circle moving right", "a blue circle moving right"), False: ("a red circle", "a blue circle")}


class EditTab:
    """Its controls, and what they do.

    Args:
        studio: makes the clips.
        visits: whose they are.
    """

    def __init__(self, studio: Studio, visits: Visits) -> None:
        self._studio, self._visits = studio, visits

    def build(self) -> None:
        """Lay it out, in the Blocks that are open."""
        name = self._studio.models[0]
        with self._studio.model(name) as loaded:
            wishes = Wishes.of(loaded)
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                self._build_wish(name, wishes)
            with gr.Column(scale=3, min_width=300):
                self.facts = gr.HTML(badges({"Ready": "press Edit"}), elem_id="edit-facts", min_height=36)
                self.pair = Pair("Source", "Edit", wishes.video, "edit-")
                self.word = gr.Radio([], label="Where it looks at", info="Words of both prompts", elem_id="edit-word")
                self.map = Pair("Edit", "The word's map", wishes.video, "map-")
        self._connect()

    def _build_wish(self, name: str, wishes: Wishes) -> None:
        """The left side: what is to be edited, and how."""
        source, edit = EDITS[wishes.video]
        most = limits.LONGEST_PROMPT
        self.source = gr.Textbox(
            source, label="Source", info="A prompt", lines=2, max_length=most, elem_id="edit-source"
        )
        self.edit = gr.Textbox(
            edit, label="Edit", info="The same with other or more words", lines=2, max_length=most, elem_id="edit-edit"
        )
        self.model = gr.Dropdown(
            self._studio.models, value=name, label="Model", info="As in the first tab", elem_id="edit-model"
        )
        self.keep = gr.Slider(
            0, 1, 0.8, step=0.05, label="Keep the layout", elem_id="edit-keep",
            info="Share of the steps in which the edit looks where the source does",
        )  # fmt: skip
        with gr.Accordion("Strength of words", open=True, elem_id="edit-strengths"):
            self.strengths = [_strength(word, i) for i, word in enumerate(_padded(edit))]
        self.size = SizeControls(wishes, "edit-")
        with gr.Row():
            self.go = gr.Button("Edit", variant="primary", elem_id="edit-go")
            self.stop = gr.Button("Stop", variant="stop", elem_id="edit-stop")

    def _connect(self) -> None:
        """Say what the controls do."""
        quiet: Any = {"show_progress": "hidden", "api_visibility": "private"}
        alone: Any = {"concurrency_limit": 1, "concurrency_id": DEVICE}
        self.edit.change(self.name_strengths, self.edit, self.strengths, **quiet)
        fitted = [self.source, self.edit, *self.size.fitted, *self.pair.either, *self.map.either]
        self.model.change(self.choose_model, self.model, fitted, **quiet, **alone)
        self.go.click(
            served(self.make),
            [self.model, self.source, self.edit, self.keep, *self.size.inputs, *self.strengths],
            [self.size.seed, self.facts, *self.pair.outputs, self.word, *self.map.outputs],
            api_name="edit",
            api_description="Make a prompt and an edit of it from the same noise; the edit keeps the layout.",
            show_progress_on=[self.facts],
            **alone,
        )
        self.word.input(
            served(self.look), self.word, self.map.outputs, api_name="map",
            api_description="Where your last edit looks at one of the words of both prompts.",
        )  # fmt: skip
        self.stop.click(self.halt, None, None, queue=False, api_visibility="private")

    def choose_model(self, name: str) -> list[Update]:
        """Another model: what it likes."""
        with self._studio.model(name) as loaded:
            wishes = Wishes.of(loaded)
        prompts = [gr.update(value=text) for text in EDITS[wishes.video]]
        return [*prompts, *SizeControls.fit(wishes), *Pair.turn(wishes.video), *Pair.turn(wishes.video)]

    def name_strengths(self, edit: str) -> list[Update]:
        """A slider for each word of the edit."""
        return [gr.update(label=word or "–", visible=bool(word), value=1) for word in _padded(edit)]

    def make(
        self,
        model: Any,
        source: Any,
        edit: Any,
        keep: Any,
        frames: Any,
        height: Any,
        width: Any,
        steps: Any,
        seed: Any,
        another: Any,
        first: Any,
        second: Any,
        third: Any,
        fourth: Any,
        fifth: Any,
        sixth: Any,
        seventh: Any,
        eighth: Any,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008, Gradio reads it off the signature
    ) -> tuple[Any, ...]:
        """Make both, and the map of the first word that they share."""
        allowed = self._studio.limits
        seed = limits.fresh_seed() if another is True else seed
        wish = self._studio.request(model, source, frames, height, width, steps, seed)
        allowed.size(2 * (wish.frames or 1), wish.height, wish.width, 1)  # two clips in one batch
        edit, keep = allowed.prompt(edit, "Edit"), allowed.number(keep, "Keep the layout", 0, 1)
        given = (first, second, third, fourth, fifth, sixth, seventh, eighth)
        strengths = {
            word: allowed.number(value, f"Strength of {word!r}", *RANGE)
            for word, value in zip(_padded(edit), given, strict=True)
            if word
        }
        controls, words = controls_of(wish.prompt, edit, keep, strengths), shared_words(wish.prompt, edit)
        visit, maps = self._visits.of(request.session_hash), maps_of(words, self._studio.joint_layers(model, wish))
        with self._studio.model(model) as loaded:
            visit.edit = made = edited(loaded, wish, edit, controls, maps, telling(visit, progress))
        visit.edit_place = place = visit.place()
        files = [write_clip(clip, place, name) for name, clip in (("source", made.source), ("edit", made.edit))]
        visit.keep(files[-1], f"{edit} · edit of {wish.prompt} · seed {wish.seed}")
        first_seen = max(words, key=len, default=None)
        choice = gr.update(choices=words, value=first_seen)
        seen = self._map(place, files[-1], made, first_seen) if first_seen else (None, None, None)
        told = badges({"Both": f"{made.seconds:.1f} s", "Seed": str(wish.seed)})
        return (wish.seed, told, *Pair.shown(files), choice, *seen)

    def look(self, word: Any, request: gr.Request) -> tuple[Any, Any, Any]:
        """The map of another word of the visitor's last edit.

        Raises:
            ValueError: there is none, or it has no such word.
        """
        visit = self._visits.known(request.session_hash)
        if visit is None or visit.edit is None or visit.edit.maps is None or visit.edit_place is None:
            raise ValueError("Nothing to look at: make an edit first")
        if word not in visit.edit.maps.words:
            raise ValueError(f"Word {str(word)[:40]!r}: choose one of {', '.join(map(str, visit.edit.maps.words))}")
        place = visit.edit_place
        return self._map(place, next(place.glob("edit.*")), visit.edit, word)

    def _map(self, place: Path, file: Path, made: Any, word: str) -> tuple[Any, Any, Any]:
        """The edit, and the same with a word's map over it."""
        frames = np.stack([np.asarray(frame.convert("RGB")) for frame in overlaid(made, word)])
        return Pair.shown([file, write_clip(frames, place, f"map-{made.maps.words.index(word)}")])

    def halt(self, request: gr.Request) -> None:
        """End the visitor's run within a step."""
        visit = self._visits.known(request.session_hash)
        if visit is not None:
            visit.stop.set()


def _padded(edit: str) -> list[str]:
    """The first words of an edit, once each, and as many more without letters as make ``WORDS``."""
    words = list(dict.fromkeys(str(edit).split()))[:WORDS]
    return words + [""] * (WORDS - len(words))


def _strength(word: str, index: int) -> gr.Slider:
    return gr.Slider(
        *RANGE, 1, step=0.1, label=word or "–", info="1 as it is, 0 not at all", visible=bool(word),
        elem_id=f"edit-strength-{index}",
    )  # fmt: skip
