"""One pipeline class for several stock ones: it becomes the one that its components are made for."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

from diffusers import DiffusionPipeline

from dattn.models import models_of

IMPLIED = ("self", "__class__")
"""Local names of an ``__init__`` that are no arguments."""


class OnStock:
    """Mixin, before ``DiffusionPipeline``, of a pipeline that is a stock one with another ``__call__``.

    An object is of a subclass of the stock pipeline too, so that loading, offloading, LoRA and ``dattn.apply`` work as
    they do there, and ``super().__call__`` is the stock call. A subclass gives ``__init__`` the components of all of
    them, with None as default, and passes them on by name.

    Attributes:
        stocks: for each class of denoiser the stock pipelines it is for; with several, the first whose components are
            all given.
    """

    stocks: ClassVar[Mapping[str, tuple[type[DiffusionPipeline], ...]]]

    def __new__(cls, *args: Any, **components: Any) -> Any:
        """An object on the stock pipeline that fits.

        Raises:
            ValueError: a denoiser that is not served.
        """
        given = inspect.signature(cls.__init__).bind_partial(None, *args, **components).arguments
        if "stock" in vars(cls):
            return super().__new__(cls)
        return super().__new__(_on(cls, cls._stock_for(given)))  # type: ignore[arg-type]

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **changes: Any) -> Any:
        """On the components of another pipeline, as they are; those of ``changes`` take their place.

        Raises:
            ValueError: components that are not served.
        """
        takes = inspect.signature(cls.__init__).parameters
        settings = {name: value for name, value in pipeline.config.items() if name in takes}
        return cls(**(settings | pipeline.components | changes))

    @classmethod
    def _stock_for(cls, given: Mapping[str, Any]) -> type[DiffusionPipeline]:
        denoisers = [given.get(name) for name in ("transformer", "transformer_2", "unet")]
        kinds = [type(models_of(denoiser)[""]).__name__ for denoiser in denoisers if denoiser is not None]
        for stock in cls.stocks.get(kinds[0] if kinds else "", ()):
            names = inspect.signature(stock.__init__).parameters
            if all(name in names for name, component in given.items() if component is not None and name != "self"):
                return stock
        raise ValueError(
            f"{cls.__name__}: {kinds[0] if kinds else 'no denoiser'} with {', '.join(given)}; it serves the components "
            f"of {', '.join(sorted({stock.__name__ for stocks in cls.stocks.values() for stock in stocks}))}"
        )

    def __init__(self, **given: Any) -> None:
        takes = inspect.signature(self.stock.__init__).parameters  # type: ignore[attr-defined]
        own = self._optional_components  # type: ignore[attr-defined]
        told = {name: value for name, value in given.items() if value is not None or name in own}
        super().__init__(**{name: value for name, value in told.items() if name in takes})
        self.register_modules(**dict.fromkeys(set(own) - takes.keys()))  # type: ignore[attr-defined]


@functools.cache
def _on(cls: type[OnStock], stock: type[DiffusionPipeline]) -> type[OnStock]:
    """The class of both; under the name of the first."""
    return type(cls.__name__, (cls, stock), {"__module__": cls.__module__, "__doc__": cls.__doc__, "stock": stock})
