"""Attention with its LSE: as precise as PyTorch's own, and only where it is known."""

from types import SimpleNamespace

import pytest
import torch

from dattn.control import Control, HeatMaps, Isolation, Replace, Reweight, SharedKeys
from dattn.control.merging import dense_lse, merge
from dattn.control.stage import Stage
from dattn.control.taps import PipelineTap

from .stages import qkv, stage, through


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masked", [False, True])
def test_rounding_is_that_of_pytorch(dtype, masked):
    query, key, value = (4 * t for t in qkv(1, 2, 40, 96))
    mask = torch.rand(40, 96, generator=torch.Generator().manual_seed(1)) < 0.7 if masked else None
    exact, sums = dense_lse(query, key, value, 0.4, mask)
    short = [t.to(dtype) for t in (query, key, value)]
    output, lse = dense_lse(*short, 0.4, mask)
    theirs = torch.nn.functional.scaled_dot_product_attention(*short, mask, scale=0.4)
    error, allowed = ((t.double() - exact).abs().max() for t in (output, theirs))
    assert error <= 2 * allowed + 1e-6
    assert (lse - sums).abs().max() < 40 * torch.finfo(dtype).eps * sums.abs().max()


def test_large_half_precision_logits_do_not_overflow():
    query = key = torch.full((1, 1, 3, 160), 30.0, dtype=torch.float16)
    mask = torch.ones(3, 3, dtype=torch.bool)
    output, lse = dense_lse(query, key, torch.ones_like(key), 160**-0.5, mask)
    assert (output == 1).all() and lse.isfinite().all()


def test_parts_merge_to_the_whole():
    query, key, value = qkv(2, 2, 10, 14)
    parts = [dense_lse(query, key[:, :, part], value[:, :, part], 0.5, None) for part in (slice(0, 5), slice(5, 14))]
    for merged, whole in zip(merge(*parts), dense_lse(query, key, value, 0.5, None), strict=True):
        assert (merged - whole).abs().max() < 1e-12


class NeedsSums(Control):
    """Takes output and LSE of what runs inside."""

    def acts(self, place):
        return True

    def edit(self, call):
        self.pair = call.attend_lse()
        return self.pair[0]


def test_sums_are_known_where_values_alone_are_edited():
    query, key, value = qkv(2, 2, 20, 12)
    own, last = stage("a red circle", "a blue circle"), NeedsSums()
    output = through([Reweight({"circle": 2.0}), last], own, "cross", query, key, value)
    assert torch.equal(last.pair[0], output)
    assert (last.pair[1] - (query @ key.mT * 8**-0.5).logsumexp(-1)).abs().max() < 1e-12
    with pytest.raises(ValueError, match="give Replace last"):
        through([Replace(), NeedsSums()], own, "self", *qkv(2, 2, 20, 20))


@pytest.mark.parametrize("between", [[], [HeatMaps([2])], [HeatMaps([2]), Reweight({3: 2.0})]])
@pytest.mark.parametrize(
    ("first", "name"),
    [
        (Replace(), "Replace"),
        (Isolation([(0, 0, 0.5, 1), (0.5, 0, 1, 1)]), "Isolation"),
        (Reweight({2: 3.0}, renormalize=True), "Reweight"),
    ],
)
def test_sums_that_change_are_refused_at_any_depth(first, name, between):
    query, key, value = qkv(2, 2, 32, 32)
    own = stage("a red circle", "a blue circle")
    for last in (NeedsSums(), SharedKeys("batch_item", 2.0)):
        with pytest.raises(ValueError, match=f"{name} changes what keys weigh.*give {name} last"):
            through([first, *between, last], own, "joint", query, key, value)


def test_every_call_is_heard_without_a_check_of_inputs():
    pipeline = SimpleNamespace(encode_prompt=lambda prompt, negative=False: prompt)
    own = Stage(lambda: pipeline)
    tap = PipelineTap(pipeline, own, lambda latents: latents)
    for prompt in ("a red circle", "a blue square"):
        pipeline.encode_prompt(prompt)
        pipeline.encode_prompt("blurred", negative=True)
        assert own.prompts == (prompt,)
        tap.rearm()  # denoising begins
    tap.remove()
    assert list(vars(pipeline)) == ["encode_prompt"] and pipeline.encode_prompt("x") == "x"
