"""Attention in which parts of a picture follow texts of their own, for samples that follow the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dattn.control.base import Call
from dattn.control.hiding import cut, only
from dattn.control.merging import merge
from dattn.control.region_plan import Part, Plan

Pair = tuple[Tensor, Tensor]


def cross(call: Call, plan: Plan, texts: Sequence[Tensor]) -> Tensor:
    """Cross-attention; controls inside see the base prompt alone.

    Args:
        texts: the positions among the keys of the base prompt and of every region's, int64.
    """
    base, *parts = plan.parts
    output = _blank(call)
    if len(base.rows):
        own = cut(call, torch.arange(call.query.shape[2], device=call.query.device), texts[0])
        own = replace(own, place=replace(call.place, text=slice(0, len(texts[0]))))
        output[:, :, base.rows] = base.share * own.attend()[:, :, base.rows]
    for part in parts:
        if len(part.rows):
            own = cut(call, part.rows, texts[part.text])
            asked = F.scaled_dot_product_attention(own.query, own.key, own.value, own.mask, scale=own.scale)
            output[:, :, part.rows] += part.share * asked
    return output


def joint(call: Call, plan: Plan, texts: Sequence[Tensor]) -> Tensor:
    """Joint attention; texts that no part is for give 0."""
    visual = call.place.visual
    picture = torch.arange(visual.start, visual.stop, device=call.key.device)
    seen, sums = within_picture(cut(call, picture, picture), plan)
    output = _blank(call)
    for part in plan.parts:
        text = texts[part.text]
        if len(part.rows):
            asked = cut(call, picture[part.rows], text).aside()
            both, _ = merge((seen[:, :, part.rows], sums[:, :, part.rows]), asked)
            output[:, :, picture[part.rows]] += part.share * both
        output[:, :, text] = _told(call, text, picture, part)
    return output


def within_picture(call: Call, plan: Plan) -> Pair:
    """What a picture's tokens see of the picture: output and LSE of a call on those alone."""
    if plan.kinds is None:
        return call.attend_lse()
    return call.attend_over(plan.kinds.narrowed) or _in_groups(call, plan.kinds.groups)


def _in_groups(call: Call, groups: Sequence[Pair]) -> Pair:
    """The same, group of queries by group: they, and the keys that they see."""
    outputs, sums = zip(*(_of_group(call, *group) for group in groups), strict=True)
    order = torch.cat([queries for queries, _ in groups]).argsort()
    return torch.cat(outputs, 2)[:, :, order], torch.cat(sums, 2)[:, :, order]


def _of_group(call: Call, queries: Tensor, keys: Tensor) -> Pair:
    """Some queries on some keys, by the pattern where there is one, which knows whole pictures alone."""
    if not call.runs.sparse:
        return cut(call, queries, keys).aside()
    output, lse = only(call, keys).attend_lse()
    return output[:, :, queries], lse[:, :, queries]


def _told(call: Call, text: Tensor, picture: Tensor, part: Part) -> Tensor:
    """What a text's own queries see: itself, and of the picture what is near."""
    own = cut(call, text, torch.cat([text, picture[part.near]]))
    if part.bias is None:
        return own.aside()[0]
    mask = torch.cat([part.bias.new_zeros(len(text)), part.bias])[None]
    if own.mask is not None:
        mask = mask.where(own.mask, -torch.inf) if own.mask.dtype == torch.bool else mask + own.mask
    return replace(own, mask=mask).aside()[0]


def _blank(call: Call) -> Tensor:
    return call.value.new_zeros(*call.query.shape[:3], call.value.shape[-1])
