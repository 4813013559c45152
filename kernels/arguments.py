"""What the kernels are given: tensors with their strides, and block lists; Triton takes named tuples as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


@dataclass(frozen=True)
class Tile:
    """What a kernel is compiled for.

    Attributes:
        M, N: queries and keys at a time.
        SIZE: slots in a block.
        DIM, WIDTH: the head dim, and the power of two that it is padded to.
        RAGGED: whether a block of keys may hold fewer tokens than it has slots.
        PRECISION: of products of float32: "ieee" or "tf32".
        SPARSE: whether most pooled keys are not seen, so that it pays to look before they are loaded.
        LAZY, SPECIALIZED: switches of ``Config``.
    """

    M: int
    N: int
    SIZE: int
    DIM: int
    WIDTH: int
    RAGGED: bool
    PRECISION: str
    SPARSE: bool
    LAZY: bool = False
    SPECIALIZED: bool = False


class Heads(NamedTuple):
    """A tensor ``[batch, heads, tokens, head_dim]`` whose last dimension is contiguous, and its strides.

    Where the head dim is a multiple of 8 and not of 16, so are the strides, which launches would not notice.
    """

    data: Tensor
    batch: int
    head: int
    token: int

    @classmethod
    def of(cls, tensor: Tensor) -> Heads:
        """The tensor, copied only if it lies in memory in another way."""
        *strides, last = tensor.stride()
        if last != 1 or (tensor.shape[-1] % 16 == 8 and any(stride % 8 for stride in strides)):
            tensor = tensor.contiguous()
        return cls(tensor, *tensor.stride()[:3])

    def described(self, rows: int, width: int) -> TensorDescriptor | None:
        """A descriptor of tiles of ``rows`` x ``width`` numbers; None where rows do not lie in steps of 16 bytes."""
        strides = self.batch, self.head, self.token
        size = self.data.element_size()
        if self.data.data_ptr() % 16 or any(stride * size % 16 for stride in strides):
            return None
        return TensorDescriptor(self.data, [*self.data.shape], [*strides, 1], [1, 1, rows, width])


class Sets(NamedTuple):
    """Which set of lists, lengths or orders a batch row b and head h of H use.

    There are ``batches`` x ``groups`` of them; it is number (b mod batches) · groups + ⌊h · groups / H⌋.
    """

    batches: int
    groups: int


class Blocks(NamedTuple):
    """Where blocks sit in kernel order, which has ``tokens`` places: int32 ``[sets, number]``."""

    starts: Tensor
    lengths: Tensor
    number: int
    tokens: int


class Lists(NamedTuple):
    """Compressed rows: row i visits ``blocks[offsets[i] : offsets[i + 1]]``, in every set of its own.

    ``offsets`` is int32 ``[sets, rows + 1]``, ``blocks`` int32 ``[sets, entries]``. ``tile`` is None where blocks
    are visited whole, else int32 ``[sets, entries]``: each entry's tile in the table.
    """

    offsets: Tensor
    blocks: Tensor
    tile: Tensor | None
    rows: int
    entries: int


class Visits(NamedTuple):
    """Who visits whom: ``own`` are the blocks that walk, ``other`` those that are walked over.

    ``tiles`` is int32 ``[distinct, size, ⌈size / 32⌉]``, bits of keys in rows of queries. ``partial`` and ``tiles``
    are None where nothing is visited in part.
    """

    own: Blocks
    other: Blocks
    full: Lists
    partial: Lists | None
    tiles: Tensor | None
    sets: Sets


class Pool(NamedTuple):
    """Pooled keys and values, ``number`` of them, and who sees them.

    ``bias`` is float32 ``[biases, groups, number]``, added to the logits; ``biases`` is the batch or 1.
    ``seen`` is int32 ``[sets, query blocks, words]``: bit b % 32 of word b // 32 is set where the pooled keys i with
    ``bits[i] = b`` are seen; ``bits`` is int32 ``[number]``.
    """

    key: Heads
    value: Heads
    bias: Tensor
    biases: int
    seen: Tensor
    words: int
    bits: Tensor
    number: int


class Walk(NamedTuple):
    """All that a launch needs beside the tensors of the attention itself.

    Attributes:
        visits, turned: what every query block visits; by whom every key block is visited, or None in a forward pass.
        orders: int32 ``[sets, places]``, the raster position of each kernel position of the queries and of the keys;
            None where they are the same, or where gradients of keys are wanted in kernel order.
        key_mask: uint8 ``[batch, groups, places]`` in kernel order, 0 for keys that nobody sees; or None.
        pool: pooled keys and values, or None; ``sparse`` says whether a query block sees few of them.
        size: slots in a block; ``ragged`` says whether any block of keys holds fewer tokens.
        scale: factor of the logits.
    """

    visits: Visits
    turned: Visits | None
    orders: tuple[Tensor | None, Tensor | None]
    key_mask: Tensor | None
    pool: Pool | None
    size: int
    ragged: bool
    sparse: bool
    scale: float

    @property
    def crowded(self) -> bool:
        """Whether there are padded keys, blocks visited in part and pooled keys, all of them."""
        return all(part is not None for part in (self.key_mask, self.visits.partial, self.pool))
