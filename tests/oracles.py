"""Naive definitions in float64 that the real code is tested against. Nothing here shares code with dattn."""

import torch


def attention_oracle(query, key, value, allowed, scale, key_mask=None):
    """Softmax over the allowed keys; [batch, heads, tokens, dim] and [.., tokens, tokens] -> output, LSE."""
    query, key, value = (t.double() for t in (query, key, value))
    allowed = allowed.expand(query.shape[0], query.shape[1], -1, -1)
    if key_mask is not None:
        allowed = allowed & key_mask[:, None, None]
    logits = (query @ key.transpose(-1, -2) * scale).masked_fill(~allowed, -torch.inf)
    blind = ~allowed.any(-1)
    logits = logits.masked_fill(blind[..., None], 0)
    output = logits.softmax(-1).masked_fill(blind[..., None], 0) @ value
    return output, logits.logsumexp(-1).masked_fill(blind, -torch.inf)


def tail_oracle(query, key, value, mask, grid, run, scale, key_mask=None):
    """Attention with pooled tail, one query at a time, blocks and runs cut by hand from the mask's layout.

    A block is skipped whole for a query if the query's block lists it neither full nor partial.
    """
    query, key, value = (t.double() for t in (query, key, value))
    order, lengths = mask.query.order[0, 0].tolist(), mask.query.lengths[0, 0].tolist()
    blocks, start = [], 0
    for length in lengths:
        blocks.append(order[start : start + length])
        start += length
    seen, dense = {}, mask.to_dense()
    for name in ("full", "partial"):
        rows = getattr(mask, name)
        offsets, index = rows.offsets[0, 0].tolist(), rows.index[0, 0].tolist()
        for q in range(len(blocks)):
            seen.setdefault(q, set()).update(index[offsets[q] : offsets[q + 1]])
    visual = range(grid.text_before, grid.text_before + grid.visual)
    output, lse = torch.zeros_like(query), query.new_zeros(query.shape[:3])
    for b in range(query.shape[0]):
        there = lambda t, b=b: key_mask is None or bool(key_mask[b, t])
        for q, members in enumerate(blocks):
            pools = []
            for k, tokens in enumerate(blocks):
                if k in seen[q] or not tokens or tokens[0] not in visual:
                    continue
                for first in range(0, len(tokens), run):
                    pools.append([t for t in tokens[first : first + run] if there(t)])
            pools = [p for p in pools if p]
            mean = torch.zeros(len(pools), grid.tokens, dtype=torch.float64)
            for row, pool in zip(mean, pools, strict=True):
                row[pool] = 1 / len(pool)
            count = torch.tensor([len(p) for p in pools], dtype=torch.float64)
            for token in members:
                keys = [t for t in dense[token].nonzero()[:, 0].tolist() if there(t)]
                columns, values = (torch.cat([x[b][:, keys], mean @ x[b]], 1) for x in (key, value))
                bias = torch.cat([torch.zeros(len(keys), dtype=torch.float64), count.log()])
                logits = torch.einsum("hd,hkd->hk", query[b, :, token], columns) * scale + bias
                output[b, :, token] = torch.einsum("hk,hkd->hd", logits.softmax(-1), values)
                lse[b, :, token] = logits.logsumexp(-1)
    return output, lse


