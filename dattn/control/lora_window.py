"""LoRAWindow: LoRAs that act in some of the denoising steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dattn.control.base import Control, Window, check_window, within
from dattn.models import models_of


class LoRAWindow(Control):
    """The adapters of a pipeline act within a window of the denoising steps, and in the others the model is as it was.

    For a LoRA that wins back what a pattern loses, where the first steps are dense and nothing is lost; or for one that
    is to change looks and leave the layout, which the first steps settle. It is for PEFT adapters that are loaded and
    not fused; those that are switched off stay off.

    Args:
        window: the denoising steps in which they act: (0.25, 1) leaves out the first quarter.

    Raises:
        ValueError: no window; in a call, a bare model, or a pipeline without adapters.
    """

    keeps_sums = True

    def __init__(self, window: Window) -> None:
        self.window = check_window("window", window)
        self._off: list[Any] = []

    def start(self) -> None:
        """A call starts; the last one may have ended in the middle of a step."""
        super().start()
        self.removed()

    def inputs(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Before a forward pass: switch them off outside of the window."""
        if self.stage.pipeline is None:
            raise ValueError("LoRAWindow switches the adapters of a pipeline: apply it to that, not to the bare model")
        tuned = [model for model in models_of(self.stage.pipeline).values() if hasattr(model, "peft_config")]
        if not tuned:
            raise ValueError("LoRAWindow: no LoRA is loaded; pipe.load_lora_weights(…) first")
        if not self._off and not within(self.window, self.stage.step, self.stage.steps):
            self._off = [model for model in tuned if _acts(model)]
            for model in self._off:
                model.disable_adapters()
            self.stage.adapters_off = bool(self._off)
        return arguments

    def stepped(self, latents: Tensor) -> Tensor:
        """After a step: they are on, as the user left them."""
        self.removed()
        return latents

    def removed(self) -> None:
        """Switch on what it has switched off."""
        for model in self._off:
            model.enable_adapters()
        self._off, self.stage.adapters_off = [], False


def _acts(model: Any) -> bool:
    """Whether the adapters of a model are switched on."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return any(isinstance(m, BaseTunerLayer) and not m.disable_adapters for m in model.modules())
