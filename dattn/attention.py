"""attention(query, key, value, pattern, grid): check the inputs, choose a backend, run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dattn.backends import choose, run, weights_of_blocks
from dattn.backends.problem import Problem, check_mask
from dattn.backends.torch_blocks import dense
from dattn.block_mask import BlockMask, MaskCache
from dattn.grid import TokenGrid
from dattn.spec import Call, Operator, Spec, State

Narrow = Callable[[BlockMask], BlockMask | None]
"""What makes of a block mask one in which fewer see each other; None where it cannot."""
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Spec,
    grid: TokenGrid,
    *,
    scale: float | None = None,
    key_mask: Tensor | None = None,
    backend: str = "auto",
    return_lse: bool = False,
) -> Any:
    """Self-attention under a pattern; differentiable, the LSE too.

    Args:
        query, key, value: [batch, heads, tokens, head_dim] in raster order, float64, 32, 16 or bfloat16; the
            value's head_dim may be another one.
        pattern: who sees whom, e.g. ``dattn.Radial()``; or an operator, e.g. ``dattn.Agent(0.8)``, which acts as on
            the first step of a denoising call.
        grid: where the tokens sit; ``grid.tokens`` is their number.
        scale: factor of the logits; head_dim ** -0.5 by default.
        key_mask: bool [batch, tokens], False for keys that nobody sees (padded text).
        backend: "auto", "triton", "torch" or "reference" (naive, for small grids).
        return_lse: also return the natural-log sum of exponentials of every row.

    Returns:
        The output, like the value; with ``return_lse`` a pair with [batch, heads, tokens]
        float32 (float64 for float64 input). A row that sees nothing gives 0 and -inf.

    Raises:
        ValueError: inputs that disagree with each other or with the grid, a pattern that does not fit it, or
            ``return_lse`` of an operator that has none.
    """
    return attend(
        query,
        key,
        value,
        pattern,
        grid,
        scale=scale,
        key_mask=key_mask,
        backend=backend,
        return_lse=return_lse,
    )


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Spec,
    grid: TokenGrid,
    *,
    scale: float | None = None,
    key_mask: Tensor | None = None,
    backend: str = "auto",
    return_lse: bool = False,
    state: State | None = None,
) -> Any:
    """``attention`` for callers that come again: ``state`` belongs to one layer, see ``Operator.attend``.

    Under autocast the inputs are cast first, as PyTorch's own attention does.
    """
    call = _checked(query, key, value, pattern, grid, state, scale, key_mask, backend)
    with torch.autocast(query.device.type, enabled=False):
        if pattern.static and (return_lse or not _in_parts(pattern, call)):
            return _masked(pattern, call, return_lse)
        assert isinstance(pattern, Operator)
        pattern.choose(backend, call.query)
        results = pattern.with_lse(call) if return_lse else pattern.attend(*call[:5], **call.options)
    if return_lse and results[1] is None:
        raise ValueError(f"return_lse: {pattern.name} has no sum of exponentials; leave it out")
    return results if return_lse else results[0]


def attend_over(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Spec,
    grid: TokenGrid,
    narrow: Narrow,
    *,
    scale: float | None = None,
    key_mask: Tensor | None = None,
    backend: str = "auto",
    state: State | None = None,
) -> tuple[Tensor, Tensor] | None:
    """``attend``, output and LSE, over what is left of a pattern's block mask; None where there is none to narrow."""
    if not pattern.static:
        return None
    call = _checked(query, key, value, pattern, grid, state, scale, key_mask, backend)
    mask = narrow(masks_in(call.state).get(pattern, grid, query.device))
    if mask is None:
        return None
    with torch.autocast(query.device.type, enabled=False):
        return over(mask, call)


def _checked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Spec,
    grid: TokenGrid,
    state: State | None,
    scale: float | None,
    key_mask: Tensor | None,
    backend: str,
) -> Call:
    """A call as the two above are given it, cast and checked."""
    query, key, value = autocast(query, key, value)
    check_inputs(query, key, value, pattern, grid, key_mask)
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    return Call(query, key, value, grid, {} if state is None else state, scale, key_mask, backend)


