"""Output and LSE by PyTorch's kernel for GPUs equal those from logits; without a GPU, what is made of its answer."""

from unittest import mock

import pytest
import torch

from dattn.control import fused as module
from dattn.control.merging import dense_lse

from .stages import qkv

SCALE = 0.4
SHAPES = {"keys": (2, 1, 1, 21), "pairs": (40, 21), "heads": (1, 3, 40, 21), "queries": (2, 1, 40, 1)}


def mask_of(shape, kind):
    """Some pairs that are not seen, a query that sees nothing; added to the logits, what is seen counts unequally."""
    generator = torch.Generator().manual_seed(1)
    seen = torch.rand(shape, generator=generator) < 0.7
    if seen.shape[-2] > 1:
        seen[..., 5, :] = False
    if kind == "bool":
        return seen
    return torch.randn(shape, generator=generator, dtype=torch.float64).masked_fill(~seen, -torch.inf)


def expected(query, key, value, mask):
    """From logits in double precision."""
    query, key, value = (t.double().cpu() for t in (query, key, value))
    logits = query @ key.mT * SCALE
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
    return logits.softmax(-1).nan_to_num() @ value, logits.logsumexp(-1)


def kernel(query, key, value, bias, compute_log_sumexp, dropout_p=0.0, is_causal=False, *, scale=None):
    """As the one for GPUs answers: sums of more rows than there are, and nothing that counts where nothing is seen."""
    assert compute_log_sumexp
    if bias is not None:
        assert bias.shape == (*query.shape[:3], key.shape[2]) and bias.dtype == query.dtype
        assert bias.stride(-1) == 1 and all(stride % 8 == 0 for stride in bias.stride()[:-1])
    logits = query @ key.mT * scale + (0 if bias is None else bias)
    lse = torch.nn.functional.pad(logits.logsumexp(-1), (0, -query.shape[2] % 32), value=torch.inf)
    return logits.softmax(-1) @ value, lse.nan_to_num(neginf=torch.nan), None, None


@pytest.mark.parametrize("kind", ["bool", "added"])
@pytest.mark.parametrize("shape", [None, *SHAPES])
def test_what_is_made_of_the_kernels_answer(shape, kind):
    query, key, value = qkv(2, 3, 40, 21)
    mask = None if shape is None else mask_of(SHAPES[shape], kind)
    with (
        mock.patch.object(torch.ops.aten, "_scaled_dot_product_efficient_attention", kernel),
        mock.patch.object(module, "can_use_efficient_attention", lambda params: True),
    ):
        found = module.efficient(query, key, value, SCALE, mask)
    for got, wanted in zip(found, expected(query, key, value, mask), strict=True):
        assert got.shape == wanted.shape
        torch.testing.assert_close(got, wanted, atol=1e-12, rtol=1e-12)


def test_where_the_kernel_does_not_serve_rows_go_one_by_one():
    query, key, value = qkv(2, 3, 40, 21)
    assert module.efficient(query, key, value, SCALE, None) is None  # not on a CPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("kind", ["bool", "added"])
@pytest.mark.parametrize("shape", [None, *SHAPES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_on_a_gpu(dtype, shape, kind):
    query, key, value = (t.to("cuda", dtype) for t in qkv(2, 3, 40, 21))
    mask = None if shape is None else mask_of(SHAPES[shape], kind)
    on_gpu = None if mask is None else mask.to("cuda") if kind == "bool" else mask.to("cuda", dtype)
    assert module.fused(query, key, value, SCALE, on_gpu) is not None
    output, lse = dense_lse(query, key, value, SCALE, on_gpu)
    wanted, sums = expected(query, key, value, None if mask is None else on_gpu.cpu())
    assert lse.dtype == torch.float32 and output.dtype == dtype
    bound = max(8 * torch.finfo(dtype).eps, 1e-5)
    torch.testing.assert_close(output.double().cpu(), wanted, atol=bound, rtol=bound)
    torch.testing.assert_close(lse.double().cpu(), sums, atol=4 * bound, rtol=bound)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_a_gpu_holds_no_logits():
    query = key = value = torch.randn(1, 4, 8192, 64, device="cuda", dtype=torch.float16)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    dense_lse(query, key, value, 0.125, torch.ones(1, 1, 1, 8192, dtype=torch.bool, device="cuda"))
    assert torch.cuda.max_memory_allocated() - before < 8 * query.nbytes


def test_gradients_take_the_long_way():
    query, key, value = qkv(1, 2, 10, 8)
    query.requires_grad_()
    assert module.fused(query, key, value, SCALE, None) is None
    output, lse = dense_lse(query, key, value, SCALE, None)
    (gradient,) = torch.autograd.grad(output.sum() + lse.sum(), query)
    assert gradient.abs().max() > 0
