"""The LSTM that every recurrent policy runs on each coordinate."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import keras
from keras import ops

# Seeds of one policy's tensors lie this far apart from the next policy seed's.
_SEED_STRIDE = 1000


@dataclass(frozen=True)
class CoordinateLSTM:
    """Stacked Keras LSTM cells and a dense head, called with their weights as an argument.

    Tanh and sigmoid gates, Glorot-uniform kernels, orthogonal recurrent kernels, unit forget
    bias. Coordinates are the batch: they share the weights and never see each other.

    Attributes:
        inputs: Number of input features a coordinate.
        outputs: Number of outputs a coordinate.
        units: Units of each LSTM layer.
        layers: Number of LSTM layers.
        activation: Keras activation of the dense head, or None.
    """

    inputs: int
    outputs: int
    units: int = 20
    layers: int = 2
    activation: str | None = None

    @cached_property
    def _layers(self) -> list[keras.layers.Layer]:
        return self._build(seed=0)

    def _build(self, seed: int) -> list[keras.layers.Layer]:
        dtype, first = keras.config.floatx(), seed * _SEED_STRIDE
        stack = []
        for k in range(self.layers):
            cell = keras.layers.LSTMCell(
                self.units,
                dtype=dtype,
                kernel_initializer=keras.initializers.GlorotUniform(first + 2 * k),
                recurrent_initializer=keras.initializers.Orthogonal(seed=first + 2 * k + 1),
            )
            cell.build((None, self.inputs if k == 0 else self.units))
            stack.append(cell)
        head = keras.layers.Dense(
            self.outputs,
            activation=self.activation,
            dtype=dtype,
            kernel_initializer=keras.initializers.GlorotUniform(first + 2 * self.layers),
        )
        head.build((None, self.units))
        return [*stack, head]

    def initial_weights(self, seed: int) -> list:
        """Fresh weights: kernel, recurrent kernel, bias of each cell; kernel, bias of the head."""
        return [
            ops.convert_to_tensor(variable.numpy())
            for layer in self._build(seed)
            for variable in layer.trainable_variables
        ]

    def initial_memory(self, coordinates: int) -> dict:
        """Hidden and cell states [D, units] at rest."""
        # The layers hold variables. Made here they are not made first while a step is compiled,
        # which fails on several replicas.
        cells = self._layers[:-1]
        return {
            f"{kind}{k}": ops.zeros((coordinates, cell.units))
            for k, cell in enumerate(cells)
            for kind in ("hidden", "cell")
        }

    def __call__(self, weights: list, inputs, memory: dict) -> tuple:
        """Runs one step.

        Args:
            weights: As from `initial_weights`.
            inputs: [D, inputs].
            memory: As from `initial_memory`.

        Returns:
            Outputs [D, outputs] and the new memory.
        """
        *cells, head = self._layers
        values, memory, rest = inputs, dict(memory), list(weights)
        for k, cell in enumerate(cells):
            mine, rest = rest[:3], rest[3:]
            states = [memory[f"hidden{k}"], memory[f"cell{k}"]]
            # The cell's dropout seed is a non-trainable variable and must be passed along.
            (values, (hidden, carry)), _ = cell.stateless_call(
                mine, [v.value for v in cell.non_trainable_variables], values, states
            )
            memory[f"hidden{k}"], memory[f"cell{k}"] = hidden, carry
        output, _ = head.stateless_call(rest, [], values)
        return output, memory
