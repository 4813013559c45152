"""HeatMaps: where a picture looks at which word of its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from dattn.control.base import Call, Control, Layers, Place, Window, among, check_layers, check_window, within
from dattn.control.map_store import MapStore, Size, resize, word_maps
from dattn.control.words import Phrase

if TYPE_CHECKING:
    from PIL.Image import Image

KEPT = ("step", "layer", "head")
Key = tuple[int | None, int | None, int | None]


class HeatMaps(Control):
    """Maps of words while a pipeline runs; it changes nothing (DAAM, Tang et al., 2022).

    A map is the share of attention that queries of the picture give to a word's tokens, the mean over these, over
    heads, layers and steps, at one size: cross-attention, or the rows of the picture in joint attention. After the call
    ``maps["circle"]`` is float32 ``[samples, frames, height, width]``.

    In joint attention every layer that is looked at costs its attention a second time: choose a few.

    Args:
        words: words or phrases of the prompt, or positions of tokens.
        size: (height, width) of the maps; by default those of the largest layer.
        window: the denoising steps that count.
        layers: the layers that count.
        by: keep maps of every ``"step"``, ``"layer"`` or ``"head"`` apart, see ``parts``.
        differentiable: keep the graph, so that gradients flow back to the model's inputs.
        prompts: numbers of the prompts whose words these are, counted from 0, the maps of samples of other prompts
            being zeros; None is all.

    Raises:
        ValueError: no words, or something else to keep apart.
    """

    keeps_sums = True

    def __init__(
        self,
        words: Sequence[Phrase],
        size: tuple[int, int] | None = None,
        window: Window = 1.0,
        layers: Layers = None,
        by: Sequence[str] = (),
        differentiable: bool = False,
        prompts: Sequence[int] | None = None,
    ) -> None:
        self.words: list[Phrase] = [words] if isinstance(words, str) else list(words)
        if not self.words:
            raise ValueError("words=[]: give the words whose maps are wanted, such as ['circle']")
        by = [by] if isinstance(by, str) else by
        if set(by) - set(KEPT):
            raise ValueError(f"by={by!r}: maps are kept apart by {', '.join(KEPT)}")
        self.size, self.window, self.layers = size, check_window("window", window), check_layers(layers)
        self.by, self.differentiable = frozenset(by), differentiable
        self.prompts = None if prompts is None else frozenset(prompts)
        self._stores: dict[Key, MapStore] = {}

    def start(self) -> None:
        """Forget the last call's maps."""
        super().start()
        self._stores = {}

    def acts(self, place: Place) -> bool:
        """Where text is seen."""
        seen = place.kind != "self" and not self.stage.again
        return seen and within(self.window, place.step, place.steps) and among(self.layers, place)

    def edit(self, call: Call) -> Tensor:
        """Note the maps; attention as it is."""
        if call.rows.stop > call.rows.start:
            maps = word_maps(call, self, self._phrases())
            self._note(call.place, maps if self.differentiable else maps.detach())
        return call.attend()

    def _phrases(self) -> list[list[Phrase]]:
        """The words of each prompt.

        Raises:
            ValueError: the call has no such prompt.
        """
        if self.prompts is None:
            return [self.words]
        count = max(1, len(self.stage.prompts))
        if not self.prompts or self.prompts - set(range(count)):
            raise ValueError(f"prompts={sorted(self.prompts)}: give numbers of the call's, 0 to {count - 1}")
        return [self.words if number in self.prompts else [] for number in range(count)]

    def _note(self, place: Place, maps: Tensor) -> None:
        """Take in ``[samples, heads, phrases, frames, height, width]``."""
        largest = self.stage.levels[0].shape if self.stage.levels else place.grid.shape
        size: Size = (maps.shape[-3], *(self.size or largest[1:]))
        step, layer = place.step if "step" in self.by else None, place.index if "layer" in self.by else None
        heads = enumerate(maps.unbind(1)) if "head" in self.by else [(None, maps.mean(1))]
        for head, part in heads:
            self._stores.setdefault((step, layer, head), MapStore(size)).add(part)

    def __getitem__(self, word: Phrase) -> Tensor:
        """The map of a word, the mean over all that is kept apart: float32 [samples, frames, height, width].

        Raises:
            KeyError: a word that was not asked for.
            RuntimeError: nothing has run yet.
        """
        index = self._index(word)
        parts = [store.mean[:, index] for store in self._stores.values()] or [MapStore((1, 1, 1)).mean]
        return sum(parts[1:], parts[0]) / len(parts)

    def parts(self, word: Phrase) -> dict[Key, Tensor]:
        """The maps of a word that were kept apart, by (step, layer, head), None for what was averaged over."""
        index = self._index(word)
        return {key: store.mean[:, index] for key, store in self._stores.items()}

    def _index(self, word: Phrase) -> int:
        if word not in self.words:
            raise KeyError(f"{word!r}: maps were asked for {self.words}")
        return self.words.index(word)

    def overlay(self, image: Any, word: Phrase, sample: int = 0, frame: int = 0, strength: float = 0.6) -> Image:
        """A picture with the map of a word over it, the largest value of all frames in full colour.

        Args:
            image: PIL image, or [height, width, 3] as uint8 or float in [0, 1].
            strength: share of the colour where the map is largest, in [0, 1].
        """
        from matplotlib import colormaps
        from PIL import Image

        pixels = np.asarray(image)
        pixels = pixels / 255 if pixels.dtype == np.uint8 else pixels
        clip = self[word][sample].detach().cpu()
        heat = resize(clip[frame][None], (1, *pixels.shape[:2]))[0] / clip.max().clamp(min=1e-12)
        shown = heat.clamp(0, 1).numpy()  # between tokens a curve may lead beyond what they have
        share = strength * shown[..., None]
        mixed = (1 - share) * pixels + share * colormaps["inferno"](shown)[..., :3]
        return Image.fromarray((mixed.clip(0, 1) * 255).round().astype(np.uint8))

    def video(self, frames: Sequence[Any], word: Phrase, sample: int = 0, strength: float = 0.6) -> list[Image]:
        """Frames with the map of a word over each, as bright as it is in the clip; a map of fewer frames is held."""
        held = self[word].shape[1]
        pairs = ((image, i * held // len(frames)) for i, image in enumerate(frames))
        return [self.overlay(image, word, sample, frame, strength) for image, frame in pairs]
