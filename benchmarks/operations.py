"""Counts the floating-point operations of the convolutions and matrix products in a graph.

Of a product of n multiplications, 2 n are counted: additions too. Nothing else is counted, and each
branch and loop body only once, so a loop must be traced with one turn. What no output needs is left
out, in functions that are called as well, as TensorFlow and XLA leave it out. Where a convolution
pads, products with the padding are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import prod


def count_operations(function) -> Counter[str]:
    """Operations of one call of a function, by the kind of operation.

    Args:
        function: A `tf.types.experimental.ConcreteFunction`, of static shapes where it matters.

    Raises:
        ValueError: If the shape of a product is not known.
    """
    return _count(function.graph, function.graph.outputs)[0]


def _count(graph, outputs) -> tuple[Counter[str], list[int]]:
    """Operations that `outputs` take, and the numbers of the graph's inputs that they need."""
    total, needed = Counter(), {id(x) for x in outputs}
    for op in reversed(graph.get_operations()):
        used = [k for k, x in enumerate(op.outputs) if id(x) in needed]
        if not used:
            continue
        inputs = op.inputs
        if op.type == "IdentityN":
            inputs = [inputs[k] for k in used]
        elif op.type in ("PartitionedCall", "StatefulPartitionedCall"):
            inner = _function(graph, op, "f")
            counted, numbers = _count(inner, [inner.outputs[k] for k in used])
            total += counted
            inputs = [inputs[k] for k in numbers]
        elif op.type in ("If", "StatelessIf", "While", "StatelessWhile"):
            for name in ("body",) if "While" in op.type else ("then_branch", "else_branch"):
                inner = _function(graph, op, name)
                total += _count(inner, inner.outputs)[0]
        elif op.type in PRODUCTS:
            total[op.type] += PRODUCTS[op.type](op)
        needed.update(id(x) for x in inputs)
    return total, [k for k, x in enumerate(graph.inputs) if id(x) in needed]


def _function(graph, op, attribute: str):
    return graph._get_function(op.get_attr(attribute).name).graph


def _shape(tensor) -> list[int]:
    if not tensor.shape.is_fully_defined():
        raise ValueError(f"Products are counted where shapes are static. Received: {tensor}")
    return tensor.shape.as_list()


def _product(transposed: str) -> Callable:
    """Each output is a sum over the rows of the second factor."""

    def operations(op) -> int:
        axis = -1 if op.get_attr(transposed) else -2
        return 2 * prod(_shape(op.outputs[0])) * _shape(op.inputs[1])[axis]

    return operations


def _convolution(result: Callable, kernel: Callable) -> Callable:
    """Each element of the convolution's result is a sum over the kernel of its channel."""
    return lambda op: 2 * prod(_shape(result(op))) * prod(_shape(kernel(op))[:-1])


PRODUCTS = {
    "MatMul": _product("transpose_b"),
    "BatchMatMulV2": _product("adj_y"),
    "BatchMatMulV3": _product("adj_y"),
    "Conv2D": _convolution(lambda op: op.outputs[0], lambda op: op.inputs[1]),
    "Conv2DBackpropInput": _convolution(lambda op: op.inputs[2], lambda op: op.inputs[1]),
    "Conv2DBackpropFilter": _convolution(lambda op: op.inputs[2], lambda op: op.outputs[0]),
}
