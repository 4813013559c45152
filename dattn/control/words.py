"""Words of a prompt and the text tokens that they become, whichever tokenizer makes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dattn.adapters.text import Written

Phrase = str | int | Sequence[int]
"""A word or phrase of the prompt, or positions among the text tokens."""
LONGEST = 10**9
"""Stands for no limit."""


@dataclass(frozen=True)
class Tokens:
    """A prompt as one tokenizer writes it.

    Attributes:
        text: the prompt.
        ids: of every token, special ones too, without padding.
        spans: first and last character + 1 of each; equal for special tokens, outside of the text for a template's.
        start: position of the first among the model's text tokens.
        room: how many text tokens there may be; what a prompt has beyond is cut off.
    """

    text: str
    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    start: int
    room: int

    def of(self, phrase: str) -> list[int]:
        """Positions of a phrase wherever it occurs as whole words, in any case; empty where it does not."""
        places = [match.span() for match in _whole(phrase).finditer(self.text)]
        return [self.start + i for first, last in places for i in self.covering(first, last)]

    def words(self) -> list[tuple[str, list[int]]]:
        """Every word, as spaces divide them, and its tokens, counted from the first."""
        return [(match[0], self.covering(*match.span())) for match in re.finditer(r"\S+", self.text)]

    @property
    def seen(self) -> int:
        """How many of them the model sees: of a text that is cut off, what stays before the special ones at its end."""
        if len(self.ids) <= self.room:
            return len(self.ids)
        ending = next((i for i, (first, last) in enumerate(reversed(self.spans)) if last > first), 0)
        return self.room - ending

    def within(self, start: int, room: int, dropped: int = 0, last: bool = False) -> Tokens:
        """Those that the model is given as ``room`` of its text tokens from ``start`` on.

        Args:
            dropped: how many the pipeline drops at the beginning.
            last: whether they are at the end of that room.
        """
        ids, spans = self.ids[dropped:], self.spans[dropped:]
        before = max(0, room - len(ids)) if last else 0
        return replace(self, ids=ids, spans=spans, start=start + before, room=room - before)

    def covering(self, first: int, last: int) -> list[int]:
        """The tokens, counted from the first, that hold any of the characters from ``first`` up to ``last``."""
        return [i for i, (a, b) in enumerate(self.spans) if a < last and b > first]


def tokenize(tokenizer: Any, written: Written) -> Tokens:
    """A prompt, in its template, as ``tokenizer`` writes it.

    Raises:
        ValueError: a tokenizer that does not tell where in the text a token comes from.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} does not tell which characters a token stands for: load the pipeline with "
            "fast tokenizers, or give positions of tokens in place of words"
        )
    text, before = written.before + written.prompt + written.after, len(written.before)
    special = {} if written.special else {"add_special_tokens": False}
    encoded = tokenizer(text, return_offsets_mapping=True, **special)
    spans = (_trimmed(text, *span) for span in encoded["offset_mapping"])
    longest = min(getattr(tokenizer, "model_max_length", LONGEST), LONGEST)
    ids = tuple(encoded["input_ids"])
    return Tokens(written.prompt, ids, tuple((a - before, b - before) for a, b in spans), 0, longest)


def positions(phrase: Phrase, tokens: Sequence[Tokens], count: int) -> list[int]:
    """Where a phrase is among the ``count`` text tokens of a model.

    Args:
        phrase: words of the prompt, or positions.
        tokens: the prompt, once for every tokenizer whose tokens the model sees.

    Raises:
        ValueError: words that are not in the prompt or cut off from it, or positions out of range.
    """
    if not isinstance(phrase, str):
        found = [phrase] if isinstance(phrase, int) else list(phrase)
        wrong = [i for i in found if not isinstance(i, int) or not 0 <= i < count]
        if wrong or not found:
            raise ValueError(f"token positions {found}: there are {count} text tokens, counted from 0")
        return found
    if not tokens:
        raise ValueError(
            f"{phrase!r}: the prompt is not known; call the very pipeline that this is applied to, with prompt= in "
            "place of prompt_embeds=, or give positions of tokens"
        )
    found = [i for part in tokens for i in part.of(phrase)]
    if not found:
        raise ValueError(f"{phrase!r} is not in the prompt {tokens[0].text!r}: give words as they stand there")
    inside = [i for part in tokens for i in part.of(phrase) if i < min(count, part.start + part.seen)]
    if not inside:
        raise ValueError(f"{phrase!r} is beyond the {count} text tokens that the model sees: shorten the prompt")
    return inside


def _whole(phrase: str) -> re.Pattern[str]:
    """A phrase as whole words, whatever the space between them."""
    words = map(re.escape, phrase.split())
    if not phrase.split():
        raise ValueError("an empty phrase: give a word of the prompt")
    return re.compile(r"(?<!\w)" + r"\s+".join(words) + r"(?!\w)", re.IGNORECASE)


def _trimmed(text: str, first: int, last: int) -> tuple[int, int]:
    """A span without the space before it that some tokenizers count in."""
    while first < last and text[first].isspace():
        first += 1
    return first, last
