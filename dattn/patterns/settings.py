"""Ways to choose blocks that have a name, as settings of ``Selected``: functions that return one."""

from __future__ import annotations

from collections.abc import Callable

from dattn.orders import ByLayer, Tiled, Tree
from dattn.patterns.base import PerAxis
from dattn.patterns.selected import Selected
from dattn.scores import Antidiagonal, Gate, Joined, MeanSimilarity, Pooled, Proxy, TokenGate
from dattn.selection import Threshold, TopK, TopP, check_amount, check_share


def Alike(density: float = 0.15, reuse: int = 1, tail: bool | int = True, block_size: int = 64) -> Selected:
    """Blocks of tokens that are alike, queries and keys each for themselves, and a mean for every block left out.

    A mean stands well for keys that say the same, so little is lost with what is not computed; see ``Tree``. Where
    sequences are short, sorting takes longer than attention saves: then ``reuse`` lists for a few steps.

    Args:
        density: share of the blocks that every block of queries sees, by the weights among means.
        reuse: steps that lists are kept for; means are always those of the moment.
        tail: pool what is skipped: True (one key per block), a run of 16 … block size tokens, or False.
        block_size: 16, 32, 64 or 128.
    """
    check_share("density", density)
    return Selected(Pooled(), TopK(float(density)), Tree(), keep=(), reuse=reuse, block_size=block_size, tail=tail)


def XAttention(stride: int = 8, threshold: float = 0.9, block_size: int = 128) -> Selected:
    """XAttention (Xu et al., ICML 2025, arXiv 2503.16428): antidiagonal sums, the fewest blocks that hold a share.

    Args:
        stride: tokens in a group; 8 or 16.
        threshold: share of the estimated weight that every row keeps; 0.9 and 0.95 are published for HunyuanVideo.
        block_size: 16, 32, 64 or 128.
    """
    check_share("threshold", threshold)
    return Selected(Antidiagonal(stride), TopP(threshold), block_size=block_size)


def MeanSim(
    topk: int | float = 0.5, guard: float = -0.1, share: float | None = None, block_size: int = 128
) -> Selected:
    """SpargeAttn's first stage (Zhang et al., ICML 2025, arXiv 2502.18137): means, where they say something.

    Args:
        topk: the best blocks of a row, a count or a share.
        guard: blocks whose self-similarity is below are never skipped; -0.1 with ``topk`` and 0.6 with ``share`` are
            what its authors recommend.
        share: the fewest blocks that hold this share of the estimated weight, instead of ``topk``; 0.98 is theirs.
        block_size: 16, 32, 64 or 128, of queries and keys alike (the original: 128 and 64).
    """
    if share is None:
        check_amount("topk", topk)
    select = TopK(topk) if share is None else TopP(share)
    return Selected(MeanSimilarity(guard), select, block_size=block_size)


def Routing(region: PerAxis = (1, 8, 8), topk: int | float = 4, block_size: int = 64) -> Selected:
    """BiFormer's bi-level routing (Zhu et al., CVPR 2023, arXiv 2303.08810): all heads choose regions together.

    Args:
        region: tokens of a region per axis, (frames, height, width). One that holds more tokens than a block is
            routed to block by block of its queries.
        topk: regions that a region sees, a count or a share; its own is always among them.
        block_size: 16, 32, 64 or 128.
    """
    check_amount("topk", topk)
    return Selected(Joined(), TopK(topk), Tiled(region), block_size=block_size)


def ProxyHeads(heads: int = 1, stride: int = 8, threshold: float = 0.9, block_size: int = 128) -> Selected:
    """After ProxyAttn: averaged heads rank the blocks, each head has a budget of its own; see ``Proxy``.

    Args:
        heads: proxy heads.
        stride: of the antidiagonal scores of proxy heads.
        threshold: share of a head's own estimated weight that sets its budget.
        block_size: 16, 32, 64 or 128.
    """
    check_share("threshold", threshold)
    return Selected(Proxy(Antidiagonal(stride), heads), TopP(threshold), block_size=block_size)


def VMoBA(
    frames: int = 2,
    patch: tuple[int, int] = (3, 4),
    box: PerAxis = (4, 6, 4),
    share: float = 0.25,
    votes: float = 1e-6,
    block_size: int = 64,
) -> Selected:
    """VMoBA (Wu et al., arXiv 2506.23858): every query picks regions, which are 1-D, 2-D and 3-D layer by layer.

    What single queries pick becomes lists by vote: a block of queries sees the regions that at least the share
    ``votes`` of them picks; the default is the union, which changes no query's choice but adds to it.

    Args:
        frames: frames of a region in the first layer of three; it spans them whole.
        patch: rows and columns of a region in the second; it spans all frames.
        box: (frames, height, width) of a region in the third.
        share: of the sum of a head's gates, each brought to [0, 1], that its queries keep together.
        votes: see above.
        block_size: 16, 32, 64 or 128.
    """
    check_share("votes", votes)
    order = ByLayer((Tiled((frames, None, None)), Tiled((None, *patch)), Tiled(box)))
    return Selected(TokenGate(TopP(share, across="head")), Threshold(votes), order, block_size=block_size)


def LearnedGate(path: str, threshold: float = 1e-3, topk: int | float | None = None, block_size: int = 64) -> Selected:
    """SeerAttention (Gao et al., arXiv 2410.13276): a trained gate chooses; see ``Gate``.

    Args:
        path: a safetensors file with the gates of every layer.
        threshold: least score of a block that is kept; 5e-4 to 5e-3 are published.
        topk: instead, the best blocks of a row, a count or a share.
        block_size: the block size that it was trained for.
    """
    if topk is None:
        check_share("threshold", threshold)
    else:
        check_amount("topk", topk)
    select = Threshold(threshold) if topk is None else TopK(topk)
    return Selected(Gate(path), select, block_size=block_size)


SETTINGS: dict[str, Callable[..., Selected]] = {
    preset.__name__: preset for preset in (Alike, XAttention, MeanSim, Routing, ProxyHeads, VMoBA, LearnedGate)
}
