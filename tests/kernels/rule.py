"""The tolerance rule: against float64, at most twice the error of plain PyTorch at the same precision."""

import torch
from torch.nn.functional import scaled_dot_product_attention

from dattn import attention

ABSOLUTE = 1e-5


def check_error(inputs, pattern, grid, key_mask=None):
    """Output and gradients of the Triton backend on ``inputs`` [batch, heads, tokens, dim], one precision."""
    sent = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1)).to(inputs[0])
    truth = results(
        inputs, sent, torch.float64, lambda *t: attention(*t, pattern, grid, key_mask=key_mask, backend="reference")
    )
    ours = results(inputs, sent, None, lambda *t: attention(*t, pattern, grid, key_mask=key_mask, backend="triton"))
    plains = results(inputs, sent, None, lambda *t: plain(*t, pattern, grid, key_mask))
    for name, a, b, c in zip(("output", "dq", "dk", "dv"), ours, plains, truth, strict=True):
        error, allowed = ((t.double() - c).abs().max().item() for t in (a, b))
        assert allowed <= 0.05 * c.abs().max(), "the yardstick itself is wrong"
        assert error <= 2 * allowed + ABSOLUTE, (name, error, allowed)


def results(inputs, sent, dtype, call):
    """Output and gradients of ``call``, the same gradient sent through each time."""
    inputs = [t.detach().to(dtype or t.dtype).requires_grad_() for t in inputs]
    output = call(*inputs)
    return [output, *torch.autograd.grad(output, inputs, sent.to(inputs[0].dtype))]


def plain(query, key, value, pattern, grid, key_mask):
    """PyTorch's own attention under the element-wise mask; with a tail, which it has not, its matrix products."""
    seen = pattern.allowed(grid).to(query.device)
    seen = seen if key_mask is None else seen & key_mask[:, None, None]
    if not getattr(pattern, "tail", False):
        return scaled_dot_product_attention(query, key, value, attn_mask=seen.expand(*query.shape[:2], -1, -1))
    mean, log_count = tail(pattern, grid, key_mask, query.device)
    bias = torch.zeros(seen.shape, device=query.device).masked_fill(~seen, -torch.inf)
    bias = torch.cat([bias.expand(*log_count.shape[:-1], -1), log_count], -1)
    key, value = (torch.cat([t, mean.to(t.dtype) @ t], 2) for t in (key, value))
    weights = ((query @ key.mT).float() * query.shape[-1] ** -0.5 + bias).softmax(-1)
    return weights.to(value.dtype) @ value


def tail(pattern, grid, key_mask, device):
    """[batch, 1, runs, tokens] averages over runs, and [batch, 1, tokens, runs] ln n, -inf where a run is not seen."""
    mask = pattern.mask(grid)
    visited = mask.full.rows(0, 0, 0, *mask.num_blocks) | mask.partial.rows(0, 0, 0, *mask.num_blocks)
    block = torch.empty(grid.tokens, dtype=torch.long)
    slot = torch.empty(grid.tokens, dtype=torch.long)
    lengths = mask.key.lengths[0, 0].tolist()
    for number, part in enumerate(mask.key.order[0, 0].split(lengths)):
        block[part], slot[part] = number, torch.arange(len(part))
    per_block = mask.block_size // mask.tail
    runs = torch.arange(mask.num_blocks[1] * per_block)
    member = (block * per_block + slot // mask.tail == runs[:, None]).to(device)[None]
    member = member if key_mask is None else member & key_mask[:, None]
    count = member.sum(-1)
    skipped = (~visited & mask.key.pooled)[block].repeat_interleave(per_block, 1).to(device)
    log_count = count.log()[:, None].masked_fill(~skipped, -torch.inf)
    return (member / count.clamp_min(1)[..., None])[:, None], log_count[:, None]
