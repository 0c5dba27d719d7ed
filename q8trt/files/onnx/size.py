"""The limit on the nodes of an ONNX graph, checked before a library inlines its functions or walks its nodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from q8trt.files import MalformedError

#: Maximum number of nodes, including those of subgraphs and inlined functions. A BERT of 24 layers has about 3,000.
MAX_NODES = 20_000
_DEPTH = 64


def check_size(model: Any) -> None:
    """Raise MalformedError if the graph has more than `MAX_NODES` nodes, or a function calls itself."""
    functions = {(function.domain, function.name): function for function in model.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size_of(graph: Any, callers: tuple[tuple[str, str], ...]) -> int:
        total = 0
        for node in nodes_of(graph):
            key = node.domain, node.op_type
            if key in callers:
                raise MalformedError(f"its function {ascii(key[1])[:80]} calls itself")
            if key in functions and key not in sizes:
                if len(callers) >= _DEPTH:
                    raise MalformedError(f"its functions call each other more than {_DEPTH} levels deep")
                sizes[key] = size_of(functions[key], (*callers, key))
            total += 1 + sizes.get(key, 0)
            if total > MAX_NODES:
                raise MalformedError(f"it has more than {MAX_NODES:,} nodes; q8trt reads no larger graphs")
        return total

    size_of(model.graph, ())


def nodes_of(graph: Any) -> Iterator[Any]:
    """Yield the nodes of a GraphProto or FunctionProto and of its subgraphs."""
    return (node for each in graphs_of(graph) for node in each.node)


def graphs_of(*graphs: Any) -> Iterator[Any]:
    """Yield each GraphProto or FunctionProto and its subgraphs."""
    waiting = list(graphs)
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                waiting += [attribute.g] if attribute.HasField("g") else []
                waiting += attribute.graphs
