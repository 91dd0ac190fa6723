"""The recurrent networks of the policies: an LSTM for coordinates, a GRU for any level."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import keras
from keras import ops

# Seeds of one policy's tensors lie this far apart from the next policy seed's.
_SEED_STRIDE = 1000


def weight_seeds(seed: int) -> Iterator[int]:
    """The seeds of one policy's tensors, in their order."""
    return count(seed * _SEED_STRIDE)


def _orthogonal(seed: int, shape: tuple[int, int]):
    """An orthogonal matrix; drawn in float32 where Keras' float type is a shorter one."""
    floatx = keras.config.floatx()
    drawn = keras.initializers.Orthogonal(seed=seed)(
        shape, floatx if floatx == "float64" else "float32"
    )
    return ops.cast(drawn, floatx)


@dataclass(frozen=True)
class CoordinateLSTM:
    """A stack of Keras' LSTM cells and a dense head, as a function of their weights.

    Tanh and sigmoid gates, Glorot-uniform kernels, orthogonal recurrent kernels, unit forget
    bias. Coordinates are the batch: they share the weights and never see each other.

    Features come first and coordinates last, the other way round than in Keras' cell, and a cell
    is one matrix product: a step takes 2.8 ms in place of 4.0 (18,122 coordinates, two cores),
    1.8 in place of 2.6 under XLA, and 6.1 in place of 6.9 with its backward pass.

    Attributes:
        inputs: Number of input features a coordinate.
        outputs: Number of outputs a coordinate.
        units: Units of each LSTM layer.
        layers: Number of LSTM layers.
    """

    inputs: int
    outputs: int
    units: int = 20
    layers: int = 2

    def initial_weights(self, seed: int, still: bool = False) -> list:
        """Fresh weights: kernel, recurrent kernel, bias of each cell; kernel, bias of the head.

        Args:
            seed: Of all that is drawn.
            still: Whether the head is zero, for outputs that are steps: with a random one, half of
                all policies go uphill, and meta-training spends dozens of updates on turning them
                round, not always with success (docs/method.md).
        """
        seeds, units, weights = weight_seeds(seed), self.units, []
        glorot = keras.initializers.GlorotUniform
        for k in range(self.layers):
            inputs = self.inputs if k == 0 else units
            weights += [
                glorot(next(seeds))((inputs, 4 * units)),
                _orthogonal(next(seeds), (units, 4 * units)),
                ops.concatenate([ops.zeros(units), ops.ones(units), ops.zeros(2 * units)]),
            ]
        head = ops.zeros((units, self.outputs))
        if not still:
            head = glorot(next(seeds))(head.shape)
        return [*weights, head, ops.zeros(self.outputs)]

    def weight_shapes(self) -> Iterator[tuple[int, ...]]:
        """The shapes of the weights, in their order."""
        for k in range(self.layers):
            inputs = self.inputs if k == 0 else self.units
            yield from ((n, 4 * self.units) for n in (inputs, self.units))
            yield (4 * self.units,)
        yield from ((self.units, self.outputs), (self.outputs,))

    def initial_memory(self, coordinates: int) -> dict:
        """Hidden and cell states [units, D] at rest."""
        return {
            f"{kind}{k}": ops.zeros((self.units, coordinates))
            for k in range(self.layers)
            for kind in ("hidden", "cell")
        }

    def __call__(self, weights: list, inputs, memory: dict) -> tuple:
        """Runs one step.

        Args:
            weights: As from `initial_weights`.
            inputs: [inputs, D].
            memory: As from `initial_memory`; what else is in it comes back as it is.

        Returns:
            Outputs [outputs, D] and the new memory.
        """
        *cells, head, shift = weights
        values, ones, memory = inputs, ops.ones_like(inputs[:1]), dict(memory)
        for k in range(self.layers):
            hidden, cell = f"hidden{k}", f"cell{k}"
            kernel, recurrent, bias = cells[3 * k : 3 * k + 3]
            # Joined after they are transposed: XLA's backward product is three times as slow when
            # it can fold the transposition into it.
            joined = [ops.transpose(kernel), ops.transpose(recurrent), bias[:, None]]
            gates = ops.matmul(
                ops.concatenate(joined, axis=1),
                ops.concatenate([values, memory[hidden], ones]),
            )
            enter, forget, candidate, leave = ops.split(gates, 4)
            kept = ops.sigmoid(forget) * memory[cell]
            memory[cell] = kept + ops.sigmoid(enter) * ops.tanh(candidate)
            values = memory[hidden] = ops.sigmoid(leave) * ops.tanh(memory[cell])
        return ops.matmul(ops.transpose(head), values) + shift[:, None], memory

    def steps(self, weights: list, inputs, memory: dict, rest: dict) -> tuple:
        """One step of outputs that move parameters: they are those in excess of a standstill.

        An LSTM with biases answers inputs of zero with something, always the same way, and adds it
        to the answers to all other inputs: every parameter would drift (docs/method.md). So what a
        coordinate gets whose inputs have been zero from the start is subtracted.

        Args:
            weights: As from `initial_weights`.
            inputs: [inputs, D].
            memory: As from `initial_memory`.
            rest: Memory of that one coordinate, as from `initial_memory(1)`.

        Returns:
            Outputs [outputs, D], the new memory, and that of the coordinate at rest.
        """
        outputs, memory = self(weights, inputs, memory)
        drift, rest = self(weights, ops.zeros_like(inputs[:, :1]), rest)
        return outputs - drift, memory, rest


@dataclass(frozen=True)
class GRU:
    """A GRU cell (Cho et al. 2014) as a function of its weights.

    The reset gate acts on the hidden state before its matrix product, as published: Keras' cell
    with `reset_after=False` (its default is True), with one bias for inputs and hidden state
    together. Glorot-uniform kernel, orthogonal recurrent kernel, zero bias.

    As in `CoordinateLSTM`, features come first; the columns are coordinates, tensors, or just one.

    Attributes:
        inputs: Number of input features a column.
        units: Number of hidden units a column.
    """

    inputs: int
    units: int

    def initial_weights(self, seeds: Iterator[int]) -> list:
        """Fresh weights: kernel, recurrent kernel, bias; `seeds` are from `weight_seeds`."""
        gates = 3 * self.units
        return [
            keras.initializers.GlorotUniform(next(seeds))((self.inputs, gates)),
            _orthogonal(next(seeds), (self.units, gates)),
            ops.zeros(gates),
        ]

    def weight_shapes(self) -> Iterator[tuple[int, ...]]:
        """The shapes of the weights, in their order."""
        gates = 3 * self.units
        yield from ((self.inputs, gates), (self.units, gates), (gates,))

    def __call__(self, weights: list, inputs, hidden):
        """Runs one step.

        Args:
            weights: As from `initial_weights`.
            inputs: [inputs, N].
            hidden: [units, N].

        Returns:
            The new hidden state [units, N].
        """
        kernel, recurrent, bias = weights
        kernel, recurrent, gates = ops.transpose(kernel), ops.transpose(recurrent), 2 * self.units
        seen = ops.matmul(kernel, inputs) + bias[:, None]
        update, reset = ops.split(
            ops.sigmoid(seen[:gates] + ops.matmul(recurrent[:gates], hidden)), 2
        )
        candidate = ops.tanh(seen[gates:] + ops.matmul(recurrent[gates:], reset * hidden))
        return update * hidden + (1 - update) * candidate
