"""A tail by significance: what a mask skips is pooled with more weight on the keys that are asked for most.

After Core Context Aware Attention (Chen et al., ICML 2025, arXiv 2412.12465) and Combiner (Ren et al., NeurIPS 2021,
arXiv 2107.05768). For a run of keys k_t, with s the scale and g the mean of the head's visual queries,

    w_t = softmax_t(s g·k_t)        k̃ = Σ w_t k_t        ṽ = Σ w_t v_t        logit of the run: s q·k̃ + H(w)

where H(w) = -Σ w_t ln w_t. By Jensen's inequality that logit never exceeds ln Σ exp(s q·k_t), and it is equal for the
mean query; with equal weights it is the plain tail, H = ln n.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dattn.backends.pooling import members
from dattn.operators.own_tail import OwnTail, Pooled, Runs
from dattn.spec import Call


@dataclass(frozen=True)
class SignificanceTail(OwnTail):
    """A pattern whose skipped keys and values are pooled by what the mean query attends to.

    Args:
        pattern: static or dynamic, without a tail of its own.
        tail: tokens of a run: True (a block), 16, 32, 64 or 128.

    Raises:
        ValueError: no such pattern, or one that has a tail; a tail that is not one of these.
    """

    def pool(self, runs: Runs, call: Call) -> Pooled:
        """Weighted means, and the entropy of the weights."""
        first = call.grid.text_before
        proxy = call.query[:, :, first : first + call.grid.visual].mean(2)
        index, _, count = members(runs.slots, call.key_mask, call.key)
        there = (runs.slots >= 0)[None]
        if call.key_mask is not None:
            there = there & call.key_mask[:, index]
        keys, values = (t[:, :, index].flatten(2, 3) for t in (call.key, call.value))
        there, some = there.flatten(1, 2)[:, None], (count > 0).flatten(1)[:, None]
        logits = torch.einsum("bhd,bhrnd->bhrn", proxy, keys) * call.scale
        seen = logits.masked_fill(~there, -torch.inf).masked_fill(~some[..., None], 0)
        weights = seen.softmax(-1).masked_fill(~(there & some[..., None]), 0)
        entropy = seen.logsumexp(-1) - (weights * logits.masked_fill(~there, 0)).sum(-1)
        entropy = entropy.masked_fill(~some, -torch.inf)
        key, value = (torch.einsum("bhrn,bhrnd->bhrd", weights, t) for t in (keys, values))
        return Pooled(runs, key, value, entropy[:, :, None])
