"""The text side of the image models: tiny stock CLIP and T5 encoders over the words of the world."""

from __future__ import annotations

from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from .text import build_tokenizer

TEXT_LENGTH = 16
"""Every caption is padded to this many tokens; a pipeline that takes ``max_sequence_length`` has to be told."""
WIDTH = 64


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
    """A fresh T5 encoder: 2 layers of width 64."""
    return T5EncoderModel(
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
