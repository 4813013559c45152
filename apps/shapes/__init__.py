"""Moving Shapes: a world that a program can both draw and judge, and the models trained on it."""

from .captions import Caption, Wanted, parse_caption
from .judge import ObjectVerdict, Verdict, judge
from .world import Object, Scene, sample_scene

__all__ = [
    "Caption",
    "Object",
    "ObjectVerdict",
    "Scene",
    "Verdict",
    "Wanted",
    "judge",
    "parse_caption",
    "sample_scene",
]
