"""What controls know of prompts and masks is found out once in a call; from then on nobody waits for a GPU."""

from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dattn.control import (
    Emphasize,
    HeatMaps,
    Isolation,
    LocalBlend,
    Refine,
    Replace,
    Reweight,
    SharedKeys,
    SplitContext,
    SubjectKeys,
)
from dattn.control.stage import Stage

from .stages import grid_for, qkv, stage, through

LEFT, RIGHT = (0, 0, 0.5, 1), (0.5, 0, 1, 1)
SHAPE = (2, 4, 4)
PROMPTS = "a red circle", "a blue circle"
CONTROLS = {
    "reweight": lambda: Reweight({"circle": 3.0}),
    "reweight-renormalized": lambda: Reweight({"circle": 3.0}, renormalize=True),
    "emphasize": lambda: Emphasize({"circle": 0.5}),
    "split": lambda: SplitContext([LEFT], ["a", "circle"]),
    "isolation": lambda: Isolation([LEFT, RIGHT]),
    "frames": lambda: SharedKeys("keyframes", 2.0, keyframes=(0, -1)),
    "window": lambda: SharedKeys("previous_window"),
    "item": lambda: SharedKeys("batch_item", 2.0),
    "subjects": lambda: SubjectKeys(["circle", "blue"]),
    "replace": lambda: Replace(inject=1.0),
    "refine": lambda: Refine(inject=1.0),
    "maps": lambda: HeatMaps(["circle", "a"]),
    "blend": lambda: LocalBlend(["circle", "blue"], subtract=["a", "a"]),
}
KINDS = {"isolation": ("self", "joint"), "frames": ("self", "joint"), "window": ("self",), "item": ("self", "joint")}
WAITS = ("nonzero", "_local_scalar_dense", "unique", "_unique2", "unique_dim", "masked_select", "lift_fresh")
"""Operations that look at numbers on a GPU, or bring them there."""


class NoWaiting(TorchDispatchMode):
    """Refuses whatever a GPU would have to be waited for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name.startswith("index") and len(args) > 1 and isinstance(args[1], list | tuple) else ()
        by_mask = any(isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in indices)
        assert name not in WAITS and not by_mask, f"{name} waits"
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("name", CONTROLS)
def test_only_the_first_layer_looks(name):
    for kind in KINDS.get(name, ("cross", "joint")):
        grid, own, control = grid_for(kind, SHAPE), stage(*PROMPTS), CONTROLS[name]()
        own.batch = own.samples = 2
        query, key, value = qkv(2, 2, grid.tokens, 12 if kind == "cross" else grid.tokens)
        run = lambda: through([control], own, kind, query, key, value, grid=grid)  # noqa: B023
        run()
        control.start = lambda: None  # the same call goes on
        first = run()
        with NoWaiting(), mock.patch.object(Stage, "tokens", side_effect=AssertionError("the prompt is read again")):
            own.step = 1
            assert torch.equal(run(), first)