def _in_parts(pattern: Spec, call: Call) -> bool:
    """Whether masks of several head groups are quicker one by one: a launch is cheap, and each keeps its blocks."""
    return pattern.in_parts and _chosen(call) == "torch"


def _chosen(call: Call) -> str:
    """The backend for a call; queries or values, the wider ones decide."""
    query, width = call.query, max(call.query.shape[-1], call.value.shape[-1])
    return choose(call.backend, query.device, query.dtype, width).name


def _masked(pattern: Spec, call: Call, return_lse: bool) -> Any:
    """A static pattern through its block mask."""
    query, key, value = call[:3]
    problem = _problem(masks_in(call.state).get(pattern, call.grid, query.device), call)
    check_mask(problem)
    if _chosen(call) == "torch" and problem.mask.is_all and not return_lse:
        return dense(query, key, value, call.scale, call.key_mask)
    output, lse = run(_chosen(call), problem)
    return (output, lse) if return_lse else output


def over(mask: BlockMask, call: Call) -> tuple[Tensor, Tensor]:
    """Output and LSE of attention over a block mask."""
    return run(_chosen(call), _problem(mask, call))


def weights_over(mask: BlockMask, call: Call, lse: Tensor) -> tuple[Tensor, Tensor]:
    """The largest and the summed weight in every pair of blocks, see ``weights_of_blocks``, by the call's backend."""
    return weights_of_blocks(_chosen(call), _problem(mask, call), lse)


def _problem(mask: BlockMask, call: Call) -> Problem:
    return Problem(*call[:3], mask, call.scale, call.key_mask)


def masked(pattern: Any, call: Call) -> tuple[BlockMask, Tensor, Tensor]:
    """The mask of a static or dynamic pattern in a call, and output and LSE of attention over it."""
    static = pattern.static
    mask = masks_in(call.state).get(pattern, call.grid, call.query.device) if static else pattern.mask_in(call)
    return mask, *over(mask, call)


def masks_in(state: State) -> MaskCache:
    """The cache of block masks that a handle put in a state; a small one of its own where there is none."""
    return state.setdefault("masks", MaskCache(2))


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the precision of the autocast region around the call; as they are outside of one."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device) or tensors[0].dtype == torch.float64:
        return tensors
    return tuple(t.to(torch.get_autocast_dtype(device)) for t in tensors)


def check_inputs(
    query: Tensor, key: Tensor, value: Tensor, pattern: Spec, grid: TokenGrid, key_mask: Tensor | None
) -> None:
    """Raise ``ValueError`` on inputs that disagree with each other or with the grid."""
    if not isinstance(pattern, Spec):
        raise ValueError(f"pattern={pattern!r}: give a pattern such as dattn.Radial()")
    if query.ndim != 4 or key.shape != query.shape or value.shape[:-1] != query.shape[:-1]:
        shapes = ", ".join(str(tuple(t.shape)) for t in (query, key, value))
        raise ValueError(f"query, key, value of {shapes}: all are [batch, heads, tokens, head_dim], equally long")
    if query.shape[2] != grid.tokens:
        raise ValueError(f"{query.shape[2]} tokens on a grid of {grid.tokens} ({grid}): they must agree")
    for what in ("dtype", "device"):
        if not getattr(query, what) == getattr(key, what) == getattr(value, what):
            raise ValueError(f"query, key and value differ in {what}: convert them to one")
    if query.dtype not in DTYPES:
        raise ValueError(f"dtype {query.dtype}: use one of {', '.join(map(str, DTYPES))}")
    if key_mask is not None:
        wanted = (query.shape[0], grid.tokens)
        if key_mask.dtype != torch.bool or tuple(key_mask.shape) != wanted:
            raise ValueError(
                f"key_mask is {key_mask.dtype} {tuple(key_mask.shape)}: it is torch.bool {wanted} [batch, tokens]"
            )
        if key_mask.device != query.device:
            raise ValueError(f"key_mask on {key_mask.device}, query on {query.device}: move it there")
