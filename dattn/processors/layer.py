"""One self-attention layer under a handle: what it attends with at this moment."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dattn.attention import attend, autocast
from dattn.backends import choose
from dattn.block_mask import BlockMask, MaskCache
from dattn.grid import TokenGrid
from dattn.processors.parts import OWN, Part
from dattn.spec import SAID, VISITED, State


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


def resized(grid: TokenGrid, tokens: int) -> TokenGrid | None:
    """A grid of so many tokens that differs in text: behind, or before where none is behind; None where none does.

    In a graph, a length that only the numbers in a mask tell is taken for right: the operator looks when it knows.
    """
    if _may_be(tokens == grid.tokens):
        return grid
    before, after, spare = grid.text_before, grid.text_after, tokens - grid.visual
    if not after:
        return TokenGrid(*grid.shape, text=(spare, 0)) if before and spare >= 0 else None
    return TokenGrid(*grid.shape, text=(before, spare - before)) if spare >= before else None


def _may_be(equal: bool) -> bool:
    """Whether two numbers are equal, or a compiler cannot know."""
    if not torch.compiler.is_compiling():
        return equal
    from torch.fx.experimental.symbolic_shapes import guard_or_true

    return guard_or_true(equal)


class Layer:
    """A layer that a pattern may run in.

    Inside the model a processor reads ``active`` and, if it is true, asks ``expects`` and calls ``attend``. Everything
    else is set from outside: ``place`` when the step moves, ``enter`` when the grid changes, ``select`` per guidance
    branch.

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
        self.chain: Any = None  # of controls, where there are any
        self.grid: TokenGrid | None = None  # until the first call
        self.samples: tuple[TokenGrid, ...] = ()  # a grid for every sample of a batch, where they differ
        self.concrete: Any = pattern
        self.note: str | None = None
        self.blocked = ""
        self.refusal = ""
        self.run: Run | None = None
        self.said = ""  # by a call, for the report
        self.pairs = self.one_stream = False  # see ``Adapter``
        self.sharing = 0, 1  # see ``Operator.attend``
        self._states: dict[tuple[str, Part, int], State] = {}
        self._branch = ""
        self._turns: dict[tuple[str, Part], int] = {}
        self.part = OWN  # of the calls that controls make of one, see ``Parts``
        self._spent, self._calls = 0.0, 0
        self._visited = [0.0, 0.0, 0.0]  # density and pooled share, summed over the calls that told; how many did
        self._held = 0
        self._placed = pattern
        self._step = 0
        self._dense_step = False
        self._unfit = ""
        self._sizes: Tensor | None = None
        self._served = False
        self.head_dim = 64  # until the first call tells

    def place(self, step: int, steps: int, dense: bool, last: bool = False) -> None:
        """The denoising loop is at ``step`` of ``steps``, and that step is dense, the ``last`` such, or not."""
        if self.pattern is None:
            return
        self._step = step
        self._turns.clear()
        placed = self.pattern.at(self.index, self.count, step, steps)
        before = placed.before() if last else None
        self._dense_step, self._placed = dense and before is None, before or placed
        self._settle()

    def enter(self, grid: TokenGrid | tuple[TokenGrid, ...] | Tensor | str) -> None:
        """The model is called with this grid at this layer, or with one for every sample, or for a reason stock.

        In a graph the sizes may not be known yet: they are then a tensor, int64 [5] on the CPU.
        """
        self._unfit, self.samples, self._sizes = "", (), None
        if isinstance(grid, Tensor):
            self._sizes = grid
        if isinstance(grid, str):
            self._unfit = grid
        if isinstance(grid, str | Tensor):
            self.active = self._runs()
            return
        if isinstance(grid, tuple):
            self.samples = grid if any(other.sizes != grid[0].sizes for other in grid) else ()
            grid = grid[0]
        if self.grid is None or grid.sizes != self.grid.sizes:  # numbers: a compiler compares no grids
            self.grid = grid
            self._recount()
            self._settle()
        self.active = self._runs()

    def _settle(self) -> None:
        """Fit the pattern of this place to the grid, and decide whether it runs."""
        if self.pattern is None or self.grid is None:
            return
        self.concrete, self.note = self._placed.fit(self.grid)
        if self.min_saving is not None:
            self.why = self._too_little_saved(self.min_saving)
        self.active = self._runs()

    def _runs(self) -> bool:
        return self.pattern is not None and not (self._dense_step or self.why or self._unfit)

    @property
    def stock_reason(self) -> str:
        """Why the model's own attention runs here; ``""`` where the pattern does."""
        return self.why or self._unfit or self.blocked or self.refusal

    def _too_little_saved(self, least: float) -> str:
        saved = 1 - self.share()
        return "" if saved >= least else f"auto: saves {max(saved, 0):.0%}, less than {least:.0%}"

    def __deepcopy__(self, memo: dict[int, Any]) -> Layer:
        """With a number of its own, by which a compiled copy finds it."""
        from dattn.processors import compiled

        memo[id(self)] = other = object.__new__(Layer)
        vars(other).update({name: copy.deepcopy(value, memo) for name, value in vars(self).items()})
        other.number = compiled.number_of(other)
        return other

    @property
    def controlled(self) -> bool:
        """Whether a control acts here now."""
        return self.chain is not None and self.chain.on

    def close(self) -> None:
        """The layer is stock from now on, for a processor that someone still holds."""
        self.pattern, self.chain, self.active = None, None, False
        self.forget()

    def forget(self) -> None:
        """Drop the state of the last call, and what it said about itself."""
        self._states.clear()
        self._turns.clear()
        self._recount()
        self._held = 0
        self.refusal, self.run, self.said = "", None, ""

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
    def keeping(self) -> int:
        """How many parts of the pattern keep tensors here, see ``Spec.keeping``."""
        return 0 if self.pattern is None else self.pattern.keeping(self.index, self.count)

    @property
    def keeps(self) -> bool:
        """Whether an operator has been given a state in this call."""
        return bool(self._states)

    def _state(self) -> State:
        """The state of this branch; calls of one step that no context tells apart are branches in their order."""
        state = self._states.setdefault((self._branch, self.part, self.turn()), {})
        state.update(masks=self.masks, step=self._step, layer=self.index, layers=self.count, sharing=self.sharing)
        return state

    def turn(self) -> int:
        """The turn of a call in this branch, counted from 0; the next one has the next."""
        who = self._branch, self.part
        turn = self._turns.get(who, 0)
        self._turns[who] = turn + 1
        return turn

    def refuse(self, reason: str) -> None:
        """This call runs the model's own processor; the report says why, and a warning says so once."""
        if reason != self.refusal:
            self.refusal = reason
            warnings.warn(f"dattn left {self.name} stock: {reason}", stacklevel=3)

    def begin(self) -> None:
        """A processor starts to attend."""
        self._served = False

    @property
    def width(self) -> int:
        """Channels of all heads together."""
        own = getattr(self.module, "inner_dim", None)
        if own is not None:
            return own
        return getattr(self.module, "to_q" if hasattr(self.module, "to_q") else "to_query").out_features

    def expects(self, query: Tensor, key: Tensor, masked: bool) -> bool:
        """Whether a call, [batch, heads, tokens, head_dim], is plain self-attention on the layer's grid.

        A call that is not is passed by: image prompts have one of their own.

        Args:
            masked: a mask came with it that hides more than keys.
        """
        if _scores_are_skipped():
            return False
        if self._sizes is not None and not torch.compiler.is_compiling():  # a call that fell out of a graph
            frames, height, width, before, after = self._sizes.tolist()
            self.enter(TokenGrid(frames, height, width, text=(before, after)))
        reason = self._refusal(query, key, masked)
        if reason:
            self.pass_by(reason)
        else:
            self.serve()
        return not reason

    def pass_by(self, reason: str) -> None:
        """A call is not for this layer: it is refused, unless another of this processor was served."""
        if not self._served:
            self.refuse(reason)

    def serve(self) -> None:
        """A call is for this layer."""
        self.refusal, self._served = "", True

    def _refusal(self, query: Tensor, key: Tensor, masked: bool) -> str:
        if masked:
            return "an attention mask was passed that hides more than keys, which a pattern cannot honour"
        if not _may_be(key.shape[2] == query.shape[2]):
            return "a context was passed, so this is cross-attention"
        if self._sizes is not None:  # the operator looks when it knows
            return ""
        if self.samples and len(self.samples) != len(query):
            return f"there are {len(query)} samples, but grids for {len(self.samples)}"
        if any(self.grid_of(query.shape[2], row) is None for row in range(len(self.samples) or 1)):
            return f"the sequence has {query.shape[2]} tokens, its grid {self.grid and self.grid.tokens}"
        groups = self._groups()
        if groups > query.shape[1]:
            return f"{self.concrete.name} has {groups} head groups, the layer {query.shape[1]} heads"
        return ""

    def grid_of(self, tokens: int, row: int = 0) -> TokenGrid | None:
        """The grid of a sequence of so many tokens; None if it cannot be the layer's.

        A model may drop or add tokens on the side where text sits: padding, mostly.
        """
        grid = self.samples[row] if self.samples else self.grid
        return None if grid is None else resized(grid, tokens)

    def _groups(self) -> int:
        """Head groups of the pattern on this grid."""
        if torch.compiler.is_compiling() or not self.concrete.static:
            return 1
        mask = self.mask()
        return 1 if mask is None else mask.groups

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float | None = None,
        key_mask: Tensor | None = None,
        lse: bool = False,
    ) -> Any:
        """The pattern on [batch, heads, tokens, head_dim] in raster order; the same shape comes back.

        ``key_mask``: bool [batch, tokens], False for keys that nobody sees. With ``lse`` the LSE comes too, outside of
        graphs.
        """
        if not self.samples:
            return self._attend(query, key, value, scale, key_mask, 0, lse)
        masks = [None] * len(query) if key_mask is None else key_mask.split(1)
        rows = zip(query.split(1), key.split(1), value.split(1), masks, strict=True)
        parts = [self._attend(q, k, v, scale, m, row, lse) for row, (q, k, v, m) in enumerate(rows)]
        return tuple(map(torch.cat, zip(*parts, strict=True))) if lse else torch.cat(parts)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float | None,
        key_mask: Tensor | None,
        row: int,
        lse: bool,
    ) -> Any:
        grid = None if self._sizes is not None else self.grid_of(query.shape[2], row)
        if torch.compiler.is_compiling():
            scale = query.shape[-1] ** -0.5 if scale is None else scale
            query, key, value = autocast(query, key, value)
            sizes = self._sizes if grid is None else grid.sizes
            assert sizes is not None  # ``expects`` was asked
            return self._as_one_node(self.number, sizes, query, key, value, scale, key_mask)
        assert grid is not None
        pattern = self._placed.fit(grid)[0] if self.samples else None
        return self.eager(query, key, value, scale, key_mask, grid, pattern, lse)

    def eager(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float | None,
        key_mask: Tensor | None,
        grid: TokenGrid,
        pattern: Any = None,
        lse: bool = False,
    ) -> Any:
        """``attend`` outside of any graph; with ``pattern`` in place of the layer's for some heads or one sample."""
        self.chosen(query)
        state: State = {"masks": self.masks} if self.concrete.static else self._state()
        pattern = pattern or self.concrete
        options: dict[str, Any] = {"scale": scale, "key_mask": key_mask, "backend": self.backend, "return_lse": lse}
        output = attend(query, key, value, pattern, grid, state=state, **options)
        if VISITED in state:
            self._note(*state.pop(VISITED))
        self.said = state.pop(SAID, self.said)
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
        self.head_dim = query.shape[-1]
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
        return min(self.concrete.cost(self.grid, self.head_dim, self.masks), 1.0)
