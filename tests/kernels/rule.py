"""The tolerance rule: against float64, at most twice the error of plain PyTorch at the same precision."""

import torch
from torch.nn.functional import scaled_dot_product_attention

from dattn import attention
from dattn.kernels import launch

ABSOLUTE = 1e-5


def check_error(inputs, pattern, grid, key_mask=None):
    """Output, LSE and gradients through both, of the Triton backend on ``inputs`` [batch, heads, tokens, dim]."""
    generator = torch.Generator().manual_seed(1)
    shapes = inputs[0].shape, inputs[0].shape[:3]
    sent = [torch.randn(shape, generator=generator).to(inputs[0].device) for shape in shapes]
    ours_on = lambda backend: (
        lambda *t: attention(*t, pattern, grid, key_mask=key_mask, backend=backend, return_lse=True)
    )
    truth = results(inputs, sent, torch.float64, ours_on("reference"))
    ours = results(inputs, sent, None, ours_on("triton"))
    plains = results(inputs, sent, None, lambda *t: plain(*t, pattern, grid, key_mask))
    assert torch.equal(ours[1] == -torch.inf, truth[1] == -torch.inf)
    for name, a, b, c in zip(("output", "lse", "dq", "dk", "dv"), ours, plains, truth, strict=True):
        a, b, c = (t.double().masked_fill(t == -torch.inf, 0) for t in (a, b, c))
        error, allowed = ((t - c).abs().max().item() for t in (a, b))
        assert allowed <= 0.05 * c.abs().max(), "the yardstick itself is wrong"
        assert error <= 2 * allowed + ABSOLUTE, (name, error, allowed)


def results(inputs, sent, dtype, call):
    """Output, LSE and gradients of ``call``, the same gradients sent through each time; none to rows without a key."""
    inputs = [t.detach().to(dtype or t.dtype).requires_grad_() for t in inputs]
    output, lse = call(*inputs)
    grads = sent[0].to(output.dtype), sent[1].to(lse.dtype).masked_fill(lse == -torch.inf, 0)
    return [output, lse, *torch.autograd.grad((output, lse), inputs, grads)]


def plain(query, key, value, pattern, grid, key_mask):
    """PyTorch's own attention under the element-wise mask; for the LSE, and with a tail, its matrix products."""
    seen = pattern.allowed(grid).to(query.device)
    seen = seen if key_mask is None else seen & key_mask[:, None, None]
    bias = torch.zeros(seen.shape, device=query.device).masked_fill(~seen, -torch.inf).expand(*query.shape[:2], -1, -1)
    tailed = bool(getattr(pattern, "tail", False))
    if tailed:
        mean, log_count = tail(pattern, grid, key_mask, query.device)
        bias = torch.cat([bias, log_count.expand(*bias.shape[:-1], -1)], -1)
        key, value = (torch.cat([t, mean.to(t.dtype) @ t], 2) for t in (key, value))
    blind = (bias == -torch.inf).all(-1, keepdim=True)
    bias = bias.masked_fill(blind, 0)
    logits = (query @ key.mT).float() * query.shape[-1] ** -0.5 + bias
    if tailed:
        output = logits.softmax(-1).to(value.dtype) @ value
    else:
        output = scaled_dot_product_attention(query, key, value, attn_mask=bias == 0)
    return output.masked_fill(blind, 0), logits.logsumexp(-1).masked_fill(blind[..., 0], -torch.inf)


def packed(grid, dim, dtype, device, batch=2, heads=2):
    """Queries, keys and values that lie side by side in one tensor, as a fused projection gives them."""
    shape = batch, grid.tokens, 3, heads, dim
    return torch.randn(shape, generator=torch.Generator().manual_seed(dim)).to(device, dtype).transpose(1, 3).unbind(2)


def without_keys(grid, device):
    """bool [2, tokens]: all keys of the first sample but some, none of the second."""
    kept = torch.rand(2, grid.tokens, generator=torch.Generator().manual_seed(3)) > 0.3
    return (kept & torch.tensor([[True], [False]])).to(device)


def turn_on(monkeypatch, switches):
    """Turn switches of the forward kernel on in every configuration."""
    plain_configs = launch.configs

    def configs(*asked):
        row = plain_configs(*asked)
        return row._replace(forward=row.forward._replace(**dict.fromkeys(switches, True)))

    monkeypatch.setattr(launch, "configs", configs)


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
