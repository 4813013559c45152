"""The text side of the shapes model: a word-level tokenizer and a tiny stock ``UMT5EncoderModel``."""

from __future__ import annotations

import math

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from .captions import COLORS, MOTIONS, RELATIONS, SHAPES

TEXT_LENGTH = 512
"""``WanPipeline`` pads the text states with zeros to this many."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of the world; ``</s>`` ends every text, also the empty one."""
    words = ["a", "an", "and", ",", "both", *COLORS, *SHAPES, *" ".join([*MOTIONS, *RELATIONS]).split()]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(["<pad>", "</s>", "<unk>", *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TEXT_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
    )


def build_encoder(vocabulary: int) -> UMT5EncoderModel:
    """A fresh encoder: 2 layers of width 64, less than a tenth of a million weights."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocabulary,
            d_model=64,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            is_encoder_decoder=False,
            tie_word_embeddings=False,
        )
    )


def encode_captions(
    tokenizer: PreTrainedTokenizerFast, encoder: UMT5EncoderModel, captions: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Text states as ``WanPipeline`` makes them, with its identical padding keys folded into one.

    The pipeline zeroes the states past the end and pads to 512: some 500 equal keys, over which attention is
    the same as over one of them with ``ln(count)`` added to its score, as ``FastAttention`` does.

    Args:
        tokenizer, encoder: of the pipeline.
        captions: any texts; "" is the unconditional one.

    Returns:
        states ``[batch, longest + 1, width]`` (zeros past each end) and their scores to add, float32
        ``[batch, 1, 1, longest + 1]``: 0 for a word, ln(count) for the last key, -inf between.
    """
    tokens = tokenizer(captions, padding="longest", return_tensors="pt")
    mask = tokens.attention_mask
    states = encoder(tokens.input_ids, mask).last_hidden_state * mask[..., None]
    bias = torch.zeros(mask.shape).masked_fill(mask == 0, -math.inf)
    padding = (TEXT_LENGTH - mask.sum(1, keepdim=True)).float().log()
    return torch.nn.functional.pad(states, (0, 0, 0, 1)), torch.cat([bias, padding], 1)[:, None, None]
