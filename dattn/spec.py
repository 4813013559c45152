"""What can stand in for a layer's attention: a pattern, which is a mask, or an operator, which is anything else."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from torch import Tensor

from dattn.backends import Choice, choose
from dattn.grid import TokenGrid

if TYPE_CHECKING:
    from dattn.block_mask import MaskCache

Self = TypeVar("Self", bound="Spec")
State = dict[str, Any]
VISITED = "visited"
"""Where a call leaves in its state what it visited, if only the call knows: density, and the pooled keys' share."""


SAID = "said"
"""Where a call leaves in its state what the report should say of it."""
PLACED = ("masks", "step", "layer", "layers", "sharing")
"""What a handle puts in every state; see ``Operator.attend``."""
ORDERS = "orders"
"""A dict in the state of one call that several patterns look at: they share the orders that they lay its tokens in."""


def part_of(state: State, name: str) -> State:
    """The state of a part of an operator, kept in the operator's own under ``name``, at the same place."""
    own: State = state.setdefault(name, {})
    own.update({key: state[key] for key in PLACED if key in state})
    return own


@dataclass(frozen=True)
class Named:
    """Base of all that recipes and the command line can write: a frozen dataclass and its class name."""

    @property
    def name(self) -> str:
        """The class name, as written in recipes and on the command line."""
        return type(self).__name__

    def to_dict(self) -> dict[str, Any]:
        """``{"name": …, **fields}``, the inverse of ``dattn.pattern_from_dict``; JSON-ready."""
        return {"name": self.name, **{f.name: _plain(getattr(self, f.name)) for f in fields(self)}}


def check_kind(name: str, value: Any, kind: type[Named], example: str) -> None:
    """Raise ``ValueError`` unless ``value`` is a ``kind``."""
    if not isinstance(value, kind):
        raise ValueError(f"{name}={value!r}: give a {kind.__name__}, such as {example}")


def check_within(name: str, value: float, low: float, high: float) -> None:
    """Raise ``ValueError`` unless ``value`` is a number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name}={value!r}: give a number from {low:g} to {high:g}")


@dataclass(frozen=True)
class Spec(Named):
    """Base of patterns and operators: what has a place and meets a grid."""

    @property
    def in_parts(self) -> bool:
        """Whether groups of heads that have patterns of their own can be computed one after the other."""
        return False

    @property
    def static(self) -> bool:
        """Whether it is a mask that follows from the grid alone."""
        return False

    @property
    def fixed(self) -> bool:
        """Whether the grid alone says who sees whom, in one mask or in several: attention over it has an LSE."""
        return self.static

    @property
    def untuned(self) -> str:
        """Why a pretrained model has to be fine-tuned for it; ``""`` where it need not be."""
        return ""

    def at(self: Self, layer: int, layers: int, step: int, steps: int) -> Spec:
        """The concrete one for one place: layer ``layer`` of ``layers``, step ``step`` of ``steps``."""
        return self

    def fit(self, grid: TokenGrid) -> tuple[Spec, str | None]:
        """The same, clamped to a grid that it would be too large for, and a note that says what changed."""
        return self, None

    def keeping(self, layer: int, layers: int) -> int:
        """How many parts of it keep tensors of their own size from step to step, in layer ``layer`` of ``layers``."""
        return 0

    def before(self) -> Spec | None:
        """What runs in the last dense step in place of the model's own attention, and says the same; None: nothing."""
        return None

    def for_heads(self, heads: tuple[int, ...], of: int) -> Spec:
        """The same for the heads ``heads`` of ``of``, where a process computes no others.

        Raises:
            ValueError: heads that look at each other, or that have something stored for each.
        """
        return self


def _plain(value: Any) -> Any:
    """A field as JSON has it, nested ones as their dicts."""
    if isinstance(value, Named):
        return value.to_dict()
    if isinstance(value, Tensor):
        return value.tolist()
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value


def together(what: Spec) -> ValueError:
    """The error of ``Spec.for_heads``."""
    return ValueError(f"{what.name} looks at all heads together: it cannot be spread over processes that share them")


