"""Finding the attention for a model, a clip and a machine, by measuring."""

from dattn.tuning.tune import tune

__all__ = ["tune"]
