"""What adapters say of the prompt: where its tokens are in a forward pass, and how pipelines write it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Asked = Mapping[str, Any]
"""What a pipeline's ``encode_prompt`` was called with, by name."""
MARK = "\N{OBJECT REPLACEMENT CHARACTER}"
"""Stands for the prompt in a chat template."""


@dataclass(frozen=True)
class Prompt:
    """Where the prompt is in one forward pass.

    Attributes:
        counts: text tokens of every tokenizer in turn, or of all together.
        level: of the layers whose sequence holds picture and prompt, in a family without layers for text.
        behind: whether the prompt comes behind the picture there; None is before, or behind where nothing is before.
        skip: tokens of other kinds that stand on that side before it.
        beside: tokens of other kinds that stand behind it in layers for text.
        weaker: whether the pass leaves layers out, so that guidance leads away from it; all of its samples follow the
            prompt.
    """

    counts: tuple[int, ...] = ()
    level: str = ""
    behind: bool | None = None
    skip: int = 0
    beside: int = 0
    weaker: bool = False

    @property
    def count(self) -> int:
        """All of its tokens."""
        return sum(self.counts)


Prompts = Prompt | tuple[Prompt, ...]
"""Where the prompt is in the samples of a batch, or in each where they differ."""


def lengths(arguments: Mapping[str, Any], *names: str) -> tuple[int, ...]:
    """Tokens of those arguments [batch, tokens, channels] that are given; where one is a tuple, of its first tensor."""
    found = (arguments.get(name) for name in names)
    texts = (text[0] if isinstance(text, tuple | list) else text for text in found if text is not None)
    return tuple(text.shape[1] for text in texts)


def prompt(model: Any, arguments: Mapping[str, Any]) -> Prompts:
    """Where most families have it: in ``encoder_hidden_states``."""
    return Prompt(lengths(arguments, "encoder_hidden_states"))


@dataclass(frozen=True)
class Written:
    """A prompt as a pipeline writes it for its tokenizers.

    Attributes:
        prompt: what becomes of the prompt itself.
        before, after: what is put around it.
        dropped: leading tokens that the model is not given.
        last: whether the tokens are the last of those that the model is given, because padding or a picture's come
            before them.
        special: whether the tokenizer adds its special tokens.
    """

    prompt: str
    before: str = ""
    after: str = ""
    dropped: int = 0
    last: bool = False
    special: bool = True


def written(pipeline: Any, prompt: str, asked: Asked) -> Written:
    """A prompt that is tokenized as it is, but for what the pipeline cleans."""
    return Written(cleaned(pipeline, prompt, asked))


def cleaned(pipeline: Any, prompt: str, asked: Asked) -> str:
    """A prompt as its pipeline cleans it, in one of the two ways that Diffusers' pipelines have."""
    if hasattr(pipeline, "_text_preprocessing"):
        return str(pipeline._text_preprocessing(prompt, clean_caption=bool(asked.get("clean_caption")))[0])
    found = (getattr(sys.modules.get(kind.__module__), "prompt_clean", None) for kind in type(pipeline).__mro__)
    return str(next(filter(None, found), str)(prompt))


def in_template(template: str, prompt: str, dropped: int = 0, last: bool = False) -> Written:
    """A prompt in the place of ``{}``."""
    before, after = template.split("{}")
    return Written(prompt, before, after, dropped, last)


def in_chat(render: Callable[[str], str], prompt: str) -> tuple[str, str, str]:
    """A prompt as a chat template writes it, what comes before, and what comes after.

    Args:
        render: from what a user says to the whole conversation as text.
    """
    before, after = render(MARK).split(MARK)
    whole = render(prompt)  # some templates strip spaces
    return whole[len(before) : len(whole) - len(after)], before, after


def padded_left(pipeline: Any) -> bool:
    """Whether the pipeline's tokenizer puts padding before a text."""
    tokenizer = getattr(pipeline.tokenizer, "tokenizer", pipeline.tokenizer)  # of a processor
    return bool(tokenizer.padding_side == "left")


def untold(pipeline: Any, why: str) -> ValueError:
    """The error for a pipeline whose words cannot be found among its tokens."""
    return ValueError(f"{type(pipeline).__name__} {why}: give positions of tokens in place of words")
