"""Our entry in Diffusers' table of attention backends.

Models on the dispatcher hand query, key and value to ``dispatch_attention_fn`` with the backend that their
processor carries. The table is a closed enum, so ``dattn_backend`` adds a pseudo-member to it, once, when the
first handle is applied. A wrapped processor then runs unchanged and the dispatcher calls us at the heart of it.
``tests/test_plugin_dispatch.py`` fails if a Diffusers release changes what is used here.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from dattn.processors.layer import Layer

NAME = "dattn"


class _Current(threading.local):
    layer: Layer | None = None


_current = _Current()


@contextmanager
def attending(layer: Layer) -> Iterator[None]:
    """Inside, whatever reaches our backend in this thread is computed by ``layer``."""
    outer, _current.layer = _current.layer, layer
    try:
        yield
    finally:
        _current.layer = outer


def dattn_backend() -> Any:
    """Our member of ``AttentionBackendName``, registered on first use."""
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    member = AttentionBackendName._value2member_map_.get(NAME)
    if member is None:
        member = _add_member(AttentionBackendName)
        _AttentionBackendRegistry.register(member)(_backend)
    return member


def _add_member(enum: Any) -> Any:
    member = str.__new__(enum, NAME)
    member._name_, member._value_ = NAME.upper(), NAME
    enum._member_map_[member._name_] = member
    enum._value2member_map_[NAME] = member
    enum._member_names_.append(member._name_)
    return member


def _backend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
    _parallel_config: Any = None,
) -> Tensor:
    """[batch, tokens, heads, head_dim] in and out, as the dispatcher has it."""
    layer = _current.layer
    if layer is None:
        raise ValueError(
            'attention backend "dattn": it serves layers that dattn.apply has set up and cannot be chosen by '
            'hand; call set_attention_backend("native") and dattn.apply(pipe, …)'
        )
    if attn_mask is not None or _parallel_config is not None:
        raise NotImplementedError(
            f"{layer.name}: an attention mask or context parallelism reached a pattern, which serves neither; "
            "call handle.remove() first"
        )
    out = layer.attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), scale)
    return out.transpose(1, 2)
