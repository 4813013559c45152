"""What controls learn from a pipeline, and change in it, while it is called: its prompts and its first latents."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from dattn.control.stage import Stage
from dattn.tapped import Tap, Tapped, edited


class PipelineTap(Tap):
    """Wraps four methods on one pipeline *instance*.

    A call of a pipeline begins with ``check_inputs`` and ends with ``maybe_free_model_hooks``; denoising after that,
    with nothing told in between, is another pipeline's, which has the same models. The first ``encode_prompt`` after
    the beginning is told the prompt; some pipelines encode the negative one in a second call.

    Args:
        pipeline: a Diffusers pipeline.
        stage: is told the prompts.
        edit: what becomes of the first, noisy latents.
    """

    def __init__(self, pipeline: Any, stage: Stage, edit: Callable[[Tensor], Tensor]) -> None:
        super().__init__(pipeline)
        self._stage, self._awaited, self._edit = stage, True, edit
        self._over = False
        begin_and_end = {"check_inputs": self._begin, "maybe_free_model_hooks": self._end}
        events = {**begin_and_end, "prepare_latents": self._prepared}
        for name, after in events.items():
            if hasattr(pipeline, name):
                self.put(name, Tapped(getattr(pipeline, name), after))
        encode = next((name for name in ("encode_prompt", "_encode_prompt") if hasattr(pipeline, name)), None)
        if encode is not None:
            self.put(encode, _Heard(getattr(pipeline, encode), self._hear))

    def _begin(self, result: Any) -> Any:
        self._awaited, self._over = True, False
        self._forget()
        return result

    def _end(self, result: Any) -> Any:
        self._over = True
        return result

    def _forget(self) -> None:
        self._stage.prompts, self._stage.encoding, self._stage.samples = (), {}, 0

    def rearm(self) -> None:
        """Denoising begins: what is encoded from now on belongs to another call."""
        self._awaited = True
        if self._over:
            self._forget()

    def _prepared(self, result: Any) -> Any:
        self._over = False
        return edited(result, self._edit)

    def _hear(self, arguments: Mapping[str, Any]) -> None:
        if self._awaited:
            self._awaited, self._over = False, False
            self._stage.encoding, prompt = arguments, arguments.get("prompt")
            self._stage.prompts = (prompt,) if isinstance(prompt, str) else tuple(prompt or ())


class _Heard(Tapped):
    """``encode_prompt``, whose arguments are told before it runs."""

    def __init__(self, method: Callable[..., Any], hear: Callable[[Mapping[str, Any]], None]) -> None:
        super().__init__(method, lambda result: result)
        self._hear = hear

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._hear(inspect.signature(self._method).bind(*args, **kwargs).arguments)
        return super().__call__(*args, **kwargs)