class Call(NamedTuple):
    """A call of attention, checked; see ``Operator.attend``."""

    query: Tensor
    key: Tensor
    value: Tensor
    grid: TokenGrid
    state: State
    scale: float
    key_mask: Tensor | None
    backend: str

    @property
    def options(self) -> dict[str, Any]:
        """How ``dattn.attention.attend`` is to compute a part of this call."""
        return {"scale": self.scale, "key_mask": self.key_mask, "backend": self.backend}


@dataclass(frozen=True)
class Operator(Spec):
    """Base of operators: attention that is not a mask.

    A subclass is one small file: its fields, ``compute``, and ``cost`` where it is cheaper than dense attention.
    """

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        grid: TokenGrid,
        state: State,
        *,
        scale: float,
        key_mask: Tensor | None,
        backend: str,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention on checked inputs.

        Args:
            query, key, value: [batch, heads, tokens, head_dim] in raster order.
            grid: where the tokens sit.
            state: what this operator keeps from step to step; it belongs to one denoising call, layer and guidance
                branch. A handle puts in "masks", its cache of block masks, "step", and "layer" and "layers", which of
                how many, and "sharing": of the parts of its level's layers that keep tensors, see ``Spec.keeping``,
                how many come before this one, and how many there are if all are as large.
            scale: factor of the logits.
            key_mask: bool [batch, tokens], False for keys that nobody sees; or None.
            backend: "auto" or an explicit one, for the masks inside.

        Returns:
            The output [batch, heads, tokens, head_dim], and the LSE [batch, heads, tokens] or None.
        """
        return self.compute(Call(query, key, value, grid, state, scale, key_mask, backend))

    def compute(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """Output and LSE, or None, of a call."""
        raise NotImplementedError

    def with_lse(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """The same where the LSE is asked for, if it costs more."""
        return self.attend(*call[:5], **call.options)

    def choose(self, backend: str, query: Tensor) -> Choice:
        """Which backend runs for such a query, and why.

        Raises:
            ValueError: an explicit backend that cannot.
        """
        return choose(backend, query.device, query.dtype, query.shape[-1])

    def cost(self, grid: TokenGrid, head_dim: int, masks: MaskCache) -> float:
        """Its work ÷ that of dense attention, on average over the steps."""
        return 1.0

    def held(self, state: State) -> int:
        """Bytes of tensors that it keeps in a state."""
        return 0


@dataclass(frozen=True)
class TorchOperator(Operator):
    """Base of operators that are made of PyTorch's own operations, whatever the device."""

    def choose(self, backend: str, query: Tensor) -> Choice:
        """The torch backend, or an error where another one is asked for."""
        if backend not in ("auto", "torch"):
            raise ValueError(
                f"backend {backend!r}: {self.name} is made of PyTorch's own operations; choose auto or torch"
            )
        return Choice("torch", "auto: the only one for it" if backend == "auto" else "asked for")


@dataclass(frozen=True)
class OverPattern(Operator):
    """Base of operators that compute a static pattern and do more.

    Args:
        pattern: the static pattern.

    Raises:
        ValueError: a pattern that is not static.
    """

    pattern: Spec

    def __post_init__(self) -> None:
        if not (isinstance(self.pattern, Spec) and self._takes(self.pattern)):
            raise ValueError(f"pattern={self.pattern!r}: {self.name} works on a static pattern, such as Radial()")

    def _takes(self, pattern: Spec) -> bool:
        """Whether it works on a pattern."""
        return pattern.static

    @property
    def untuned(self) -> str:
        """What the pattern says."""
        return self.pattern.untuned

    def at(self, layer: int, layers: int, step: int, steps: int) -> Spec:
        """The pattern at that place."""
        return replace(self, pattern=self.pattern.at(layer, layers, step, steps))

    def fit(self, grid: TokenGrid) -> tuple[Spec, str | None]:
        """The pattern clamped to the grid."""
        fitted, note = self.pattern.fit(grid)
        return replace(self, pattern=fitted), note

    def for_heads(self, heads: tuple[int, ...], of: int) -> Spec:
        """Over the pattern for these heads."""
        return replace(self, pattern=self.pattern.for_heads(heads, of))
