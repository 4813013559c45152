"""New words for a pipeline: tokens whose embeddings are learned along with a LoRA (textual inversion, Gal et al. 2022).

Only the new vectors learn; the encoder and the embeddings of all other words stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dattn.adapters.text import Written
from dattn.control.words import Tokens, tokenize

PREFIX = "tokens."
"""Of the vectors' names in a checkpoint, before the placeholder."""


class NewTokens:
    """Placeholders in the prompts of a pipeline, and the vectors that its text encoder has for them.

    Args:
        pipeline: its ``tokenizer`` and ``text_encoder`` get the tokens.
        placeholders: such as ``<new1>``; no words of the tokenizer.
        initial: a word for each, whose embedding it starts from.

    Raises:
        ValueError: placeholders that are words already, initial words that are not one token, a pipeline that loads no
            textual inversion in Diffusers.
    """

    def __init__(self, pipeline: Any, placeholders: Sequence[str], initial: Sequence[str]) -> None:
        if not hasattr(pipeline, "load_textual_inversion") or getattr(pipeline, "text_encoder_2", None) is not None:
            raise ValueError(
                f"--placeholder_token: {type(pipeline).__name__} has no single text encoder that loads textual "
                "inversion in Diffusers; leave it out"
            )
        tokenizer, encoder = pipeline.tokenizer, pipeline.text_encoder
        if len(initial) != len(placeholders):
            raise ValueError(f"--initializer_token {' '.join(initial)}: give one for each of {' '.join(placeholders)}")
        starts = [_only_token(tokenizer, word) for word in initial]
        known = [token for token in placeholders if token in tokenizer.get_vocab()]
        if known or len(set(placeholders)) < len(placeholders):
            raise ValueError(f"--placeholder_token {' '.join(known or placeholders)}: known already; take another")
        names = [_file_name(token) for token in placeholders]
        if "" in names or len(set(names)) < len(names):
            raise ValueError(
                f"--placeholder_token {' '.join(placeholders)}: their letters and digits name their files; take others"
            )
        tokenizer.add_tokens(list(placeholders))
        encoder.requires_grad_(False)
        encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        embeddings = encoder.get_input_embeddings()
        self.placeholders = tuple(placeholders)
        self._tokenizer = tokenizer
        self._ids = [int(i) for i in tokenizer.convert_tokens_to_ids(list(placeholders))]
        self.vectors = nn.Parameter(embeddings.weight[starts].detach().float().clone())
        embeddings.weight.data[self._ids] = embeddings.weight.data[starts]
        embeddings.register_forward_hook(self._put_in)

    def _put_in(self, embeddings: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> Tensor:
        """The embeddings of token ids, with the vectors of the new ones."""
        ids = given[0]
        for vector, token in zip(self.vectors, self._ids, strict=True):
            made = torch.where((ids == token)[..., None], vector.to(made), made)
        return made

    def tokens(self, caption: str) -> Tokens:
        """A caption as the tokenizer writes it."""
        return tokenize(self._tokenizer, Written(caption))

    def weights(self) -> dict[str, Tensor]:
        """The vectors by name, on the CPU."""
        return {
            PREFIX + name: vector.detach().cpu().clone()
            for name, vector in zip(self.placeholders, self.vectors, strict=True)
        }

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Put vectors that ``weights`` gave back."""
        with torch.no_grad():
            self.vectors.copy_(torch.stack([saved[PREFIX + name] for name in self.placeholders]))

    def save(self, folder: Path) -> list[Path]:
        """Write a file for each, as ``pipeline.load_textual_inversion`` reads it."""
        paths = []
        for name, vector in zip(self.placeholders, self.vectors.detach().cpu(), strict=True):
            paths.append(folder / f"learned_embeds-{_file_name(name)}.safetensors")
            save_file({name: vector.clone()}, paths[-1])
        return paths


def _file_name(placeholder: str) -> str:
    return re.sub(r"[^0-9A-Za-z]+", "", placeholder)


def _only_token(tokenizer: Any, word: str) -> int:
    """The token of a word.

    Raises:
        ValueError: it is none, or several.
    """
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise ValueError(f"--initializer_token {word}: {len(ids)} tokens here; give a word that is one")
    return int(ids[0])
