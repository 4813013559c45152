"""Controls on their own: a call of attention as a model would make it, and the maps that an oracle may look at."""

from types import SimpleNamespace
from zlib import crc32

import torch

import dattn
from dattn.attention import attend_over
from dattn.control.stage import Stage
from dattn.control.words import Tokens
from dattn.processors.chain import Chain
from dattn.processors.heart import key_mask_of
from dattn.processors.layer import resized

WIDTH = 8


class WordTokenizer:
    """One token per word behind a special one, and padding up to 12."""

    is_fast = True
    model_max_length = 12

    def __call__(self, text, return_offsets_mapping=False):
        spans, at = [(0, 0)], 0
        for word in text.split():
            at = text.index(word, at)
            spans.append((at, at + len(word)))
            at += len(word)
        return {"input_ids": [0, *(crc32(w.encode()) for w in text.split())], "offset_mapping": spans}


def stage(*prompts, halves=False, step=0, steps=10):
    """A stage with prompts, as a pipeline with that tokenizer would set it."""
    pipeline = SimpleNamespace(tokenizer=WordTokenizer(), do_classifier_free_guidance=halves)
    own = Stage(lambda: pipeline)
    own.prompts, own.step, own.steps, own.text_count = prompts, step, steps, 12
    own.keep_alive = pipeline
    return own


def qkv(batch, heads, queries, keys, seed=0, dtype=torch.float64):
    """Random query, key and value."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (queries, keys, keys)
    return [torch.randn(batch, heads, n, WIDTH, generator=generator, dtype=dtype) for n in shapes]


def grid_for(kind, shape=(1, 4, 5)):
    """A grid of a kind: joint ones have 12 text tokens first."""
    return dattn.TokenGrid(*shape, text=12 if kind == "joint" else 0, text_first=True)


def maps(query, key, allowed=None, scale=WIDTH**-0.5):
    """The probabilities [batch, heads, queries, keys] that nothing but an oracle ever builds."""
    logits = query @ key.mT * scale
    return (logits if allowed is None else logits.masked_fill(~allowed, -torch.inf)).softmax(-1)


def through(controls, own, kind, query, key, value, pattern=None, grid=None, index=0, count=1, mask=None):
    """The output of attention under controls; with a pattern by its block mask, otherwise by PyTorch."""
    grid = grid or grid_for(kind)
    for control in controls:
        control._stage = own
        control.start()
    chain = Chain(controls, own, "attn", kind == "cross", index, count)
    chain.enter(grid)

    def patterned(call, **options):
        key_mask = key_mask_of(call.mask, len(call.query), call.key.shape[2])
        options |= {"key_mask": key_mask, "backend": "torch"}
        own = resized(grid, call.query.shape[2])
        return dattn.attention(call.query, call.key, call.value, pattern, own, **options)

    def base(call):
        if pattern is None:
            return torch.nn.functional.scaled_dot_product_attention(call.query, call.key, call.value, call.mask)
        return patterned(call)

    def pair(call):
        if pattern is None:
            return call.aside()
        return patterned(call, return_lse=True)

    def over(call, narrow):
        if pattern is None:
            return None
        key_mask = key_mask_of(call.mask, len(call.query), call.key.shape[2])
        own = resized(grid, call.query.shape[2])
        return attend_over(call.query, call.key, call.value, pattern, own, narrow, key_mask=key_mask)

    if not chain.on:
        return base_of(base, query, key, value)
    return chain.run(query, key, value, mask, None, base, pair, pattern is not None, over)


def base_of(base, query, key, value):
    """Attention without any control."""
    return base(SimpleNamespace(query=query, key=key, value=value, mask=None))


def tokens_of(text):
    """A prompt as the tokenizer above writes it."""
    encoded = WordTokenizer()(text)
    return Tokens(text, tuple(encoded["input_ids"]), tuple(encoded["offset_mapping"]), 0, 12)
