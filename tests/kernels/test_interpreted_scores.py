"""The kernels beside attention itself, interpreted or on a GPU: orders, means, antidiagonal scores, block weights."""

import os
from dataclasses import replace

import pytest
import torch

from dattn import Neighborhood, Radial, TokenGrid, XAttention, backends
from dattn.backends import triton_scores
from dattn.backends.problem import Problem
from dattn.backends.triton_lists import lists_of
from dattn.block_mask import MaskCache
from dattn.kernels.antidiagonal import antidiagonal_scores
from dattn.kernels.arguments import Blocks, Heads, Pool, Sets, Walk
from dattn.kernels.block_weights import weights_of_blocks
from dattn.kernels.launch import block_sparse
from dattn.kernels.pool import add_gradient, means
from dattn.kernels.reorder import in_order
from dattn.orders import Raster, Tiled
from dattn.patterns.dynamic import Given
from dattn.patterns.selected import sides_of
from dattn.scores import Antidiagonal, TrueWeights
from dattn.spec import Call
from tests.oracles import antidiagonal_oracle, attention_oracle

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not INTERPRETED and not torch.cuda.is_available(), reason="needs a CUDA device, or TRITON_INTERPRET=1"
    ),
]
TOKENS = 70
LENGTHS = [[32, 30, 8], [20, 32, 18]]
SETS = Sets(1, 2)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE)


def ragged_blocks():
    lengths = torch.tensor(LENGTHS, dtype=torch.int32, device=DEVICE)
    return Blocks((lengths.cumsum(-1) - lengths).int(), lengths, lengths.shape[-1], int(lengths[0].sum()))


def random_orders():
    orders = [torch.randperm(TOKENS, generator=torch.Generator().manual_seed(s)) for s in range(SETS.groups)]
    return torch.stack(orders).int().to(DEVICE)


def close(ours, expected):
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=3e-6 * max(1, expected.abs().max().item()))


