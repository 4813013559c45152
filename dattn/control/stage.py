"""What controls know about the denoising call that runs: its prompts, their tokens, its steps, its samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from dattn.adapters.text import Asked, Prompt, Prompts, Written, written
from dattn.control.words import Phrase, Tokens, positions, tokenize
from dattn.grid import TokenGrid

AGAIN = "+again"
"""Ends the name of a branch while a control runs the model once more."""
OTHERS = ("prompt_2", "prompt_3", "prompt_4")
"""Arguments of pipelines with a prompt for every encoder."""
BATCHED = ("", "cond_uncond")
"""Names of branches that may be several in one batch."""


class Stage:
    """One per handle; the handle writes, controls read.

    Attributes:
        frames_first: whether the latents of a video have frames before channels.
        prompts: what the pipeline was asked for, one per picture or video before ``num_images_per_prompt``.
        encoding: the arguments by name with which the pipeline first encoded them.
        calls: denoising loops that have begun.
        step: the denoising step, from 0.
        steps: how many there are.
        branch: name of the guidance branch, or ``""``.
        samples: pictures or videos that the pipeline was asked for; 0 if that is not known.
        batch: how many the model was given in its last forward pass, of all guidance branches.
        passes: its forward passes with a prompt since the last step.
        texts: where the prompt was in the last one, for every sample where they differ.
        text_count: text tokens that the model was given then.
        sample: the one that a call of attention is for, where a model or a batch of unlike samples needs a call each.
        latents: the tensor that the pipeline goes on with, until the next step; None where that is not known.
        observe: runs the model on other arguments for a control that only looks at attention.
        levels: the distinct grids of its layers in that pass, the largest first.
        adapters_off: whether a control has switched LoRAs off for the step.
        acted: the controls that have edited attention in the denoising call.
        told_idle: those of which the user was told that they did not.
    """

    def __init__(
        self,
        pipeline: Callable[[], Any],
        tokenizers: Sequence[str] = ("tokenizer",),
        written: Callable[[Any, str, Asked], Written] = written,
        positive_first: Sequence[str] = (),
        frames_first: bool = False,
    ) -> None:
        self._pipeline, self._tokenizers = pipeline, tokenizers
        self._written, self._positive_first, self.frames_first = written, positive_first, frames_first
        self.prompts: tuple[str, ...] = ()
        self.encoding: Mapping[str, Any] = {}
        self.calls, self.step, self.steps = 0, 0, 1
        self.branch = ""
        self.samples = self.batch = self.passes = self.text_count = 0
        self.texts: tuple[Prompt, ...] = (Prompt(),)
        self.sample: int | None = None
        self.latents: Tensor | None = None
        self.observe: Callable[[Any, Mapping[str, Any]], None]
        self.levels: tuple[TokenGrid, ...] = ()
        self.adapters_off = False
        self.acted, self.told_idle = set[Any](), set[Any]()
        self._known: dict[str, tuple[Written, list[Tokens]]] = {}
        self._known_in: Mapping[str, Any] = self.encoding

    @property
    def pipeline(self) -> Any:
        """The pipeline, or None on a bare model."""
        return self._pipeline()

    @property
    def again(self) -> bool:
        """Whether a control runs the model once more on inputs that it has seen."""
        return self.branch.endswith(AGAIN)

    def begin(self) -> None:
        """A denoising loop begins."""
        self.calls += 1
        self.acted.clear()

    def enter(self, texts: Prompts, batch: int) -> None:
        """A forward pass of ``batch`` samples begins, with the prompt there."""
        self.given(texts)
        self.batch = batch
        self.passes += self.text_count > 0

    def given(self, texts: Prompts) -> None:
        """The model is given the prompt there."""
        self.texts = texts if isinstance(texts, tuple) else (texts,)
        self.text_count = self.texts[0].count

    def rows(self, batch: int) -> slice:
        """The samples of a batch that follow the prompt: all, none, or those on one side of the unconditional ones."""
        if self.sample is None:
            return self._rows(batch)
        return slice(0, int(self.sample in range(self.batch)[self._rows(self.batch)]))

    def prompt_of(self, rows: slice) -> list[tuple[int, int]]:
        """Every sample that follows a prompt, with the number of its prompt; 0 where the prompts are not known."""
        if self.sample is None:
            return self._prompt_of(rows)
        of = dict(self._prompt_of(self._rows(self.batch)))
        return [(row, of[self.sample]) for row in range(rows.start, rows.stop)]

    def _rows(self, batch: int) -> slice:
        following, branches = self._branches(batch)
        unit = self.samples * max(1, batch // self.batch) if self._told else batch // branches
        return slice(following.start * unit, min(following.stop * unit, batch))

    def _prompt_of(self, rows: slice) -> list[tuple[int, int]]:
        count, prompts = rows.stop - rows.start, max(1, len(self.prompts))
        following, _ = self._branches(rows.stop)
        unit = max(1, self.samples if self._told else 0, count // max(1, len(following)))
        return [(rows.start + i, i % unit * prompts // unit) for i in range(count)]

    def _branches(self, batch: int) -> tuple[range, int]:
        """Which guidance branches of a batch follow the prompt, and how many there are.

        Where no branch has a name and each is a pass of its own, pipelines run the one that follows the prompt first.
        """
        branch = self.branch.removesuffix(AGAIN).removeprefix("pred_")  # guiders write pred_cond
        told = self.encoding.get("do_classifier_free_guidance", branch == "cond_uncond" or None)
        guided = getattr(self.pipeline, "do_classifier_free_guidance", told)
        count = self.batch // self.samples if self._told else 2 if guided and batch % 2 == 0 else 1
        if branch == "uncond":
            return range(0), count
        alone = branch not in BATCHED or self.texts[0].weaker  # uncond_stg, too, perturbs what follows the prompt
        if alone or guided is False:
            return range(count if self._told else 1), count if self._told else 1
        if count == 1:
            return range(0 if self._told and not branch and self.passes > 1 else 1), 1
        names = type(self.pipeline).__name__
        return range(1) if any(part in names for part in self._positive_first) else range(1, count), count

    @property
    def _told(self) -> bool:
        """Whether the pipeline has told how many pictures or videos it makes, and the model was given as many."""
        return self.samples > 0 and self.batch > 0 and self.batch % self.samples == 0

    def keys(self, phrase: Phrase, prompt: int, text: slice) -> list[int]:
        """Which keys of a call are a phrase of a prompt, ``text`` being those of all text tokens.

        Raises:
            ValueError: it is not there.
        """
        return [text.start + i for i in self.positions(phrase, prompt, text.stop - text.start)]

    def tokens(self, prompt: str) -> list[Tokens]:
        """A prompt as the model's text tokens, once for every tokenizer.

        Raises:
            ValueError: its words cannot be told from the tokens, or another encoder was given another prompt.
        """
        alike = None, self.encoding.get("prompt")
        other = next((name for name in OTHERS if self.encoding.get(name) not in alike), None)
        if other is not None:
            raise ValueError(f"{other}=: words are looked for in prompt=; leave it out, or give positions of tokens")
        if self._known_in is not self.encoding:
            self._known, self._known_in = {}, self.encoding
        if prompt not in self._known:
            written = self._written(self.pipeline, prompt, self.encoding)
            self._known[prompt] = written, self._tokenize(written)
        return self._placed(*self._known[prompt])

    def positions(self, phrase: Phrase, prompt: int = 0, count: int | None = None) -> list[int]:
        """Where a phrase of a prompt is among the model's text tokens.

        Raises:
            ValueError: it is not there.
        """
        tokens = self.tokens(self.prompts[prompt]) if self.prompts and isinstance(phrase, str) else []
        if isinstance(phrase, str) and tokens:
            phrase = self._expanded(phrase, self._own_tokenizers[0])
        return positions(phrase, tokens, self.text_count if count is None else count)

    def _tokenize(self, written: Written) -> list[Tokens]:
        prompt = written.prompt
        return [tokenize(one, replace(written, prompt=self._expanded(prompt, one))) for one in self._own_tokenizers]

    @property
    def _own_tokenizers(self) -> list[Any]:
        """The pipeline's tokenizers, those of processors too."""
        names = [name for name in self._tokenizers if getattr(self.pipeline, name, None) is not None]
        found = (getattr(self.pipeline, name, None) for name in names or ["tokenizer"])
        return [getattr(one, "tokenizer", one) for one in found if one is not None]

    def _expanded(self, text: str, tokenizer: Any) -> str:
        """A text in which words that were learnt as several embeddings are as many, as the pipeline writes them."""
        convert = getattr(self.pipeline, "maybe_convert_prompt", None)
        return text if convert is None else str(convert(text, tokenizer))

    def _placed(self, written: Written, found: Sequence[Tokens]) -> list[Tokens]:
        """The tokens that the model is given, each tokenizer's behind those of the one before."""
        counts = self.texts[(self.sample or 0) % len(self.texts)].counts
        rooms = counts if len(counts) == len(found) else [part.room for part in found]
        placed, start = [], 0
        for part, room in zip(found, rooms, strict=True):
            if self.text_count and part is found[-1]:
                room = self.text_count - start
            placed.append(part.within(start, room, written.dropped, written.last))
            start += room
        return placed
