"""Layout: how a list of tensors lies in one flat vector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from keras import ops

MAX_RANK = 4  # ranks are told apart from 0 to here; larger ones count as this one


@dataclass(frozen=True)
class Layout:
    """The K tensors of a network and their places in a vector of D coordinates.

    Attributes:
        names: One name a tensor.
        shapes: One static shape a tensor; scalars and empty tensors are allowed.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, tensors: Sequence, names: Sequence[str] | None = None) -> Layout:
        """The layout of `tensors`, anything with a static `shape`."""
        names = names if names is not None else [f"tensor_{k}" for k in range(len(tensors))]
        return cls(tuple(names), tuple(tuple(int(n) for n in t.shape) for t in tensors))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of coordinates of each tensor."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each tensor starts in the flat vector."""
        return tuple(sum(self.sizes[:k]) for k in range(len(self.sizes)))

    @property
    def size(self) -> int:
        """D, the number of coordinates."""
        return sum(self.sizes)

    @property
    def tensors(self) -> int:
        """K, the number of tensors."""
        return len(self.shapes)

    @cached_property
    def segments(self) -> np.ndarray:
        """int32 [D]: which tensor each coordinate belongs to."""
        return np.repeat(np.arange(self.tensors, dtype="int32"), self.sizes)

    @cached_property
    def ranks(self) -> np.ndarray:
        """int32 [D]: the rank of each coordinate's tensor, at most `MAX_RANK`."""
        ranks = [min(len(shape), MAX_RANK) for shape in self.shapes]
        return np.repeat(np.array(ranks, dtype="int32"), self.sizes)

    def pieces(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """Where coordinates `start` to `stop` lie: tensor, and its coordinates from and to."""
        cuts = [
            (k, max(start - offset, 0), min(stop - offset, size))
            for k, (offset, size) in enumerate(zip(self.offsets, self.sizes, strict=True))
        ]
        return [(k, first, last) for k, first, last in cuts if first < last]

    def block(self, start: int, stop: int) -> Layout:
        """The layout of coordinates `start` to `stop` alone; a tensor that is cut keeps its rank.

        It is what a coordinatewise rule needs to run on a part of the vector.
        """
        names, shapes = [], []
        for k, first, last in self.pieces(start, stop):
            names.append(self.names[k])
            ones = (1,) * (len(self.shapes[k]) - 1)
            cut = last - first < self.sizes[k]
            shapes.append((last - first, *ones) if cut else self.shapes[k])
        return Layout(tuple(names), tuple(shapes))

    def flatten(self, tensors: Sequence):
        """Joins K tensors into one vector [D].

        Raises:
            ValueError: If the shapes are not this layout's.
        """
        shapes = tuple(tuple(t.shape) for t in tensors)
        if shapes != self.shapes:
            raise ValueError(f"Expected tensors of shapes {self.shapes}. Received: {shapes}")
        return ops.concatenate([ops.reshape(t, (-1,)) for t in tensors], axis=0)

    def unflatten(self, vector) -> list:
        """Cuts a vector [D] into the K tensors.

        Raises:
            ValueError: If the vector is known to be of another length.
        """
        if vector.shape[0] not in (None, self.size):
            raise ValueError(f"Expected a vector of {self.size}. Received: {vector.shape}")
        return [
            ops.reshape(vector[start : start + size], shape)
            for start, size, shape in zip(self.offsets, self.sizes, self.shapes, strict=True)
        ]