@pytest.mark.parametrize("dim", [1, 40, 64])
def test_rows_in_the_order_of_their_group(dim):
    tensor = random(2, 4, TOKENS, dim).transpose(1, 2).contiguous().transpose(1, 2)
    order = random_orders()
    moved = in_order(tensor.float(), order, SETS)
    for head in range(4):
        assert torch.equal(moved[:, head], tensor.float()[:, head, order[head // 2]])


@pytest.mark.parametrize("run", [16, 32])
def test_means_of_runs_and_their_gradient(run):
    size, blocks = 32, ragged_blocks()
    tensor, weight = random(2, 4, TOKENS, 40), random(2, 2, TOKENS, seed=1)
    order = random_orders()
    pooled = means(tensor.float(), weight.float(), blocks, SETS, size, run)
    grad, total = random(*pooled.shape, seed=2), random(*tensor.shape, seed=3)
    spread = total.float()
    add_gradient(spread, grad.float(), weight.float(), order, blocks, SETS, size, run)
    for head in range(4):
        group, start = head // 2, 0
        for block, length in enumerate(LENGTHS[group]):
            for place in range(0, size, run):
                rows = range(start + place, start + min(place + run, length))
                index = block * (size // run) + place // run
                expected = sum((tensor[:, head, t] * weight[:, group, t, None] for t in rows), random(2, 40) * 0)
                close(pooled[:, head, index], expected)
                for t in rows:
                    total[:, head, order[group, t]] += weight[:, group, t, None] * grad[:, head, index]
            start += length
    close(spread, total)


@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
@pytest.mark.parametrize(("stride", "dim"), [(4, 16), (8, 40), (32, 128)])
def test_antidiagonal_scores(stride, dim, padded):
    query, key = random(2, 4, TOKENS, dim), random(2, 4, TOKENS, dim, seed=1)
    kept = (random(2, 2, TOKENS, seed=2) > -0.5).byte() if padded else None
    scores = antidiagonal_scores(query.float(), key.float(), ragged_blocks(), ragged_blocks(), SETS, kept, 32, stride)
    for batch in range(2):
        for head in range(4):
            seen = None if kept is None else kept[batch, head // 2].bool().cpu()
            rows, columns = query[batch, head].cpu(), key[batch, head].cpu()  # the oracle adds up on the CPU
            expected = antidiagonal_oracle(rows, columns, LENGTHS[head // 2], stride, seen)
            close(scores[batch, head], expected.to(DEVICE))


@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
@pytest.mark.parametrize("order", [Raster(), Tiled((3, 4, 5))], ids=str)  # regions of one block, and of two
@pytest.mark.parametrize("score", [Antidiagonal(8), TrueWeights("largest"), TrueWeights("total")], ids=str)
def test_scores_are_those_of_pytorch(score, order, padded, monkeypatch):
    """In 16 bits on the Triton backend; scale, padded keys and ragged blocks as everywhere."""
    grid = TokenGrid(4, 5, 7, text=(3, 4))
    query, key = (random(2, 2, grid.tokens, 24, seed=s).half() for s in range(2))
    key_mask = random(2, grid.tokens, seed=2) > -0.5 if padded else None
    sides = sides_of(Given(query, key, grid, {}, 0.7, None, key_mask, "triton"), order, 32)
    asked = []
    for name in ("antidiagonals", "true_weights"):
        plain = getattr(triton_scores, name)
        monkeypatch.setattr(triton_scores, name, lambda *given, plain=plain: asked.append(given) or plain(*given))
    ours, expected = score.of(sides), score.of(replace(sides, kernels=False))
    assert len(asked) == (isinstance(score, TrueWeights) or isinstance(order, Raster))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_xattention_chooses_the_same_blocks_on_both_backends():
    grid, pattern = TokenGrid(5, 5, 8, text=5), XAttention(8, 0.5, 32)
    tensors = [random(1, 2, grid.tokens, 16, seed=s).half() for s in range(3)]
    masks = [pattern.mask_in(Call(*tensors, grid, {}, 0.25, None, backend)) for backend in ("triton", "torch")]
    assert 0 < masks[0].density < 1
    assert torch.equal(masks[0].full.offsets, masks[1].full.offsets)
    assert torch.equal(masks[0].full.index, masks[1].full.index)


def test_antidiagonal_scores_in_several_portions(monkeypatch):
    arguments = random(1, 2, TOKENS, 16).float(), random(1, 2, TOKENS, 16, seed=1).float()
    arguments = *arguments, ragged_blocks(), ragged_blocks(), SETS, None, 32, 8
    whole = antidiagonal_scores(*arguments)
    monkeypatch.setattr("dattn.kernels.antidiagonal.CHUNK", 1)
    close(antidiagonal_scores(*arguments), whole.double())  # not bit-equal: another batch, another product


@pytest.mark.parametrize("dim", [16, 72], ids=["blocks at once", "blocks in parts"])
@pytest.mark.parametrize(
    ("pattern", "grid"),
    [
        (Radial(block_size=32, decay=0.5, sink=False), TokenGrid(9, 3, 5, text=(3, 20))),
        (Neighborhood(3, tile=(2, 3, 4)), TokenGrid(3, 5, 7, text=4)),
    ],
)
def test_weights_of_blocks_are_those_of_attention(pattern, grid, dim):
    mask = pattern.mask(grid).to(DEVICE)
    lists, size, scale = lists_of(mask), mask.block_size, 0.4
    query, key = random(1, 2, grid.tokens, dim), random(1, 2, grid.tokens, dim, seed=1)
    order = mask.key.order[0, 0]
    kept = random(1, 1, grid.tokens, seed=2) > -0.5
    allowed = pattern.allowed(grid).to(DEVICE) & kept[:, 0]
    _, lse = attention_oracle(query, key, key, allowed, scale)
    logits = (query @ key.mT * scale).masked_fill(~allowed, -torch.inf)
    weights = (logits - lse.masked_fill(lse == -torch.inf, torch.inf)[..., None]).exp()[..., order, :][..., order]
    starts = (mask.key.lengths.cumsum(-1) - mask.key.lengths)[0, 0].tolist()
    ends = mask.key.lengths.cumsum(-1)[0, 0].tolist()
    sums = lse.masked_fill(lse == -torch.inf, torch.inf)[..., order].float().contiguous()
    byte = kept[..., order].byte().contiguous()
    visited = 0
    for ours, block_list in ((lists.visits.full, mask.full), (lists.visits.partial, mask.partial)):
        if ours is None:
            continue
        inputs = (t.float()[:, :, order] for t in (query, key))
        largest, total = weights_of_blocks(*inputs, sums, lists.visits, ours, byte, size, lists.ragged, scale)
        rows = torch.arange(ours.rows, device=DEVICE).repeat_interleave(block_list.counts()[0, 0])
        for entry, (row, column) in enumerate(zip(rows.tolist(), block_list.index[0, 0].tolist(), strict=True)):
            part = weights[:, :, starts[row] : ends[row], starts[column] : ends[column]]
            close(largest[:, :, entry], part.amax((2, 3)))
            close(total[:, :, entry], part.sum((2, 3)))
            visited += 1
    assert visited == len(mask.full.index[0, 0]) + len(mask.partial.index[0, 0])


@pytest.mark.parametrize("order", [Raster(), Tiled((2, 2, 3))])
def test_weights_of_blocks_as_a_backend_gives_them(order):
    """Lists of every batch row and head group their own, an order, ragged blocks, text and masked keys."""
    grid, size = TokenGrid(3, 4, 5, text=(3, 20)), 16
    query, key = random(2, 4, grid.tokens, 24), random(2, 4, grid.tokens, 24, seed=1)
    partition = order.partition(query, key, grid, size, MaskCache())
    seen = random(2, 2, len(partition.blocks), len(partition.lengths), seed=2) > -0.5
    kept = random(2, grid.tokens, seed=3) > -1
    problem = Problem(query.float(), key.float(), query.float(), partition.mask(seen), 0.4, kept)
    _, lse = backends.run("triton", problem)
    precise = problem._replace(query=query, key=key, value=query)
    expected = backends.weights_of_blocks("reference", precise, backends.run("reference", precise)[1])
    for ours, truth in zip(backends.weights_of_blocks("triton", problem, lse), expected, strict=True):
        assert ours.shape == truth.shape == (2, 4, *problem.mask.num_blocks)
        close(ours, truth)
    assert (expected[0] == 0).any() and (expected[0] > 0).any()


def test_pooled_keys_of_several_lengths():
    """Half of the query blocks see the tail in runs of 16, the others in runs of 32: one list of pooled keys."""
    pattern, grid, scale = Radial(block_size=32, decay=0.3, sink=False, tail=16), TokenGrid(17, 3, 3), 0.4
    mask = pattern.mask(grid).to(DEVICE)
    lists = lists_of(mask)
    query, key, value = (random(1, 2, grid.tokens, 16, seed=s) for s in range(3))
    visits, columns = lists.visits, lists.visits.other.number
    levels = [
        [t[:, :, i : i + run].mean(2) for i in range(0, grid.tokens, run)] for run in (16, 32) for t in (key, value)
    ]
    levels[0] += levels[0][:1] * (2 * columns - len(levels[0]))  # runs past the end: nobody sees them
    levels[1] += levels[1][:1] * (2 * columns - len(levels[1]))
    pooled_key, pooled_value = (torch.stack(levels[i] + levels[i + 2], 2) for i in (0, 1))
    counts = [min(run, max(0, grid.tokens - i * run)) for run in (16, 32) for i in range(columns * 32 // run)]
    skipped = ~(mask.full.rows(0, 0, 0, visits.own.number, columns))
    fine = torch.arange(visits.own.number, device=DEVICE) % 2 == 0
    seen = torch.cat([(skipped & fine[:, None]).repeat_interleave(2, 1), skipped & ~fine[:, None]], 1)
    log_count = torch.tensor(counts, dtype=torch.float64, device=DEVICE).log()
    pool = Pool(
        Heads.of(pooled_key.float()),
        Heads.of(pooled_value.float()),
        log_count.float().expand(1, 1, -1).contiguous(),
        1,
        bits(seen)[None],
        -(-seen.shape[1] // 32),
        torch.arange(seen.shape[1], dtype=torch.int32, device=DEVICE),
        seen.shape[1],
    )
    inputs = (t.float() for t in (query, key, value))
    walk = Walk(visits, lists.turned, (None, None), None, pool, 32, lists.ragged, True, scale)
    output, lse = block_sparse(*inputs, walk)
    row = torch.arange(grid.tokens, device=DEVICE) // 32
    own = (query @ key.mT * scale).masked_fill(~mask.to_dense(), -torch.inf)
    far = query @ pooled_key.mT * scale + log_count
    logits = torch.cat([own, far.masked_fill(~seen[row], -torch.inf)], -1)
    close(output, logits.softmax(-1) @ torch.cat([value, pooled_value], 2))
    close(lse, logits.logsumexp(-1))


def bits(seen):
    """int32 words of bool [rows, columns], bit i % 32 of word i // 32."""
    rows = [
        [sum(1 << b for b in range(32) if c + b < len(r) and r[c + b]) for c in range(0, len(r), 32)]
        for r in seen.tolist()
    ]
    signed = [[w - (1 << 32) if w >= 1 << 31 else w for w in r] for r in rows]
    return torch.tensor(signed, dtype=torch.int32, device=DEVICE)
