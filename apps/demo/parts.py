"""What several tabs are made of: the controls of size and seed, and two results side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from . import limits
from .hints import folded
from .visits import NO_LORA, OWN_LORA
from .wishes import Wishes

Update = dict[str, Any]


class SizeControls:
    """Frames, height, width, steps and seed, folded away.

    Args:
        wishes: what they start from.
        prefix: of their ``elem_id``.
    """

    def __init__(self, wishes: Wishes, prefix: str = "") -> None:
        with folded("Size, steps and seed", "How large, how long, and from which noise", f"{prefix}size"):
            self.frames = gr.Slider(
                1, 513, wishes.frames, step=1, label="Frames", info="How long the clip is", visible=wishes.video,
                elem_id=f"{prefix}frames",
            )  # fmt: skip
            with gr.Row():
                self.height, self.width = (
                    gr.Number(value, precision=0, label=name, info="Pixels", elem_id=f"{prefix}{name.lower()}")
                    for name, value in (("Height", wishes.height), ("Width", wishes.width))
                )
            self.steps = gr.Slider(
                1, limits.MOST_STEPS, wishes.steps, step=1, label="Steps", info="More are slower and finer",
                elem_id=f"{prefix}steps",
            )  # fmt: skip
            self.seed = gr.Number(
                0, precision=0, label="Seed", info="The same seed, the same clip", elem_id=f"{prefix}seed"
            )
            self.another = gr.Checkbox(
                False, label="Another seed each time", info="The one that was used is shown", elem_id=f"{prefix}another"
            )

    @property
    def size(self) -> dict[str, Any]:
        """Frames, height and width, by their names in the API."""
        return {"frames": self.frames, "height": self.height, "width": self.width}

    @property
    def inputs(self) -> dict[str, Any]:
        """All, by their names in the API."""
        return {**self.size, "steps": self.steps, "seed": self.seed, "another": self.another}

    @property
    def fitted(self) -> list[Any]:
        """Those that go with a model; ``fit`` gives their updates."""
        return [*self.size.values(), self.steps]

    @staticmethod
    def fit(wishes: Wishes) -> list[Update]:
        """What another model wishes."""
        sides = [gr.update(value=wishes.height), gr.update(value=wishes.width), gr.update(value=wishes.steps)]
        return [gr.update(value=wishes.frames, visible=wishes.video), *sides]


def example(prompt: Any, known: Sequence[str], other: str) -> Update:
    """Another example in place of one that is known; what the visitor wrote stays."""
    return dict(gr.update(value=other) if prompt in known else gr.skip())


def examples(prompts: Sequence[Any], usual: Mapping[bool, Sequence[str]], video: bool) -> list[Update]:
    """The same for several prompts, which all have an example for videos and one for pictures."""
    return [example(*row) for row in zip(prompts, zip(*usual.values(), strict=True), usual[video], strict=True)]


def lora_choice(prefix: str = "") -> gr.Dropdown:
    """Whether the LoRA that the visitor trained is put on the model."""
    return gr.Dropdown(
        [NO_LORA, OWN_LORA], value=NO_LORA, label="LoRA", info="What you have trained in the tab Fine-tune",
        elem_id=f"{prefix}lora",
    )  # fmt: skip


class Pair:
    """Two clips in step, or two pictures under a slider.

    Args:
        left, right: what they are.
        video: which of the two is shown at first.
        prefix: of their ``elem_id``.
        position: of the slider at first, in percent.
        stills: whether the slider is there for clips too, for frames of them.
    """

    def __init__(
        self, left: str, right: str, video: bool, prefix: str = "", position: int = 50, stills: bool = False
    ) -> None:
        options: Any = {"autoplay": True, "loop": True, "interactive": False, "elem_classes": "clip", "min_width": 140}
        with gr.Row(elem_classes="pair", visible=video, elem_id=f"{prefix}pair") as self.row:
            self.left = gr.Video(label=left, elem_id=f"{prefix}stock-clip", **options)
            self.right = gr.Video(label=right, elem_id=f"{prefix}dattn-clip", **options)
        self.slider = gr.ImageSlider(
            label=f"{left} | {right}", visible=stills or not video, interactive=False, elem_id=f"{prefix}slider",
            elem_classes=["clip", "headed"], slider_position=position,
        )  # fmt: skip

    @property
    def outputs(self) -> list[Any]:
        """What ``shown`` fills."""
        return [self.left, self.right, self.slider]

    @staticmethod
    def shown(files: Sequence[Path]) -> tuple[Any, Any, Any]:
        """Two files, clips or pictures."""
        one, other = map(str, files)
        return (None, None, (one, other)) if one.endswith(".png") else (one, other, None)

    @property
    def either(self) -> list[Any]:
        """The two ways to show; ``turn`` gives their updates."""
        return [self.row, self.slider]

    @staticmethod
    def turn(video: bool) -> list[Update]:
        """Show clips, or pictures."""
        return [gr.update(visible=video), gr.update(visible=not video)]
