"""Checks of a graph before the linter relies on it: names, numbers of inputs, types of attributes.

These are what every reader of ONNX needs, TensorRT's parser included. onnx.checker asks for more, and real files that
TensorRT builds do not pass it; what it says is a finding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from q8trt.console.names import printable
from q8trt.files import MalformedError
from q8trt.files.onnx.size import nodes_of
from q8trt.lint.subgraphs import bodies

if TYPE_CHECKING:
    import onnx

ONNX_DOMAINS = ("", "ai.onnx")


def show(text: str, limit: int = 80) -> str:
    """Return a name out of the file in one line, cut where it is long."""
    return printable(text if len(text) <= limit else f"{text[:limit]}...")


def check_names(model: onnx.ModelProto) -> None:
    """Raise MalformedError where a name is not UTF-8: protobuf hands such a name out as bytes."""
    functions: list[Any] = list(model.functions)
    for graph in (model.graph, *functions):
        names = [value if isinstance(value, str) else value.name for value in (*graph.input, *graph.output)]
        names += [tensor.name for tensor in getattr(graph, "initializer", ())]
        for node in nodes_of(graph):
            names += [node.name, node.op_type, node.domain, *node.input, *node.output]
            names += [attribute.name for attribute in node.attribute]
        if not all(isinstance(name, str) for name in names):
            raise MalformedError("a name in it is not UTF-8")


def check_graph(graph: onnx.GraphProto, opset: int) -> None:
    """Check a graph in topological order.

    Raises:
        MalformedError: a node reads a tensor that nothing makes, a tensor is made twice, or a node of ONNX's own ops has
            too few or too many inputs or outputs, or an attribute of another type.
    """
    known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    known |= {tensor.values.name for tensor in graph.sparse_initializer}
    for node in graph.node:
        where = f"node {show(node.name)!r} ({show(node.op_type)})"
        for name in (*node.input, *bodies(node).captured):
            if name and name not in known:
                raise MalformedError(f"{where} reads {show(name)!r}, which nothing makes")
        if not any(node.output):
            raise MalformedError(f"{where} has no output")
        for name in node.output:
            if name and name in known:
                raise MalformedError(f"{where} makes {show(name)!r}, which is there already")
            known.add(name)
        check_node(node, opset, where)
    if missing := [value.name for value in graph.output if value.name not in known]:
        raise MalformedError(f"nothing makes its output {show(missing[0])!r}")


def check_node(node: onnx.NodeProto, opset: int, where: str) -> None:
    """Hold a node against the definition of its op, where ONNX has one."""
    definition = schema(node.op_type, opset) if node.domain in ONNX_DOMAINS else None
    if definition is None:
        return
    counts = ("input", node.input, definition.min_input, definition.max_input)
    for kind, names, least, most in (counts, ("output", node.output, definition.min_output, definition.max_output)):
        if not least <= len(names) <= most:
            raise MalformedError(f"{where} has {len(names)} {kind}s; expected {_range(least, most)}")
    for position, parameter in enumerate(definition.inputs[: len(node.input)]):
        if parameter.option == parameter.option.Single and not node.input[position]:
            raise MalformedError(f"{where} lacks its input {parameter.name}")
    if node.output and not node.output[0]:
        raise MalformedError(f"{where} has no name for its first output")
    for attribute in node.attribute:
        expected = definition.attributes.get(attribute.name)
        if expected is not None and attribute.type != int(expected.type.value):
            raise MalformedError(
                f"{where} has an attribute {show(attribute.name)} of another type than {expected.type.name}"
            )


def _range(least: int, most: int) -> str:
    if least == most:
        return str(least)
    return f"{least} to {most}" if most < 1000 else f"{least} or more"


def schema(op: str, opset: int) -> Any:
    """Return ONNX's definition of one of its own ops in an opset; None where it has none."""
    from onnx import defs

    opset = min(opset, defs.onnx_opset_version())
    return defs.get_schema(op, opset) if opset > 0 and defs.has(op, opset) else None
