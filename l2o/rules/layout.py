"""Layout: how a list of tensors lies in one flat vector."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

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

    def spread(self, values: Sequence):
        """A value a tensor as one a coordinate, [D]."""
        return np.repeat(np.asarray(values), self.sizes)

    def sums(self, function: Callable[..., Sequence], *vectors):
        """Sums over each tensor of what a coordinatewise function makes of vectors [D].

        Args:
            function: From as many arrays to a list of S arrays.
            *vectors: Its arguments.

        Returns:
            [S, K].
        """
        found = ops.stack(function(*vectors))
        ends = zip(self.offsets, self.sizes, strict=True)
        parts = [(found[:, start : start + size], size) for start, size in ends]
        # As products, which XLA computes faster than sums on a CPU.
        ones = lambda size: ops.ones((size,), found.dtype)  # noqa: E731
        return ops.stack([ops.matmul(part, ones(size)) for part, size in parts], axis=1)

    def over(self, values):
        """Values of each tensor, [..., K], as ones of each coordinate, [..., D]."""
        return ops.take(values, self.segments, axis=-1)

    def only(self, members: Sequence[int]) -> Layout:
        """The layout of some of the tensors."""
        return Layout(tuple(self.names[k] for k in members), tuple(self.shapes[k] for k in members))

    @cached_property
    def segments(self):
        """int32 [D]: which tensor each coordinate belongs to."""
        return self.spread(np.arange(self.tensors, dtype="int32"))

    @cached_property
    def places(self) -> list[np.ndarray]:
        """Where each tensor's coordinates lie, int32 [size] a tensor."""
        return np.split(np.arange(self.size, dtype="int32"), self.offsets[1:])

    @cached_property
    def ranks(self):
        """int32 [D]: the rank of each coordinate's tensor, at most `MAX_RANK`."""
        return self.spread(np.array([min(len(s), MAX_RANK) for s in self.shapes], dtype="int32"))

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


@dataclass(frozen=True, eq=False)
class Window(Layout):
    """Some consecutive coordinates of a layout, from a place that is known when the step is taken.

    It is what a coordinatewise rule needs to run on a part of the vector: its size, and what
    `spread` makes. Tensors cannot be joined or cut by it.

    Attributes:
        start: The first one, a scalar tensor; beyond the last coordinate is padding.
        length: How many.
    """

    start: Any = 0
    length: int = 0

    @property
    def size(self) -> int:
        return self.length

    def spread(self, values: Sequence):
        if self.tensors == 1:
            return np.repeat(np.asarray(values), self.length)
        whole = np.pad(super().spread(values), (0, self.length))
        return ops.slice(whole, (self.start,), (self.length,))
