"""Diffusers attention processors: the model's own ones, whose heart computes a pattern."""

from dattn.processors.layer import Layer

__all__ = ["Layer"]
