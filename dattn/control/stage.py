"""What controls know about the denoising call that runs: its prompts, their tokens, its steps, its samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dattn.control.words import Phrase, Tokens, positions, tokenize


class Stage:
    """One per handle; the handle writes, controls read.

    Attributes:
        prompts: what the pipeline was asked for, one per picture or video before ``num_images_per_prompt``.
        step: the denoising step, from 0.
        steps: how many there are.
        branch: name of the guidance branch, or ``""``.
        text_count: text tokens that the model was given in its last forward pass.
    """

    def __init__(self, pipeline: Callable[[], Any], tokenizers: Sequence[str] = ("tokenizer",)) -> None:
        self._pipeline, self._tokenizers = pipeline, tokenizers
        self.prompts: tuple[str, ...] = ()
        self.step, self.steps = 0, 1
        self.branch = ""
        self.text_count = 0
        self._known: dict[str, list[Tokens]] = {}

    @property
    def pipeline(self) -> Any:
        """The pipeline, or None on a bare model."""
        return self._pipeline()

    def rows(self, batch: int) -> slice:
        """The samples of a batch that follow the prompt: all, none, or those behind the unconditional ones."""
        if self.branch.startswith("uncond"):
            return slice(0, 0)
        if self.branch == "cond":
            return slice(0, batch)
        halves = bool(getattr(self.pipeline, "do_classifier_free_guidance", self.branch == "cond_uncond"))
        return slice(batch // 2, batch) if halves and batch % 2 == 0 else slice(0, batch)

    def prompt_of(self, rows: slice) -> list[tuple[int, int]]:
        """Every sample that follows a prompt, with the number of its prompt; 0 where the prompts are not known."""
        count = rows.stop - rows.start
        each = max(1, count // max(1, len(self.prompts)))
        return [(rows.start + i, min(i // each, max(0, len(self.prompts) - 1))) for i in range(count)]

    def keys(self, phrase: Phrase, prompt: int, text: slice) -> list[int]:
        """Which keys of a call are a phrase of a prompt, ``text`` being those of all text tokens.

        Raises:
            ValueError: it is not there.
        """
        return [text.start + i for i in self.positions(phrase, prompt, text.stop - text.start)]

    def tokens(self, prompt: str) -> list[Tokens]:
        """A prompt as the model's text tokens, once for every tokenizer."""
        if prompt not in self._known:
            self._known[prompt] = self._tokenize(prompt)
        return self._known[prompt]

    def positions(self, phrase: Phrase, prompt: int = 0, count: int | None = None) -> list[int]:
        """Where a phrase of a prompt is among the model's text tokens.

        Raises:
            ValueError: it is not there.
        """
        tokens = self.tokens(self.prompts[prompt]) if self.prompts else []
        return positions(phrase, tokens, self.text_count if count is None else count)

    def _tokenize(self, prompt: str) -> list[Tokens]:
        found: list[Tokens] = []
        for name in self._tokenizers:
            tokenizer = getattr(self.pipeline, name, None)
            if tokenizer is not None:
                start = sum(part.room for part in found)
                found.append(tokenize(tokenizer, prompt, start))
        return found
