"""Finding the attention for a model, a clip and a machine, by measuring."""
