"""The models and the device: what is made, one thing at a time."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from dattn.block_mask import MaskCache
from dattn.grid import TokenGrid
from dattn.operators.per_head import cost_of
from dattn.registry import pattern_from_string

from ..loading import DEFAULT, Loaded, load, pick_device, put_on, shipped
from ..running import Request, Result, checked, run
from .grids import Grids
from .limits import Limits, fresh_seed
from .serving import Job
from .wishes import Wishes

CPU_PIXELS, GPU_PIXELS = 2_200_000, 120_000_000
CPU_TOKENS, GPU_TOKENS = 2**15, 2**18
SECONDS = 3600.0
"""That a call may take, where nobody says else."""
GLANCE = 0.5
"""Seconds that a look at a busy device waits for it."""


class OnStep(Protocol):
    """Told after each step: what runs, its steps done and in all, and which part of how many it is."""

    def __call__(self, what: str, done: int, of: int, part: int = 0, parts: int = 1) -> None:
        """What it raises ends the run."""


class Studio:
    """Models by name, loaded when they are first asked for.

    Args:
        models: folders or hub names beside the demo models.
        device, dtype: as for ``load``.
        pixels: of a clip at most; None goes by the device.
        seconds: that a call may take.
        data: folders that visitors may train on.
        tokens: that a layer may attend to; None goes by the device.

    Raises:
        ValueError: no models, or no such folder.
    """

    def __init__(
        self,
        models: Sequence[str] = (),
        device: str | None = None,
        dtype: str | None = None,
        pixels: int | None = None,
        seconds: float = SECONDS,
        data: Sequence[str] = (),
        tokens: int | None = None,
    ) -> None:
        self.device, self._dtype = pick_device(device), dtype
        demos = sorted(shipped(), key=lambda path: path.name != DEFAULT)
        self._places = {name: name for name in models} | {path.name: str(path) for path in demos}
        if not self._places:
            raise ValueError("no --model: this installation carries no models; name a Diffusers folder or hub name")
        folders = [path.resolve() for path in map(Path, dict.fromkeys(data))]
        self.data = {path.name: path for path in folders}
        if len(self.data) < len(folders):
            raise ValueError(f"--data {' '.join(data)}: visitors choose folders by their last name; rename one of them")
        for path in self.data.values():
            if not path.is_dir():
                raise ValueError(f"--data {path}: no such folder; name folders of clips or pictures with captions")
        self._loaded: dict[str, Loaded] = {}
        self._grids = Grids()
        self._loading, self._lock = threading.Lock(), threading.RLock()
        most = (CPU_PIXELS, CPU_TOKENS) if self.device == "cpu" else (GPU_PIXELS, GPU_TOKENS)
        self.limits = Limits(pixels or most[0], tokens or most[1], seconds)

    @property
    def models(self) -> list[str]:
        """Names that can be asked for: those of the command line, then the demo models."""
        return list(self._places)

    @property
    def examples(self) -> list[str]:
        """The prompts that models which were loaded begin with."""
        return [Wishes.of(loaded).prompt for loaded in list(self._loaded.values())]

    def place(self, name: str) -> str:
        """The folder or hub name of a model that can be asked for."""
        return self._places[name]

    def kind(self, name: str) -> str:
        """The class of a folder's pipeline; the name of a model of the hub, which is not loaded to find out."""
        index = Path(self._places[name]) / "model_index.json"
        return str(json.loads(index.read_text())["_class_name"]) if index.is_file() else name

    def loaded(self, name: Any) -> Loaded:
        """A model, to be looked at alone: it may be at work for someone.

        Raises:
            ValueError: no such model.
        """
        if not isinstance(name, str) or name not in self._places:
            raise ValueError(f"Model {str(name)[:60]!r}: choose one of {', '.join(self.models)}")
        if name not in self._loaded:
            with self._loading:  # one at a time, since Diffusers patches PyTorch for all threads meanwhile
                if name not in self._loaded:
                    self._loaded[name] = load(self._places[name], self.device, self._dtype, safe=True)
        return self._loaded[name]

    @contextmanager
    def model(self, name: Any, lora: Path | None = None) -> Iterator[Loaded]:
        """A model, for one user at a time.

        Args:
            lora: the folder of one that is put on it meanwhile.

        Raises:
            ValueError: no such model.
        """
        loaded = self.loaded(name)
        with self._lock:
            if lora is None:
                yield loaded
                return
            put_on(loaded.pipe, lora)
            try:
                yield loaded
            finally:
                loaded.pipe.unload_lora_weights()

    @contextmanager
    def at_work(
        self, name: Any, request: Request, check: Callable[[], None], lora: Path | None = None
    ) -> Iterator[Loaded]:
        """A model that makes what is asked for, if it may.

        Args:
            check: called before each layer; what it raises ends the run.
            lora: as for ``model``.

        Raises:
            ValueError: no such model, or more tokens than may be.
        """
        with self.model(name, lora) as loaded, checked(loaded.pipe, check):
            self.limits.grid(self._grids.count(name, loaded, request).grid)
            yield loaded

    def wishes(self, name: str) -> Wishes:
        """What a model likes, and may be asked for here."""
        loaded = self.loaded(name)
        return Wishes.of(loaded).within(self.limits.pixels, _multiple_of(loaded))

    def request(self, given: Mapping[str, Any]) -> Request:
        """What a visitor asks for, checked.

        Args:
            given: model, frames, height and width; prompt, steps, seed and whether to take another, where they matter.

        Raises:
            ValueError: what is wrong, for the visitor to read.
        """
        loaded = self.loaded(given["model"])
        video, guidance = loaded.makes_video, loaded.native.guidance if loaded.native else None
        frames, height, width = self.limits.size(
            given["frames"] if video else 1, given["height"], given["width"], _multiple_of(loaded)
        )
        prompt, steps = self.limits.prompt(given.get("prompt", "a")), self.limits.steps(given.get("steps", 1))
        seed = fresh_seed() if given.get("another") is True else self.limits.seed(given.get("seed", 0))
        return Request(prompt, seed, frames if video else None, height, width, steps, guidance)

    def grid(self, name: str, request: Request) -> TokenGrid:
        """The tokens of a request."""
        with self.model(name) as loaded:
            return self._grids.count(name, loaded, request).grid

    def grid_now(self, name: str, request: Request) -> TokenGrid | None:
        """The same without a wait for the device: told from another size while it is busy, None if there is none."""
        found, loaded = self._grids.known(name, request), self.loaded(name)
        if found is not None:
            return found.grid
        if not self._lock.acquire(timeout=GLANCE):
            return self._grids.told(name, request)
        try:
            return self._grids.count(name, loaded, request).grid
        finally:
            self._lock.release()

    def joint_layers(self, name: str, request: Request) -> int:
        """How many layers attend to text and picture together; 0 where text has layers of its own."""
        with self.model(name) as loaded:
            found = self._grids.count(name, loaded, request)
        return found.layers if found.grid.tokens > found.grid.visual else 0

    def share(self, attention: str, grid: TokenGrid) -> float:
        """Attention that a pattern computes, of dense attention, pooled keys counted; some only guess beforehand."""
        if attention == "stock":
            return 1.0
        fitted: Any = pattern_from_string(attention).at(0, 1, 0, 1).fit(grid)[0]
        return float(cost_of(fitted, grid, 64, MaskCache(2)))

    def mask(self, attention: str, grid: TokenGrid) -> Any:
        """A picture of the mask of a static pattern (PIL); None of what has none."""
        from ..plot import beside

        if attention == "stock":
            return None
        fitted: Any = pattern_from_string(attention).at(0, 1, 0, 1).fit(grid)[0]
        return beside(fitted.mask(grid).plot()) if fitted.static else None

    def make(
        self, name: str, request: Request, attention: str, dense: float, job: Job, lora: Path | None = None
    ) -> tuple[Result | None, Result]:
        """A clip by stock attention and the same under a pattern; of stock attention alone, nothing to compare with.

        Args:
            dense: share of the steps, from the first on, that stay dense under the pattern.
            job: what it raises ends the run; the model is as it was.
            lora: put on the model for both.

        Raises:
            ValueError: what pattern or pipeline refuse, or more tokens than may be.
        """
        wanted = ["stock"] if attention == "stock" else ["stock", attention]
        with self.at_work(name, request, job.check, lora) as loaded:
            results = [
                run(loaded, request, one, {"dense_steps": dense}, partial(_at, job.tell, one, part, len(wanted)))
                for part, one in enumerate(wanted)
            ]
        if attention == "stock":
            return None, results[0]
        results[1].compare(results[0].clip)
        return results[0], results[1]


def _at(on_step: OnStep, what: str, part: int, parts: int, done: int, of: int) -> None:
    on_step(what, done, of, part, parts)


def _multiple_of(loaded: Loaded) -> int:
    """Sides of pictures are multiples of so many pixels."""
    pipe = loaded.pipe
    scale = getattr(pipe, "vae_scale_factor_spatial", None) or getattr(pipe, "vae_scale_factor", None) or 8
    return int(scale) * (1 if hasattr(pipe, "unet") else 2)
