"""One self-attention layer under a handle: what it attends with at this moment."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dattn.attention import attend, autocast
from dattn.backends import choose
from dattn.block_mask import BlockMask, MaskCache
from dattn.grid import TokenGrid
from dattn.spec import VISITED, State


@dataclass(frozen=True)
class Run:
    """The backend that a layer's pattern last ran on, and why that one."""

    backend: str | None
    reason: str


def _scores_are_skipped() -> bool:
    """Whether a guidance hook is replacing SDPA by its value, which only the stock processor lets it do."""
    if torch.compiler.is_compiling():
        return False
    modes = torch.overrides._get_current_function_mode_stack()
    return any(type(mode).__name__ == "AttentionScoreSkipFunctionMode" for mode in modes)


class Layer:
    """A layer that a pattern may run in.

    Inside the model a processor reads ``active`` and, if it is true, calls ``attend``. Everything else is set
    from outside: ``place`` when the step moves, ``enter`` when the grid changes, ``select`` per guidance branch.

    Args:
        index: position among the model's self-attention layers, in execution order.
        count: how many of those there are.
        name: module name, with the pipeline's component in front.
        module: the attention module.
        pattern: the pattern; None leaves the layer stock for good, and ``why`` says why.
        masks: the handle's cache of block masks.
        backend: ``"auto"`` or an explicit backend.
        min_saving: leave the layer stock on a grid where less than this share of the work is saved.
    """

    def __init__(
        self,
        index: int,
        count: int,
        name: str,
        module: Any,
        pattern: Any,
        masks: MaskCache,
        backend: str = "auto",
        min_saving: float | None = None,
        why: str = "",
    ) -> None:
        from dattn.processors import compiled  # not above: it registers operators, which an import must not

        self.number, self._as_one_node = compiled.number_of(self), compiled.attend
        self.index, self.count, self.name, self.module = index, count, name, module
        self.pattern, self.masks, self.backend, self.min_saving = pattern, masks, backend, min_saving
        self.why = why
        self.active = False
        self.grid: TokenGrid | None = None  # until the first call
        self.concrete: Any = pattern
        self.note: str | None = None
        self.blocked = ""
        self.refusal = ""
        self.run: Run | None = None
        self.sharing = 0, 1  # number among the layers of its level that a pattern may run in, and how many those are
        self._states: dict[tuple[str, int], State] = {}
        self._branch = ""
        self._turns: dict[str, int] = {}
        self._spent, self._calls = 0.0, 0
        self._visited = [0.0, 0.0, 0.0]  # density and pooled share, summed over the calls that told; how many did
        self._held = 0
        self._placed = pattern
        self._step = 0
        self._dense_step = False

    def place(self, step: int, steps: int, dense: bool) -> None:
        """The denoising loop is at ``step`` of ``steps``, and that step is dense or not."""
        if self.pattern is None:
            return
        self._dense_step, self._step = dense, step
        self._turns.clear()
        self._placed = self.pattern.at(self.index, self.count, step, steps)
        self._settle()

    def enter(self, grid: TokenGrid) -> None:
        """The model is called with this grid at this layer."""
        if self.grid is None or grid.sizes != self.grid.sizes:  # numbers: a compiler compares no grids
            self.grid = grid
            self._recount()
            self._settle()

    def _settle(self) -> None:
        """Fit the pattern of this place to the grid, and decide whether it runs."""
        if self.pattern is None or self.grid is None:
            return
        self.concrete, self.note = self._placed.fit(self.grid)
        if self.min_saving is not None:
            self.why = self._too_little_saved(self.min_saving)
        self.active = not self._dense_step and not self.why

    def _too_little_saved(self, least: float) -> str:
        saved = 1 - self.share()
        return "" if saved >= least else f"auto: saves {max(saved, 0):.0%}, less than {least:.0%}"

    def close(self) -> None:
        """The layer is stock from now on, for a processor that someone still holds."""
        self.pattern, self.active = None, False
        self.forget()

    def forget(self) -> None:
        """Drop the state of the last call, and what it said about itself."""
        self._states.clear()
        self._turns.clear()
        self._recount()
        self._held = 0
        self.refusal, self.run = "", None

    def _recount(self) -> None:
        """Begin to count anew what is computed."""
        self._spent, self._calls, self._visited = 0.0, 0, [0.0, 0.0, 0.0]

    def release(self) -> None:
        """The denoising loop is over: let go of what was kept, for decoding needs the memory; note how much it was."""
        self._held = self.held()
        self._states.clear()
        self._turns.clear()

    def select(self, branch: str) -> None:
        """The calls that follow belong to a guidance branch; ``""`` outside any ``cache_context``."""
        self._branch = branch

    @property
    def keeps(self) -> bool:
        """Whether an operator has been given a state in this call."""
        return bool(self._states)

    def _state(self) -> State:
        """The state of this branch; calls of one step that no context tells apart are branches in their order."""
        turn = self._turns.get(self._branch, 0)
        self._turns[self._branch] = turn + 1
        state = self._states.setdefault((self._branch, turn), {})
        state.update(masks=self.masks, step=self._step, layer=self.index, layers=self.count, sharing=self.sharing)
        return state

    def refuse(self, reason: str) -> None:
        """This call runs the model's own processor; the report says why, and a warning says so once."""
        if reason != self.refusal:
            self.refusal = reason
            warnings.warn(f"dattn left {self.name} stock: {reason}", stacklevel=3)

    def expects(self, tokens: int, mask: Tensor | None = None, context: Tensor | None = None) -> bool:
        """Whether a call is plain self-attention on the layer's grid; if not, it is refused."""
        if _scores_are_skipped():
            return False
        if mask is not None:
            self.refuse("an attention mask was passed, which a pattern cannot honour")
        elif context is not None:
            self.refuse("a context was passed, so this is cross-attention")
        elif self.grid is None or tokens != self.grid.tokens:
            self.refuse(f"the sequence has {tokens} tokens, its grid {self.grid and self.grid.tokens}")
        elif self._groups() > self.module.heads:
            self.refuse(f"{self.concrete.name} has {self._groups()} head groups, the layer {self.module.heads} heads")
        else:
            self.refusal = ""
            return True
        return False

    def _groups(self) -> int:
        """Head groups of the pattern on this grid."""
        if torch.compiler.is_compiling() or not self.concrete.static:
            return 1
        mask = self.mask()
        return 1 if mask is None else mask.groups

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
        """The pattern on [batch, heads, tokens, head_dim] in raster order; the same shape comes back."""
        assert self.grid is not None  # an active layer has one
        if torch.compiler.is_compiling():
            scale = query.shape[-1] ** -0.5 if scale is None else scale
            query, key, value = autocast(query, key, value)
            return self._as_one_node(self.number, self.grid, query, key, value, scale)
        return self.eager(query, key, value, scale)

    def eager(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """``attend`` outside of any graph."""
        assert self.grid is not None
        self.chosen(query)
        state: State = {"masks": self.masks} if self.concrete.static else self._state()
        output = attend(query, key, value, self.concrete, self.grid, scale=scale, backend=self.backend, state=state)
        if VISITED in state:
            self._note(*state.pop(VISITED))
        return output

    def _note(self, density: float, tail: float) -> None:
        """A call told what it visited: that counts instead of what was expected of it."""
        self._spent += min(density + tail, 1.0) - self.share()
        self._visited = [a + b for a, b in zip(self._visited, (density, tail, 1.0), strict=True)]

    def chosen(self, query: Tensor) -> str:
        """The backend for such a query, noted for the report."""
        if self.concrete.static:
            choice = choose(self.backend, query.device, query.dtype, query.shape[-1])
        else:
            choice = self.concrete.choose(self.backend, query)
        self.run = Run(choice.name, choice.reason)
        self._spent, self._calls = self._spent + self.share(), self._calls + 1
        return choice.name

    def mask(self) -> BlockMask | None:
        """The block mask of a static pattern on the layer's grid; None before a call, or for other kinds."""
        if self.grid is None or not self.concrete.static:
            return None
        device = next((p.device for p in self.module.parameters()), torch.device("cpu"))
        return self.masks.get(self.concrete, self.grid, "cpu" if device.type == "meta" else device)

    def held(self) -> int:
        """Bytes of tensors that an operator keeps here, or kept in the last call, all guidance branches together."""
        if self.concrete is None or self.concrete.static:
            return self._held
        return self._held + sum(self.concrete.held(state) for state in self._states.values())

    def visited(self) -> tuple[float | None, float | None]:
        """Density and the pooled keys' share of dense work, on average over the calls where masks look at them."""
        mask = self.mask()
        if mask is not None:
            return mask.density, mask.tail_share
        density, tail, calls = self._visited
        return (density / calls, tail / calls) if calls else (None, None)

    def spent(self) -> float:
        """``share``, on average over the calls that have run; what it will be before the first."""
        return self._spent / self._calls if self._calls else self.share()

    def share(self) -> float:
        """What the pattern or operator computes on the layer's grid ÷ dense work, pooled keys included."""
        mask = self.mask()
        if mask is not None:
            return min(mask.density + mask.tail_share, 1.0)
        if self.grid is None or self.concrete is None:
            return 1.0
        return min(self.concrete.cost(self.grid, self.module.inner_dim // self.module.heads, self.masks), 1.0)
