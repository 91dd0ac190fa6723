"""How a model's variables are packed: into one vector, or a few where some are large."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from keras import ops

from l2o.rules import Layout

# A coordinatewise rule runs on this many coordinates at a time: their activations, some 1.5 kB a
# coordinate for RNNProp, stay in the cache, and memory is bounded whatever the size of the model.
TILE = 2**13
# A variable of so many coordinates has a state of its own.
LARGE = 2**18


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


def grouped(layout: Layout, together: bool) -> tuple[Group, ...]:
    """How variables are packed: small ones together, each large one by itself.

    Args:
        layout: Of all variables.
        together: Whether the rule must see all of them at once.
    """
    large = [k for k, size in enumerate(layout.sizes) if size >= LARGE and not together]
    small = [k for k in range(layout.tensors) if k not in large]
    groups = []
    for members in (small, *([k] for k in large)):
        part = layout.only(members)
        tiles = 1 if together or part.size <= LARGE else -(-part.size // TILE)
        groups.append(Group(tuple(members), part, tiles))
    return tuple(group for group in groups if group.members)
