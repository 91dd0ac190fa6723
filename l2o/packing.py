"""How a model's variables are packed: into one vector, or a few where some are large."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import keras
import numpy as np
from keras import ops

from l2o.rules import Layout, UpdateRule

# A coordinatewise rule runs on this many coordinates at a time: their activations, some 1.5 kB a
# coordinate for RNNProp, stay in the cache, and memory is bounded whatever the size of the model.
TILE = 2**13
# A variable of so many coordinates has a state of its own.
LARGE = 2**18
# A tensorwise rule runs on arrays of about so many columns: a row of each stays in the cache.
COLUMNS = 2**11


@dataclass(frozen=True)
class Group:
    """Variables that are packed together.

    Their coordinates follow each other. What belongs to them is an array [..., D], or, in several
    tiles, [tiles, ..., length] with zeros behind the last coordinate.

    Attributes:
        members: Their numbers in the model.
        layout: Of them.
        tiles: How many.
    """

    members: tuple[int, ...]
    layout: Layout
    tiles: int = 1

    @property
    def length(self) -> int:
        """Coordinates a tile."""
        return -(-self.layout.size // self.tiles)

    def shape(self, *features: int) -> tuple[int, ...]:
        """The shape of an array with so many features a coordinate."""
        return (*((self.tiles,) if self.tiles > 1 else ()), *features, self.length)

    def join(self, parts: Sequence):
        """One array [..., size] a member as one array of all."""
        whole = parts[0] if len(parts) == 1 else ops.concatenate(parts, axis=-1)
        if self.tiles == 1:
            return whole
        features, columns = whole.shape[:-1], self.tiles * self.length
        padding = [(0, 0)] * len(features) + [(0, columns - self.layout.size)]
        tiles = ops.reshape(ops.pad(whole, padding), (*features, self.tiles, self.length))
        return ops.moveaxis(tiles, -2, 0)

    def cut(self, whole) -> list:
        """What `join` joined."""
        if self.tiles > 1:
            features = tuple(whole.shape[1:-1])
            whole = ops.moveaxis(whole, 0, -2)
            whole = ops.reshape(whole, (*features, self.tiles * self.length))
        places = zip(self.layout.offsets, self.layout.sizes, strict=True)
        return [whole[..., start : start + size] for start, size in places]

    def flatten(self, tensors: Sequence):
        """One tensor a member, of its shape, as one array of all."""
        return self.join([ops.reshape(tensor, (-1,)) for tensor in tensors])

    def unflatten(self, whole) -> list:
        """What `flatten` joined."""
        pairs = zip(self.cut(whole), self.layout.shapes, strict=True)
        return [ops.reshape(part, shape) for part, shape in pairs]


@dataclass(frozen=True)
class Columns(Layout):
    """The layout of tensors that lie beside each other in an array [..., rows, columns].

    Each has columns of its own, with zeros behind its last coordinate, so that sums over tensors
    are sums of rows.

    Attributes:
        rows: How many.
    """

    rows: int = 1

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Columns of each tensor."""
        return tuple(-(-size // self.rows) for size in self.sizes)

    @cached_property
    def places(self) -> list[np.ndarray]:
        """Where each tensor's coordinates lie in the array as one vector, int32 [size] a tensor."""
        whole = np.arange(self.rows * sum(self.widths), dtype="int32").reshape(self.rows, -1)
        blocks = np.split(whole, np.cumsum(self.widths)[:-1], axis=1)
        return [block.ravel()[:size] for block, size in zip(blocks, self.sizes, strict=True)]

    def spread(self, values: Sequence):
        return np.repeat(np.asarray(values), self.widths)

    def over(self, values):
        return ops.take(values, self.spread(np.arange(self.tensors)), axis=-1)

    def sums(self, function: Callable[..., Sequence], *arrays):
        if self.rows == 1 or keras.backend.backend() == "torch":  # whose loops are Python's
            total = [ops.sum(x, -2) for x in function(*arrays)]
        else:

            def add(i, total):
                row = function(*(x[i] for x in arrays))
                return tuple(a + x for a, x in zip(total, row, strict=True))

            start = tuple(function(*(x[0] for x in arrays)))
            total = ops.fori_loop(1, self.rows, add, start)
        whose = np.repeat(np.eye(self.tensors), self.widths, axis=0)
        return ops.matmul(ops.stack(total), ops.cast(whose, total[0].dtype))

    def only(self, members: Sequence[int]) -> Columns:
        part = super().only(members)
        return Columns(part.names, part.shapes, self.rows)

    def join(self, parts: Sequence):
        """One array [..., size] a tensor as one array of all."""
        blocks = []
        for part, width in zip(parts, self.widths, strict=True):
            features, missing = tuple(part.shape[:-1]), self.rows * width - part.shape[-1]
            if missing:
                part = ops.pad(part, [(0, 0)] * len(features) + [(0, missing)])
            blocks.append(ops.reshape(part, (*features, self.rows, width)))
        return blocks[0] if len(blocks) == 1 else ops.concatenate(blocks, axis=-1)

    def cut(self, whole) -> list:
        """What `join` joined."""
        parts, start = [], 0
        for size, width in zip(self.sizes, self.widths, strict=True):
            block = whole[..., start : start + width]
            flat = ops.reshape(block, (*whole.shape[:-2], self.rows * width))
            parts.append(flat[..., :size])
            start += width
        return parts

    def flatten(self, tensors: Sequence):
        return self.join([ops.reshape(tensor, (-1,)) for tensor in tensors])

    def unflatten(self, array) -> list:
        pairs = zip(self.cut(array), self.shapes, strict=True)
        return [ops.reshape(part, shape) for part, shape in pairs]


@dataclass(frozen=True)
class TensorGroup(Group):
    """Variables that are packed together for a tensorwise rule, in `Columns`."""

    layout: Columns

    def shape(self, *features: int) -> tuple[int, ...]:
        return (*features, self.layout.rows, sum(self.layout.widths))

    def join(self, parts: Sequence):
        return self.layout.join(parts)

    def cut(self, whole) -> list:
        return self.layout.cut(whole)


def grouped(layout: Layout, rule: UpdateRule) -> tuple[Group, ...]:
    """How variables are packed: small ones together, each large one by itself.

    Where a rule is neither coordinatewise nor tensorwise, all are together.
    """
    together = not (rule.coordinatewise or rule.tensorwise)
    large = [k for k, size in enumerate(layout.sizes) if size >= LARGE and not together]
    small = [k for k in range(layout.tensors) if k not in large]
    groups: list[Group] = []
    for members in (small, *([k] for k in large)):
        part = layout.only(members)
        if rule.tensorwise:
            columns = Columns(part.names, part.shapes, _rows(part))
            groups.append(TensorGroup(tuple(members), columns))
        else:
            tiles = 1 if together or part.size <= LARGE else -(-part.size // TILE)
            groups.append(Group(tuple(members), part, tiles))
    return tuple(group for group in groups if group.members)


def _rows(layout: Layout) -> int:
    """How many rows make about `COLUMNS` columns; a single tensor fills them if it can."""
    rows = max(layout.size // COLUMNS, 1)
    if layout.tensors == 1:
        whole = (n for n in range(rows, rows // 8, -1) if layout.size % n == 0)
        return next(whole, rows)
    return rows
