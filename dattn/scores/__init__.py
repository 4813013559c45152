"""Block scores: how much the queries of a block will attend to the keys of a region. Add yours to the table."""

from __future__ import annotations

from dattn.scores.antidiagonal import Antidiagonal
from dattn.scores.base import Score, Sides
from dattn.scores.gate import Gate
from dattn.scores.heads import Joined, Proxy
from dattn.scores.pooled import MeanSimilarity, Pooled
from dattn.scores.sampled import Sampled
from dattn.scores.token_gate import TokenGate
from dattn.scores.true_weights import TrueWeights

__all__ = [
    "SCORES",
    "Antidiagonal",
    "Gate",
    "Joined",
    "MeanSimilarity",
    "Pooled",
    "Proxy",
    "Sampled",
    "Score",
    "Sides",
    "TokenGate",
    "TrueWeights",
]

_ALL: tuple[type[Score], ...] = (
    Pooled,
    Antidiagonal,
    Sampled,
    MeanSimilarity,
    Joined,
    Proxy,
    TokenGate,
    Gate,
    TrueWeights,
)
SCORES: dict[str, type[Score]] = {score.__name__: score for score in _ALL}
