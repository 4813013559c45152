"""The text side of the image models: tiny stock CLIP and T5 encoders over the words of the world."""

from __future__ import annotations

import torch
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from .text import build_tokenizer

TEXT_LENGTH = 16
"""Every caption is padded to this many tokens; a pipeline that takes ``max_sequence_length`` has to be told."""
WIDTH = 64
LOOKS = (-1, 1, -3)
"""Words that T5's heads look at in the beginning: a shape's colour, what follows it, the relation before an object."""
FIRMLY = 30.0
"""Their advantage in the logits over all other words: T5 divides by no root, so what it learns of words is as large."""


def short_tokenizer() -> PreTrainedTokenizerFast:
    """The words of the world, at most ``TEXT_LENGTH`` in a caption."""
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = TEXT_LENGTH
    return tokenizer


def build_clip(tokenizer: PreTrainedTokenizerFast) -> CLIPTextModel:
    """A fresh CLIP text encoder: 2 layers of width 64."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TEXT_LENGTH,
            bos_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_t5(tokenizer: PreTrainedTokenizerFast) -> T5EncoderModel:
    """A fresh T5 encoder: 2 layers of width 64, three of four heads set on a neighbouring word.

    From T5's own beginning, small random biases, the encoder stays a bag of words for hours of training: a red circle
    and a blue square are then the same to it as a blue circle and a red square.
    """
    encoder = T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=WIDTH,
            d_kv=16,
            d_ff=2 * WIDTH,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            is_encoder_decoder=False,
        )
    )
    _look(encoder)
    return encoder


@torch.no_grad()
def _look(encoder: T5EncoderModel) -> None:
    """Set each head of ``LOOKS`` on its word; T5 shares the biases ``[buckets, heads]`` among its layers."""
    biases = encoder.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    for head, offset in enumerate(LOOKS):
        ahead = len(biases) // 2 if offset > 0 else 0  # one half of the buckets lies behind, one ahead; near ones hold
        biases[ahead + abs(offset), head] = FIRMLY  # one distance each
