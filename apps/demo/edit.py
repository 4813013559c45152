"""The tab that edits a prompt: source and edit of the same noise, and where the picture looks at its words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from ..media import write_clip
from . import limits
from .edits import Edited, controls_of, edited, maps_of, overlaid, words_of
from .hints import folded
from .look import badges
from .parts import Pair, SizeControls, Update, examples, lora_choice
from .serving import QUIET, Given, Job, named, served
from .tab import Tab
from .wishes import Wishes

WORDS = 8
"""Words of an edit that get a slider."""
RANGE = -2.0, 5.0
"""Of strengths."""
EDITS = {True: ("a red circle moving right", "a blue circle moving right"), False: ("a red circle", "a blue circle")}


class EditTab(Tab):
    """The second tab."""

    prefix, action, hint = "edit-", "Edit", "Make both from one noise"

    def build_wish(self, name: str, wishes: Wishes) -> None:
        """What is to be edited, and how."""
        source, edit = EDITS[wishes.video]
        most = limits.LONGEST_PROMPT
        self.source = gr.Textbox(
            source, label="Source", info="A prompt", lines=2, max_length=most, elem_id="edit-source"
        )
        self.edit = gr.Textbox(
            edit, label="Edit", info="The same with other or more words", lines=2, max_length=most, elem_id="edit-edit"
        )
        self.model = self.model_choice(name, "As in the first tab")
        self.keep = gr.Slider(
            0, 1, 0.8, step=0.05, label="Keep the layout", elem_id="edit-keep",
            info="Share of the steps in which the edit looks where the source does",
        )  # fmt: skip
        with folded("Strength of words", "How much each word of the edit is looked at", "edit-strengths", False):
            self.strengths = [_strength(word, i) for i, word in enumerate(_padded(edit))]
            self.words = gr.State(_padded(edit))
        self.lora = lora_choice(self.prefix)
        self.size = self.size_controls(wishes)

    def build_results(self, wishes: Wishes) -> None:
        """Both clips, and where the edit looks at a word."""
        self.pair = Pair("Source", "Edit", wishes.video, "edit-", stills=True)
        self.frame = gr.Slider(
            0, wishes.frames - 1, wishes.frames // 2, step=1, label="Frame", info="Which one is under the slider",
            visible=wishes.video, elem_id="edit-frame",
        )  # fmt: skip
        self.word = gr.Radio(
            [], label="Where it looks at", info="The edit's words, new ones first", elem_id="edit-word"
        )
        self.map = Pair("Edit", "The word's map", wishes.video, "map-")

    def connect(self) -> None:
        """Say what the controls do."""
        sliders = [self.words, *self.strengths]
        self.edit.change(served(self.name_strengths), [self.edit, *sliders], sliders, **QUIET)
        self.on_model(
            self.choose_model,
            [self.source, self.edit, *self.size.fitted, self.pair.row, self.frame, *self.map.either],
            [self.source, self.edit],
        )
        strengths = {f"strength_{number}": slider for number, slider in enumerate(self.strengths, 1)}
        self.on_go(
            self.make,
            {
                "model": self.model, "source": self.source, "edit": self.edit, "keep": self.keep,
                **self.size.inputs, **strengths, "lora": self.lora,
            },
            [self.size.seed, *self.pair.outputs, self.word, *self.map.outputs, self.frame],
            "edit",
            "Make a prompt and an edit of it from the same noise; the edit keeps the layout.",
        )  # fmt: skip
        self.word.input(
            named("map", served(self.look)), self.word, self.map.outputs, api_name="map",
            api_description="Where your last edit looks at one of its words.",
        )  # fmt: skip
        self.frame.input(
            named("frame", served(self.still)), self.frame, self.pair.slider, api_name="frame",
            show_progress="hidden", trigger_mode="always_last",
            api_description="A frame of your last edit's source and the same of the edit.",
        )  # fmt: skip

    def choose_model(self, name: str, *prompts: Any) -> list[Update]:
        """Another model: what it likes."""
        wishes = self.wishes(name)
        texts = examples(prompts, EDITS, wishes.video)
        clips, other = Pair.turn(wishes.video)
        return [*texts, *SizeControls.fit(wishes), clips, gr.update(visible=wishes.video), clips, other]

    def name_strengths(self, edit: str, before: list[str], *values: float) -> list[Any]:
        """The words of the edit, and a slider for each; a word that was there keeps its strength."""
        words, known = _padded(edit), dict(zip(before, values, strict=True))
        sliders = [
            gr.update(label=word or "–", visible=bool(word), value=known.get(word, 1) if word else 1) for word in words
        ]
        return [words, *sliders]

    def make(self, given: Given, job: Job) -> tuple[Any, ...]:
        """Make both, and the map of the first new word."""
        model, visit, allowed = given["model"], job.visit, self._studio.limits
        wish = self._studio.request({**given, "prompt": given["source"]})
        allowed.size(2 * (wish.frames or 1), wish.height, wish.width, 1)  # two clips in one batch
        edit, keep = allowed.prompt(given["edit"], "Edit"), allowed.number(given["keep"], "Keep the layout", 0, 1)
        controls = controls_of(wish.prompt, edit, keep, self._strengths(given, edit))
        words = words_of(wish.prompt, edit)
        maps = maps_of(words, self._studio.joint_layers(model, wish))
        with self._studio.at_work(model, wish, job.check, visit.lora_for(model, given["lora"])) as loaded:
            visit.edit = made = edited(loaded, wish, edit, controls, maps, job.tell)
        visit.edit_place = place = visit.place()
        files = [write_clip(clip, place, name) for name, clip in (("source", made.source), ("edit", made.edit))]
        visit.keep(files[-1], "Edit", edit, wish.seed)
        choice = gr.update(choices=words, value=words[0])
        seen = self._map(place, files[-1], made, words[0])
        told = badges({"Both": f"{made.seconds:.1f} s", "Seed": str(wish.seed)})
        clips, last = Pair.shown(files)[:2], len(made.edit) - 1
        frame = gr.update(maximum=max(1, last), value=last // 2)
        return (told, wish.seed, *clips, _stills(place, made, last // 2), choice, *seen, frame)

    def _strengths(self, given: Given, edit: str) -> dict[str, float]:
        """How strong each word of the edit is to be."""
        values = [given[f"strength_{number}"] for number in range(1, WORDS + 1)]
        return {
            word: self._studio.limits.number(value, f"Strength of {word!r}", *RANGE)
            for word, value in zip(_padded(edit), values, strict=True)
            if word
        }

    def look(self, word: Any, request: gr.Request) -> tuple[Any, Any, Any]:
        """The map of another word of the visitor's last edit.

        Raises:
            ValueError: there is none, its files are gone, or it has no such word.
        """
        made, place, file = self._last(request)
        if word not in made.maps.words:
            raise ValueError(f"Word {str(word)[:40]!r}: choose one of {', '.join(map(str, made.maps.words))}")
        return self._map(place, file, made, word)

    def still(self, frame: Any, request: gr.Request) -> tuple[str, str]:
        """Another frame of the visitor's last edit, before and after.

        Raises:
            ValueError: there is none, its files are gone, or it has no such frame.
        """
        made, place, _ = self._last(request)
        return _stills(place, made, limits.whole(frame, "Frame", 0, len(made.edit) - 1))

    def _last(self, request: gr.Request) -> tuple[Edited, Path, Path]:
        """The visitor's last edit, the folder of its files, and the edit's own.

        Raises:
            ValueError: there is none, or its files are gone.
        """
        visit = self._visits.known(request.session_hash)
        if visit is None or visit.edit is None or visit.edit_place is None:
            raise ValueError("Nothing to look at: make an edit first")
        file = next(visit.edit_place.glob("edit.*"), None)
        if file is None:
            raise ValueError("The files of this edit have made room for later runs: make the edit again")
        return visit.edit, visit.edit_place, file

    def _map(self, place: Path, file: Path, made: Edited, word: str) -> tuple[Any, Any, Any]:
        """The edit, and the same with a word's map over it."""
        frames = np.stack([np.asarray(frame.convert("RGB")) for frame in overlaid(made, word)])
        return Pair.shown([file, write_clip(frames, place, f"map-{made.maps.words.index(word)}")])


def _stills(place: Path, made: Edited, frame: int) -> tuple[str, str]:
    """A frame of source and edit, as files of pictures."""
    clips = (("source", made.source), ("edit", made.edit))
    one, other = (write_clip(clip[frame : frame + 1], place, f"{name}-{frame}") for name, clip in clips)
    return str(one), str(other)


def _padded(edit: str) -> list[str]:
    """The first words of an edit, once each, and as many more without letters as make ``WORDS``."""
    words = list(dict.fromkeys(str(edit).split()))[:WORDS]
    return words + [""] * (WORDS - len(words))


def _strength(word: str, index: int) -> gr.Slider:
    return gr.Slider(
        *RANGE, 1, step=0.1, label=word or "–", info="1 as it is, 0 not at all", visible=bool(word),
        elem_id=f"edit-strength-{index}",
    )  # fmt: skip
