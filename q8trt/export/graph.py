"""Functions that the passes share: reading and rewriting an `onnx_ir` graph.

Nodes are typed Any, because in `onnx_ir` each input is optional, while the passes match patterns with all inputs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

#: Metadata of a node: the torch module that it was traced from, such as "bert.encoder.layer.0.attention.self.query".
SCOPE = "q8trt.scope"
#: Metadata of a node: the factor that was folded into its module's output, a JSON list; with MODULES, one list for each module.
FACTOR = "q8trt.factor"
#: Metadata of a node of several outputs: the modules whose outputs they are, a JSON list.
MODULES = "q8trt.modules"


def constant(value: ir.Value | None) -> Any:
    """Return the array of an initializer; None for any other value."""
    if value is None or not value.is_initializer() or value.const_value is None:
        return None
    return value.const_value.numpy()


def new_constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Add an initializer and return it. A number is added to `name` if the graph has that name already."""
    unique, number = name, 0
    while unique in graph.initializers:
        number += 1
        unique = f"{name}.{number}"
    value = ir.val(unique, const_value=ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=unique))
    graph.register_initializer(value)
    return value


def producer(value: ir.Value | None, *op_types: str) -> Any:
    """Return the node that computes `value` if its type is one of `op_types`, else None."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type in op_types else None


def readers(value: ir.Value) -> list[Any]:
    """Return the nodes that read `value`. A node that reads it twice is listed twice."""
    return [node for node, _ in value.uses()]


def only_reader(value: ir.Value, *op_types: str) -> Any:
    """Return the only node that reads `value`; None if its type is not one of `op_types`, or `value` is a graph output."""
    uses = readers(value)
    if len(uses) != 1 or value.is_graph_output() or uses[0].op_type not in op_types:
        return None
    return uses[0]


def above_qdq(value: ir.Value | None) -> Any:
    """Return the input of the Q/DQ pair that computes `value`; `value` itself if there is none."""
    dequantize = producer(value, "DequantizeLinear")
    quantize = producer(dequantize.inputs[0], "QuantizeLinear") if dequantize is not None else None
    return value if quantize is None else quantize.inputs[0]


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """Return the value of an attribute, or `default` if it is not set."""
    present = node.attributes.get(name)
    return default if present is None else present.value


def operands(node: ir.Node | None) -> Any:
    """Return (computed input, array of the constant input) of a node with two inputs in either order.

    Return None unless exactly one of them is constant.
    """
    first, second = (None, None) if node is None else node.inputs[:2]
    if first is None or second is None:
        return None
    pairs = [(first, constant(second)), (second, constant(first))]
    constants = [(value, array) for value, array in pairs if array is not None]
    return constants[0] if len(constants) == 1 else None


def make(op_type: str, inputs: Sequence[ir.Value | None], like: ir.Node, **attributes: Any) -> ir.Node:
    """Insert a node with one output directly before `like`, in its scope, and return it."""
    node = ir.node(op_type, inputs, attributes)
    node.metadata_props[SCOPE] = like.metadata_props.get(SCOPE, "")
    graph: Any = like.graph
    graph.insert_before(like, node)
    return node


def replace(old: ir.Value, new: ir.Value) -> None:
    """Make all readers of `old` read `new`, also as a graph output. The node of `old` is removed if it is now unused."""
    node = old.producer()
    if old.is_graph_output():
        name, new.shape, new.type = old.name, old.shape, old.type
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name, new.name = None, name
    else:
        old.replace_all_uses_with(new)
    if node is not None and not any(output.uses() or output.is_graph_output() for output in node.outputs):
        remove(node)


def remove(node: ir.Node) -> None:
    """Remove an unused node from its graph. Raises ValueError if one of its outputs is read."""
    graph: Any = node.graph
    graph.remove(node, safe=True)


def nodes(graph: ir.Graph, *op_types: str) -> list[Any]:
    """Return the nodes of one of `op_types`, or all nodes, in order. The list stays valid while the graph changes."""
    return [node for node in graph if not op_types or node.op_type in op_types]


def power_of_two(values: np.ndarray) -> bool:
    """Return whether all of `values` are powers of two, also negative ones. A product with them is then exact."""
    return bool(np.all(np.abs(np.frexp(values)[0]) == 0.5))


def note_factor(node: ir.Node, factor: np.ndarray) -> None:
    """Record that the output of `node` is multiplied by `factor`, () or (features,), in addition to earlier factors."""
    before = np.array(json.loads(node.metadata_props.get(FACTOR, "[1.0]")))
    node.metadata_props[FACTOR] = json.dumps((before * factor).reshape(-1).tolist())