def natten_axis(length, window, stride, dilation, causal):
    """bool [length, length], query by query, from NATTEN's published definition."""
    seen = torch.zeros(length, length, dtype=torch.bool)
    for i in range(length):
        members = list(range(i % dilation, length, dilation))
        size, at = len(members), i // dilation
        if causal:
            leader = min(at // stride * stride + stride - 1, size - 1)
            start, end = max(leader - window + 1, 0), min(at + 1, size)
        else:
            leader = min(at // stride * stride + stride // 2, size - 1)
            start = min(max(leader - window // 2, 0), size - window)
            end = start + window
        seen[i, members[start:end]] = True
    return seen


def radial_blocks(frames, tokens, decay, sink, size):
    """bool [blocks, blocks]: the published rule, token by token, in plain Python (tiny grids only)."""
    total = frames * tokens
    blocks = -(-total // size)
    kept = torch.zeros(blocks, blocks, dtype=torch.bool)
    for i in range(frames):
        for j in range(frames):
            distance = abs(i - j)
            whole = distance <= 1 or (sink and j == 0)
            width = tokens
            if not whole:
                window = 2.0 ** (len(bin(tokens)) - len(bin(distance)))
                if window < size and distance % int(size / window):
                    continue
                width = int(max(window * decay, size))
                whole = width >= tokens
            rows = [[] for _ in range(blocks)]
            cols = [[] for _ in range(blocks)]
            for t in range(tokens):
                rows[(i * tokens + t) // size].append(t)
                cols[(j * tokens + t) // size].append(t)
            for a in range(blocks):
                for b in range(blocks):
                    if not rows[a] or not cols[b]:
                        continue
                    counts = [sum(abs(k - c) <= width for k in rows[a]) for c in cols[b]]
                    shown = [c for c in counts if c]
                    counted = [c for c in shown if c / size > 1 / 3]
                    if whole or len(counted) > 0.6 * len(shown):
                        kept[a, b] = True
    return kept


def antidiagonal_oracle(query, key, lengths, stride, kept=None):
    """Block scores [blocks, blocks] of [tokens, dim] in kernel order, one pair of groups at a time.

    A group is ``stride`` consecutive tokens of a block; ``kept`` is bool [tokens], keys that count.
    """
    groups, start = [], 0
    for block, length in enumerate(lengths):
        for first in range(0, length, stride):
            groups.append((block, [start + first + r if first + r < length else None for r in range(stride)]))
        start += length
    there = lambda t: t is not None and (kept is None or bool(kept[t]))
    seen = [(block, group) for block, group in groups if any(map(there, group))]
    scores = torch.zeros(len(lengths), len(lengths), dtype=torch.float64)
    for row_block, row in groups:
        logits = torch.zeros(len(seen), dtype=torch.float64)
        for column, (_, group) in enumerate(seen):
            for r in range(stride):
                if row[stride - 1 - r] is not None and there(group[r]):
                    logits[column] += query[row[stride - 1 - r]] @ key[group[r]]
        shares = (logits / (query.shape[1] ** 0.5 * stride)).softmax(0)
        for share, (column_block, _) in zip(shares, seen, strict=True):
            scores[row_block, column_block] += share
    return scores


def pairwise(shape, rule):
    """bool [tokens, tokens]: ``rule(q, k)`` of every pair of tokens, each (frame, row, column)."""
    tokens = [(t, y, x) for t in range(shape[0]) for y in range(shape[1]) for x in range(shape[2])]
    return torch.tensor([[bool(rule(q, k)) for k in tokens] for q in tokens])


def grouped(shape, size, cross, reach):
    """GRAT, from its published definition."""

    def rule(q, k):
        apart = [abs(a // s - b // s) for a, b, s in zip(q, k, size, strict=True)]
        in_line = any(d == 0 for d, n in zip(apart, shape, strict=True) if n > 1) or max(shape) == 1
        return in_line if cross else max(apart) <= reach

    return pairwise(shape, rule)


def sliding_tile(shape, tile, window):
    """STA, from its published definition."""

    def rule(q, k):
        for a, b, length, size, width in zip(q, k, shape, tile, window, strict=True):
            count = -(-length // size)
            if width is not None and width < count:
                centre = min(max(a // size, width // 2), count - 1 - width // 2)
                if abs(centre - b // size) > width // 2:
                    return False
        return True

    return pairwise(shape, rule)


def multi_axis(shape, size, grid):
    """MaxViT: the same window, or the same comb, on every axis."""

    def rule(q, k):
        strides = [-(-n // s) if grid else s for n, s in zip(shape, size, strict=True)]
        place = (lambda a, d: a % d) if grid else (lambda a, d: a // d)
        return all(place(a, d) == place(b, d) for a, b, d in zip(q, k, strides, strict=True))

    return pairwise(shape, rule)


def windows(shape, splits, by):
    """MSW-MSA by rolling the coordinates and cutting what comes out; by so many quarter windows, or by "half" one."""

    def ring(length, count):
        size = -(-length // count)
        shift = (size // 2 if by == "half" else by * (size // 4)) if count > 1 else 0
        rolled = torch.arange(length).roll(-shift).tolist()
        return {c: place // size for place, c in enumerate(rolled)}

    rings = [ring(n, s) for n, s in zip(shape, splits, strict=True)]
    return pairwise(shape, lambda q, k: all(r[a] == r[b] for r, a, b in zip(rings, q, k, strict=True)))


def cross_shaped(shape, stripe):
    """CSWin: rows for the first half of the heads, columns for the second."""
    return torch.stack([pairwise(shape, lambda q, k, d=dim: q[d] // stripe == k[d] // stripe) for dim in (1, 2)])


def strided_heads(shape, stride, local, size):
    """S2-Attention on blocks of consecutive tokens: a shard per head group, and the neighbours."""
    place = lambda t: ((t[0] * shape[1] + t[1]) * shape[2] + t[2]) // size
    rule = lambda q, k, g: place(k) % stride == g or abs(place(q) - place(k)) <= local
    return torch.stack([pairwise(shape, lambda q, k, g=group: rule(q, k, g)) for group in range(stride)])


def planes(shape, window):
    """ConDaFormer: inside the window, and equal on at least one axis."""

    def rule(q, k):
        for a, b, length, width in zip(q, k, shape, window, strict=True):
            width = length if width is None else width
            start = min(max(a - width // 2, 0), length - width)
            if not start <= b < start + width:
                return False
        long = [d for d in range(3) if shape[d] > 1]
        return not long or any(q[d] == k[d] for d in long)

    return pairwise(shape, rule)


def merge_oracle(features, shape, text, ratio):
    """Groups of token numbers that ToMe merges, in the order of the merged tokens; [heads, tokens, dim], one sample."""
    frames, height, width = shape
    visual = frames * height * width
    merged = min(int(visual * ratio), visual - frames)
    at = lambda i: (i // width % height, i % width)
    side = 2
    while True:
        middle = [min(side, n) // 2 for n in (height, width)]
        targets = [i for i in range(visual) if all(c % side == m for c, m in zip(at(i), middle, strict=True))]
        if visual - len(targets) >= merged:
            break
        side *= 2
    sources = [i for i in range(visual) if i not in targets]
    mean = features.float().mean(0)[text[0] :]
    unit = mean / mean.norm(dim=-1, keepdim=True)
    scores = {s: [float(unit[s] @ unit[t]) for t in targets] for s in sources}
    ranked = sorted(sources, key=lambda s: -max(scores[s]))
    groups = [[s] for s in ranked[merged:]] + [[t] for t in targets]
    for s in ranked[:merged]:
        best = scores[s].index(max(scores[s]))
        groups[len(ranked) - merged + best].append(s)
    shifted = [[text[0] + i for i in group] for group in groups]
    return [[i] for i in range(text[0])] + shifted + [[i] for i in range(text[0] + visual, text[0] + visual + text[1])]


def group_means(tokens, groups):
    """[heads, groups, dim] of [heads, tokens, dim]."""
    return torch.stack([tokens[:, group].mean(1) for group in groups], 1)


def agent_oracle(query, key, value, groups, text, scale, power, shortcut):
    """Agent attention of one sample [heads, tokens, dim] in two softmaxes; text rows attend to everything."""
    agents = group_means(query, groups)
    seen = (agents @ key.mT * scale).softmax(-1) @ value
    out = (query @ agents.mT * scale**power).softmax(-1) @ seen + shortcut * value
    exact = (query @ key.mT * scale).softmax(-1) @ value
    end = query.shape[1] - text[1]
    return torch.cat([exact[:, : text[0]], out[:, text[0] : end], exact[:, end:]], 1)


def merged_oracle(query, key, value, groups, scale):
    """Attention among means of groups, handed back to their members; one sample."""
    q, k, v = (group_means(t, groups) for t in (query, key, value))
    few = (q @ k.mT * scale).softmax(-1) @ v
    out = torch.zeros_like(value)
    for number, group in enumerate(groups):
        out[:, group] = few[:, number, None]
    return out


def in_line_oracle(query, key, value, scale):
    """Injective linear attention by its matrix of weights."""
    products = query @ key.mT * scale
    weights = (products - products.mean(-1, keepdim=True) + 1) / key.shape[-2]
    return weights @ value


def own_tail_oracle(query, key, value, mask, allowed, run, scale, key_mask=None, visual=None):
    """A tail of one group of heads, one query at a time, over what its block skips, in runs.

    Plain means with one slope for all runs (PISA); or, with ``visual``, a slice of the tokens, means weighted by what
    their mean query attends to, which count with the entropy of the weights. [batch, heads, tokens, dim]; ``mask``
    says what is skipped, ``allowed`` who sees whom among the rest.
    """
    tokens, slots = query.shape[2], mask.key.slots(0, 0, mask.block_size)
    visited = mask.full.rows(0, 0, 0, *mask.num_blocks) | mask.partial.rows(0, 0, 0, *mask.num_blocks)
    output, lse = torch.zeros_like(query), query.new_zeros(query.shape[:3])
    blocks = mask.query_blocks(0).tolist()
    for b in range(query.shape[0]):
        there = lambda t, b=b: t >= 0 and (key_mask is None or bool(key_mask[b, t]))
        runs = {}
        for number, members in enumerate(slots.tolist()):
            if mask.key.pooled[number]:
                pieces = [[t for t in members[i : i + run] if there(t)] for i in range(0, len(members), run)]
                runs[number] = [piece for piece in pieces if piece]
        k, v = key[b], value[b]
        every = [p for pieces in runs.values() for p in pieces]
        if visual is None:
            weights = {tuple(p): torch.full((len(k), len(p)), 1 / len(p), dtype=k.dtype) for p in every}
        else:
            proxy = query[b, :, visual].mean(1)
            weights = {tuple(p): (torch.einsum("hd,htd->ht", proxy, k[:, p]) * scale).softmax(-1) for p in every}
        mean = lambda x, p, w=weights: torch.einsum("ht,htd->hd", w[tuple(p)], x[:, p])
        slopes = [
            torch.einsum("htd,hte->hde", k[:, p] - mean(k, p)[:, None], v[:, p] - mean(v, p)[:, None]) / len(p)
            for p in every
        ]
        slope = sum(slopes) / max(len(slopes), 1) if visual is None else 0
        for token in range(tokens):
            keys = [t for t in range(tokens) if allowed[token, t] and there(t)]
            skipped = [p for n, pieces in runs.items() if not visited[blocks[token], n] for p in pieces]
            q = query[b, :, token]
            logits = [torch.einsum("hd,hkd->hk", q, k[:, keys]) * scale]
            values = [v[:, keys]]
            for p in skipped:
                w = weights[tuple(p)]
                logits.append(((q * mean(k, p)).sum(-1) * scale - (w * w.log()).sum(-1))[:, None])
                moved = torch.einsum("hd,hde->he", q * scale, slope) if visual is None else 0
                values.append((mean(v, p) + moved)[:, None])
            logits, values = torch.cat(logits, 1), torch.cat(values, 1)
            output[b, :, token] = torch.einsum("hk,hkd->hd", logits.softmax(-1), values)
            lse[b, :, token] = logits.logsumexp(-1)
    return output, lse
