"""Naive definitions of what dynamic patterns choose, token by token; nothing here shares code with dattn."""

import math

import torch


def cut(count, size):
    """Lists of consecutive numbers, ``size`` each."""
    return [list(range(a, min(a + size, count))) for a in range(0, count, size)]


def boxes(shape, tile):
    """The visual tokens of every box of a tiling, box by box, each box in raster order."""
    found = {}
    frames, height, width = shape
    for number in range(frames * height * width):
        at = number // (height * width), number // width % height, number % width
        found.setdefault(tuple(x // t for x, t in zip(at, tile, strict=True)), []).append(number)
    return [found[key] for key in sorted(found)]


def split(regions, size):
    """Regions cut into blocks, and the region of every block."""
    blocks = [(i, region[a : a + size]) for i, region in enumerate(regions) for a in range(0, len(region), size)]
    return [block for _, block in blocks], [i for i, _ in blocks]


def softmax(row):
    top = max(row)
    weights = [math.exp(x - top) for x in row]
    return [w / sum(weights) for w in weights]


def mean(tokens, rows):
    return sum(tokens[i] for i in rows) / len(rows)


def pooled(query, key, blocks, regions):
    """[blocks][regions] of one head: query, key [visual, dim]."""
    scale = query.shape[-1] ** -0.5
    return [softmax([float(mean(query, b) @ mean(key, r)) * scale + math.log(len(r)) for r in regions]) for b in blocks]


def true_weights(query, key, blocks, regions, by):
    """The largest weight of every pair, or the sum of all, row by row over its sum."""
    weights = (query @ key.T * query.shape[-1] ** -0.5).softmax(-1)
    of = {"largest": max, "total": sum}[by]
    rows = [[of(float(weights[i, j]) for i in b for j in r) for r in regions] for b in blocks]
    return [[w / sum(row) for w in row] for row in rows]


def run_lists(rows, run):
    """Lists of ``run`` neighbours; the last one may be shorter."""
    return [rows[a : a + run] for a in range(0, len(rows), run)]


def pyramid_levels(scores, bands, runs, floor, by, trusted):
    """[regions]: the run length that each region of a row is seen by, None for not at all.

    ``trusted``: [regions], the longest run whose means may be used.
    """
    ranking = sorted(range(len(scores)), key=lambda j: (-scores[j], j))
    found, before = [None] * len(scores), 0.0
    for rank, j in enumerate(ranking):
        share = before / sum(scores) if by == "weight" else rank / len(scores)
        ends = [run for run, end in zip(runs, bands, strict=True) if share < end]
        found[j] = min(ends[0], trusted[j]) if ends else None
        if rank < max(1, math.ceil(floor * len(scores))):
            found[j] = 1
        before += scores[j]
    return found


def trusted_run(key, rows, runs, guards):
    """The longest run whose halves, and those of all shorter ones, are alike enough in a region."""
    longest = 1
    for run, guard in zip(runs[1:], guards, strict=True):
        similar = []
        for part in run_lists(rows, run):
            if len(part) == run:
                first, second = mean(key, part[: run // 2]), mean(key, part[run // 2 :])
                similar.append(float(first @ second / (first.norm() * second.norm())))
        if similar and sum(similar) / len(similar) < guard:
            break
        longest = run
    return longest


def anchor(query, key, blocks, first, step, keep, theta, shown):
    """[super-blocks] of (blocks of queries, blocks of keys in the region, keys kept outside of it), all as sets.

    Args:
        query, key: [tokens, dim] of one head, text included; ``first`` is the first visual token.
        blocks: visual tokens of every block; numbers count from 0.
        keep: names; ``shown``: [tokens], keys that count.
    """
    scale, visual = query.shape[-1] ** -0.5, sum(map(len, blocks))
    found = []
    for start in range(0, len(blocks), step):
        members = set(range(start, min(start + step, len(blocks))))
        region = set(members)
        if "sink" in keep:
            region.add(0)
        if "neighbours" in keep:
            region |= {j for i in members for j in (i - 1, i + 1) if 0 <= j < len(blocks)}
        near = {first + t for i in region for t in blocks[i]}
        seen = near | {t for t in range(len(key)) if not first <= t < first + visual}
        stripes = set()
        for i in members:
            rows = [first + t for t in blocks[i]]
            tops = [max(float(query[r] @ key[j]) * scale for j in seen if shown[j]) for r in rows]
            centre = mean(query, rows)
            for j in range(first, first + visual):
                if j not in near and shown[j] and sum(tops) / len(tops) - float(centre @ key[j]) * scale <= theta:
                    stripes.add(j)
        found.append((members, region, stripes))
    return found


def seen_through_means(query, key, value, columns):
    """One query's attention to means of lists of keys, each with the logarithm of its length; and its LSE."""
    keys, values = (torch.stack([mean(t, rows) for rows in columns]) for t in (key, value))
    counts = torch.tensor([len(rows) for rows in columns], dtype=key.dtype)
    logits = keys @ query * query.shape[-1] ** -0.5 + counts.log()
    return logits.softmax(0) @ values, logits.logsumexp(0)


def similarity(tokens, rows):
    """Mean of all pairs' cosines, each token with itself too."""
    total = 0.0
    for i in rows:
        for j in rows:
            total += float(tokens[i] @ tokens[j] / (tokens[i].norm() * tokens[j].norm()))
    return total / len(rows) ** 2


def mean_similarity(query, key, blocks, regions, guard):
    """Scores with 0 for regions that do not compete, and what must be kept."""
    centred = key - key.mean(0)
    untold = [similarity(centred, r) < guard for r in regions]
    scale = query.shape[-1] ** -0.5
    scores, must = [], []
    for b in blocks:
        logits = [float(mean(query, b) @ mean(key, r)) * scale + math.log(len(r)) for r in regions]
        told = [x for x, out in zip(logits, untold, strict=True) if not out]
        weights = iter(softmax(told)) if told else iter(())
        scores.append([0.0 if out else next(weights) for out in untold])
        must.append([out or similarity(query, b) < guard for out in untold])
    return scores, must


def antidiagonal(query, key, blocks, regions, stride):
    """XAttention's scores, pair by pair along the antidiagonals."""
    scale = query.shape[-1] ** -0.5 / stride
    scores = []
    for b in blocks:
        groups = cut(len(b), stride)
        row = [0.0] * len(regions)
        for group in groups:
            logits, of = [], []
            for j, r in enumerate(regions):
                for other in cut(len(r), stride):
                    pairs = ((stride - 1 - i, i) for i in range(stride))
                    met = [(group[a], other[c]) for a, c in pairs if a < len(group) and c < len(other)]
                    logits.append(sum(float(query[b[a]] @ key[r[c]]) for a, c in met) * scale)
                    of.append(j)
            for weight, j in zip(softmax(logits), of, strict=True):
                row[j] += weight / len(groups)
        scores.append(row)
    return scores


def gated(query, key, blocks, regions, query_matrix, key_matrix):
    """SeerAttention's gate in one head."""
    rows = []
    for b in blocks:
        logits = []
        for r in regions:
            pooled = torch.cat([key[r].max(0).values, key[r].min(0).values, mean(key, r)])
            logits.append(
                float((mean(query, b) @ query_matrix) @ (pooled @ key_matrix)) * query_matrix.shape[-1] ** -0.5
            )
        rows.append(softmax(logits))
    return rows


def rectified(query, key, value, blocks, regions, kept, text, visible, scale):
    """Rectified-SpaAttn of one head, query by query; ``kept`` is bool [blocks][regions], all over [tokens, dim].

    ``text`` are the text tokens, ``visible`` says which tokens may be seen at all. Returns output and LSE.
    """
    output, lse = torch.zeros_like(value), query.new_zeros(len(query))
    deviation = lambda tokens, rows: (tokens[rows] - mean(tokens, rows)).abs().mean(0)
    seen_text = [t for t in text if visible[t]]

    def attend(token, keys):
        logits = query[token] @ key[keys].T * scale
        return logits.softmax(-1) @ value[keys], float(logits.logsumexp(-1))

    for token in text:
        everything = [t for t in range(len(query)) if visible[t]]
        output[token], lse[token] = attend(token, everything)
    for i, b in enumerate(blocks):
        q = mean(query, b)
        logits = [float(q @ mean(key, r)) * scale + math.log(len(r)) for r in regions]
        weights = softmax(logits + [float(q @ key[t]) * scale for t in seen_text])
        room, filling = 1.0, 0.0
        for j, r in enumerate(regions):
            k = mean(key, r)
            gain = abs(float(q @ k))
            lost = abs(float(deviation(query, b) @ k)), abs(float(q @ deviation(key, r)))
            if not kept[i][j] and gain > max(lost):
                room -= weights[j]
                filling = filling + weights[j] * mean(value, r)
        keys = seen_text + [t for j, r in enumerate(regions) if kept[i][j] for t in r]
        for token in b:
            out, total = attend(token, keys)
            output[token], lse[token] = room * out + filling, total - math.log(room)
    return output, lse


def largest_weights(query, key, blocks, regions):
    """PSA's scores where all tokens are sampled."""
    logits = query @ key.T * query.shape[-1] ** -0.5
    weights = (logits - logits.amax(1, keepdim=True)).exp()
    scores = [[float(weights[b][:, r].max()) for r in regions] for b in blocks]
    return [[x / sum(row) for x in row] for row in scores]


def fewest(row, share):
    """Indices of the fewest best entries that hold ``share`` of the sum; ties to the lower index."""
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))
    kept, held, total = [], 0.0, sum(row)
    for i in order:
        if kept and (held >= share * total or row[i] == 0):
            break
        kept.append(i)
        held += row[i]
    return set(kept)


def votes(query, key, blocks, regions, share, together):
    """VMoBA's votes: what every query picks, alone or competing with all of its head."""
    gates = torch.stack([torch.stack([q @ mean(key, r) for r in regions]) for q in query])
    low, high = (gates.min(), gates.max()) if together else (gates.amin(1, True), gates.amax(1, True))
    gates = (gates - low) / (high - low)
    if together:
        picked = fewest(gates.flatten().tolist(), share)
        chosen = [[i * len(regions) + j in picked for j in range(len(regions))] for i in range(len(query))]
    else:
        chosen = [[j in fewest(row, share) for j in range(len(regions))] for row in gates.tolist()]
    return [[sum(chosen[t][j] for t in b) / len(b) for j in range(len(regions))] for b in blocks]


def k_means(tokens, centroids, steps):
    """Lloyd's algorithm; an empty cluster's centroid stays. Returns labels and means."""
    near = lambda: [min(range(len(centroids)), key=lambda c: float((t - centroids[c]).square().sum())) for t in tokens]
    for _ in range(steps):
        labels = near()
        members = [[i for i, label in enumerate(labels) if label == c] for c in range(len(centroids))]
        centroids = [mean(tokens, m) if m else c for m, c in zip(members, centroids, strict=True)]
    return labels, centroids


def by_error(kept, q_mean, k_means, key, members):
    """What SVG-EAR keeps of a row instead of ``kept``: those with the largest error per key, of as many keys."""
    scale = key.shape[-1] ** -0.5
    budget = sum(len(members[j]) for j in kept)
    errors = []
    for j, m in enumerate(members):
        guess = math.exp(float(q_mean @ k_means[j]) * scale)
        errors.append(sum((guess - math.exp(float(q_mean @ key[t]) * scale)) ** 2 for t in m) / max(len(m), 1))
    chosen, spent = set(), 0
    for j in sorted(range(len(errors)), key=lambda j: (-errors[j], j)):
        spent += len(members[j])
        if chosen and spent > budget:
            break
        chosen.add(j)
    return chosen


def clustered(query, key, starts, steps, share, floor, route="weight"):
    """bool [visual, visual] of SVG2 in one head: labels, then the clusters that every query cluster keeps."""
    (rows, q_means), (columns, k_means_) = (
        k_means(t, list(start), steps) for t, start in zip((query, key), starts, strict=True)
    )
    sizes = [columns.count(c) for c in range(len(k_means_))]
    scale = query.shape[-1] ** -0.5
    kept = []
    for q in q_means:
        logits = [float(q @ k) * scale + math.log(n) if n else -math.inf for k, n in zip(k_means_, sizes, strict=True)]
        weights = softmax(logits)
        best = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
        kept.append(fewest(weights, share) | set(best[: math.ceil(floor * len(weights))]))
        if route == "error":
            members = [[t for t, label in enumerate(columns) if label == c] for c in range(len(sizes))]
            kept[-1] = by_error(kept[-1], q, k_means_, key, members)
    return torch.tensor([[columns[j] in kept[rows[i]] for j in range(len(key))] for i in range(len(query))])


def leading(tokens, dims):
    """The tokens of one head in the directions in which they differ most, by their exact SVD."""
    centred = tokens - tokens.mean(0)
    return centred @ torch.linalg.svd(centred).Vh[:dims].T


def tree(tokens, numbers, size):
    """The blocks of one head as sets: halved along the first principal component of what is left, by its exact SVD.

    Their number is a power of two and all are full, so that the component's sign says nothing about who is with whom.
    """
    if len(numbers) == size:
        return {frozenset(numbers)}
    here = tokens[numbers]
    axis = torch.linalg.svd(here - here.mean(0)).Vh[0]
    ranked = [numbers[i] for i in (here @ axis).argsort().tolist()]
    middle = len(ranked) // 2
    return tree(tokens, ranked[:middle], size) | tree(tokens, ranked[middle:], size)
