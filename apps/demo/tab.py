"""What every tab is: on the left what is wanted, on the right what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import gradio as gr

from .hints import hinted
from .look import badges
from .parts import SizeControls
from .serving import ALONE, ASIDE, DEVICE, QUIET, Given, Job, named, run_for, served
from .studio import Studio
from .visits import Visits
from .waiting import leave
from .wishes import Wishes


class Tab:
    """A tab that makes something of a model.

    Args:
        studio: makes it.
        visits: whose it is.

    Attributes:
        model: the choice of the model.
        prefix: of all ``elem_id``.
        action, hint: what is written on the button that starts, and its tooltip.
        stop_api: how the stop button is served; one tab serves it to programs for all.
    """

    model: gr.Dropdown
    prefix: ClassVar[str] = ""
    action: ClassVar[str] = ""
    hint: ClassVar[str] = ""
    stop_api: ClassVar[dict[str, Any]] = {"api_visibility": "private"}

    def __init__(self, studio: Studio, visits: Visits) -> None:
        self._studio, self._visits = studio, visits

    @property
    def models(self) -> list[str]:
        """Those that can be chosen."""
        return self._studio.models

    def build(self) -> None:
        """Lay it out, in the Blocks that are open."""
        name = self.models[0]
        wishes = self.wishes(name)
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                self.build_wish(name, wishes)
                with gr.Row():
                    go = gr.Button(self.action, variant="primary", elem_id=f"{self.prefix}go")
                    stop = gr.Button("Stop", variant="stop", elem_id=f"{self.prefix}stop")
                    self.go = hinted(go, self.hint)
                    self.stop = hinted(stop, "End what you have asked for, within a step")
            with gr.Column(scale=3, min_width=300):
                ready = badges({"Ready": f"press {self.action}"})
                self.facts = gr.HTML(ready, elem_id=f"{self.prefix}facts", min_height=36)
                self.build_results(wishes)
        self.stop.click(named("stop", served(self.halt)), None, None, queue=False, **self.stop_api)
        self.connect()

    def build_wish(self, name: str, wishes: Wishes) -> None:
        """The left side, without the buttons."""
        raise NotImplementedError

    def build_results(self, wishes: Wishes) -> None:
        """The right side, below the facts."""
        raise NotImplementedError

    def connect(self) -> None:
        """Say what the controls do."""
        raise NotImplementedError

    def wishes(self, name: str) -> Wishes:
        """What a model likes."""
        return self._studio.wishes(name)

    def model_choice(self, name: str, info: str) -> gr.Dropdown:
        """The choice of the model."""
        return gr.Dropdown(self.models, value=name, label="Model", info=info, elem_id=f"{self.prefix}model")

    def size_controls(self, wishes: Wishes) -> SizeControls:
        """Frames, height, width, steps and seed."""
        return SizeControls(wishes, self.prefix)

    def on_model(self, choose: Callable[..., Any], outputs: Sequence[Any], prompts: Sequence[Any] = ()) -> None:
        """Change controls with the model; the seconds are shown on it, since it may have to be loaded.

        Args:
            choose: given the name of the model and the prompts.
        """
        shown: dict[str, Any] = {**QUIET, "show_progress": "minimal", "show_progress_on": [self.model]}
        self.model.change(served(choose), [self.model, *prompts], list(outputs), **shown, **ASIDE)

    def on_go(
        self,
        make: Callable[[Given, Job], Any],
        inputs: Mapping[str, Any],
        outputs: Sequence[Any],
        api_name: str,
        told: str,
    ) -> None:
        """Make something of the inputs, and serve it to programs too.

        Args:
            make: given the inputs by name; what it raises is shown.
            inputs: their names are those of the API's arguments.
            outputs: beside the facts, which come first.
            api_name, told: of the API.
        """
        self.go.click(
            named(api_name, run_for(self._visits, self._studio.limits.seconds, inputs, make)), list(inputs.values()),
            [self.facts, *outputs], api_name=api_name, api_description=told, show_progress_on=[self.facts], **ALONE,
        )  # fmt: skip

    async def halt(self, request: gr.Request) -> None:
        """End what the visitor has asked for: within a step if it runs, at once if it waits."""
        if not hasattr(request, "session_hash"):
            raise ValueError("an MCP call is ended by its own client: cancel it there")
        if request.session_hash:
            self._visits.stop(request.session_hash)
            await leave(request, DEVICE)
