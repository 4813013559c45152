"""Diffusers pipelines built from dattn patterns and controls."""
