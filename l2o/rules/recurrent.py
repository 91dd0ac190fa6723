"""The LSTM that every recurrent policy runs on each coordinate."""

from __future__ import annotations

from dataclasses import dataclass

import keras
from keras import ops

# Seeds of one policy's tensors lie this far apart from the next policy seed's.
_SEED_STRIDE = 1000


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
        activation: Keras activation of the dense head, elementwise, or None.
    """

    inputs: int
    outputs: int
    units: int = 20
    layers: int = 2
    activation: str | None = None

    def initial_weights(self, seed: int) -> list:
        """Fresh weights: kernel, recurrent kernel, bias of each cell; kernel, bias of the head."""
        first, units, weights = seed * _SEED_STRIDE, self.units, []
        glorot, orthogonal = keras.initializers.GlorotUniform, keras.initializers.Orthogonal
        for k in range(self.layers):
            inputs = self.inputs if k == 0 else units
            weights += [
                glorot(first + 2 * k)((inputs, 4 * units)),
                orthogonal(seed=first + 2 * k + 1)((units, 4 * units)),
                ops.concatenate([ops.zeros(units), ops.ones(units), ops.zeros(2 * units)]),
            ]
        head = glorot(first + 2 * self.layers)((units, self.outputs))
        return [*weights, head, ops.zeros(self.outputs)]

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
            memory: As from `initial_memory`.

        Returns:
            Outputs [outputs, D] and the new memory.
        """
        *cells, kernel, bias = weights
        values, ones, memory = inputs, ops.ones_like(inputs[:1]), dict(memory)
        for k in range(self.layers):
            hidden, cell = f"hidden{k}", f"cell{k}"
            kernels, biases = ops.concatenate(cells[3 * k : 3 * k + 2]), cells[3 * k + 2]
            gates = ops.matmul(
                ops.transpose(ops.concatenate([kernels, biases[None]])),
                ops.concatenate([values, memory[hidden], ones]),
            )
            enter, forget, candidate, leave = ops.split(gates, 4)
            kept = ops.sigmoid(forget) * memory[cell]
            memory[cell] = kept + ops.sigmoid(enter) * ops.tanh(candidate)
            values = memory[hidden] = ops.sigmoid(leave) * ops.tanh(memory[cell])
        outputs = ops.matmul(ops.transpose(kernel), values) + bias[:, None]
        return keras.activations.get(self.activation)(outputs), memory
