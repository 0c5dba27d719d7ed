"""Checks of a file's messages before onnx and onnx_ir open them: names, order, numbers of inputs, types of attributes.

Every reader of ONNX needs these, including TensorRT's parser. onnx.checker is stricter, and refuses some files that TensorRT
builds. Its verdict is therefore a finding, not an error.
"""

from __future__ import annotations

from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any

from q8trt.console.names import printable
from q8trt.files import MalformedError
from q8trt.files.onnx.size import nodes_of

if TYPE_CHECKING:
    import onnx

ONNX_DOMAINS = ("", "ai.onnx")
ANY_OPSET = 2**31 - 1


def show(text: str, limit: int = 80) -> str:
    """Return a name from the file in one printable line, cut after `limit` characters."""
    return printable(text if len(text) <= limit else f"{text[:limit]}...")


def check_names(model: onnx.ModelProto) -> None:
    """Raise MalformedError if a name is not UTF-8: protobuf returns such a name as bytes."""
    functions: list[Any] = list(model.functions)
    for graph in (model.graph, *functions):
        names = [value if isinstance(value, str) else value.name for value in (*graph.input, *graph.output)]
        names += [tensor.name for tensor in getattr(graph, "initializer", ())]
        for node in nodes_of(graph):
            names += [node.name, node.op_type, node.domain, *node.input, *node.output]
            names += [attribute.name for attribute in node.attribute]
        if not all(isinstance(name, str) for name in names):
            raise MalformedError("a name in it is not UTF-8")


def captured(node: onnx.NodeProto) -> dict[str, None]:
    """Return the names that the subgraphs of `node` read from outside, in order. protobuf limits the depth.

    Raises:
        MalformedError: a subgraph makes a tensor twice.
    """
    names: dict[str, None] = {}
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            names |= _undefined(graph)
    return names


def _undefined(graph: onnx.GraphProto) -> dict[str, None]:
    defined = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    defined |= {tensor.values.name for tensor in graph.sparse_initializer}
    read: dict[str, None] = {}
    for node in graph.node:
        read |= dict.fromkeys(node.input) | captured(node)
        for name in filter(None, node.output):
            if name in defined:
                raise MalformedError(
                    f"node {show(node.name)!r} in a subgraph makes {show(name)!r}, which is there already"
                )
            defined.add(name)
    read |= dict.fromkeys(value.name for value in graph.output)
    return dict.fromkeys(name for name in read if name and name not in defined)


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Put the nodes in topological order, which ONNX requires but not every tool keeps.

    Raises:
        MalformedError: the graph has a cycle, or a subgraph makes a tensor twice.
    """
    producers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    needs = [{producers[name] for name in (*node.input, *captured(node)) if name in producers} for node in graph.node]
    if all(max(needed, default=-1) < index for index, needed in enumerate(needs)):
        return
    nodes = list(graph.node)
    try:
        order = list(TopologicalSorter(dict(enumerate(needs))).static_order())
    except CycleError as error:
        node = nodes[min(error.args[1])]
        raise MalformedError(f"its graph has a cycle at {show(node.name or node.op_type)}") from None
    del graph.node[:]
    graph.node.extend(nodes[index] for index in order)


def check_graph(graph: onnx.GraphProto, opset: int) -> None:
    """Check a graph, whose nodes are in topological order.

    Raises:
        MalformedError: a node or an output of the graph needs a tensor that nothing makes, a tensor is made twice, a node has
            no output, or a node of ONNX's own ops has too few or too many inputs or outputs, lacks a required one, or has an
            attribute of another type.
    """
    known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    known |= {tensor.values.name for tensor in graph.sparse_initializer}
    for node in graph.node:
        label = f"node {show(node.name)!r} ({show(node.op_type)})"
        for name in (*node.input, *captured(node)):
            if name and name not in known:
                raise MalformedError(f"{label} reads {show(name)!r}, which nothing makes")
        if not any(node.output):
            raise MalformedError(f"{label} has no output")
        for name in node.output:
            if name and name in known:
                raise MalformedError(f"{label} makes {show(name)!r}, which is there already")
            known.add(name)
        _check_node(node, opset, label)
    if missing := [value.name for value in graph.output if value.name not in known]:
        raise MalformedError(f"nothing makes its output {show(missing[0])!r}")


def _check_node(node: onnx.NodeProto, opset: int, label: str) -> None:
    """Compare a node with ONNX's definition of its op, if there is one. If the opset lacks the op, use the newest one."""
    is_onnx = node.domain in ONNX_DOMAINS
    definition = (schema(node.op_type, opset) or schema(node.op_type, ANY_OPSET)) if is_onnx else None
    if definition is None:
        return
    counts = ("input", node.input, definition.min_input, definition.max_input)
    for kind, names, least, most in (counts, ("output", node.output, definition.min_output, definition.max_output)):
        if not least <= len(names) <= most:
            raise MalformedError(f"{label} has {len(names)} {kind}s; expected {_range(least, most)}")
    for position, parameter in enumerate(definition.inputs[: len(node.input)]):
        if parameter.option == parameter.option.Single and not node.input[position]:
            raise MalformedError(f"{label} lacks its input {parameter.name}")
    if node.output and not node.output[0]:
        raise MalformedError(f"{label} has no name for its first output")
    for attribute in node.attribute:
        expected = definition.attributes.get(attribute.name)
        if expected is not None and attribute.type != int(expected.type.value):
            raise MalformedError(
                f"{label} has an attribute {show(attribute.name)} of another type than {expected.type.name}"
            )


def _range(least: int, most: int) -> str:
    if least == most:
        return str(least)
    return f"{least} to {most}" if most < 1000 else f"{least} or more"


@lru_cache(4096)
def schema(op: str, opset: int) -> Any:
    """Return the definition of one of ONNX's own ops in an opset; None if the opset does not define it."""
    from onnx import defs

    opset = min(opset, defs.onnx_opset_version())
    return defs.get_schema(op, opset) if opset > 0 and defs.has(op, opset) else None
