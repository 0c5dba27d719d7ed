"""The bodies of If, Loop and Scan: what they read from outside, and what they hold.

The linter reads the main graph. For a subgraph it knows only the tensors that it reads and its ops, and a finding says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

QDQ = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class Bodies:
    """The subgraphs of one node.

    Attributes:
        nodes: all nodes in them, in subgraphs of subgraphs, too.
        captured: names of tensors that they read from outside, in order.
    """

    nodes: tuple[onnx.NodeProto, ...] = ()
    captured: tuple[str, ...] = ()

    @property
    def qdq_nodes(self) -> int:
        """Number of QuantizeLinear and DequantizeLinear nodes."""
        return sum(node.op_type in QDQ for node in self.nodes)


NONE = Bodies()


def graphs_of(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the subgraphs of `node`."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def bodies(node: onnx.NodeProto) -> Bodies:
    """Return what the subgraphs of `node` hold."""
    nodes: list[onnx.NodeProto] = []
    captured: dict[str, None] = {}
    for graph in graphs_of(node):
        held, names = _read(graph)
        nodes += held
        captured |= dict.fromkeys(names)
    return Bodies(tuple(nodes), tuple(captured)) if nodes or captured else NONE


def _read(graph: onnx.GraphProto) -> tuple[list[onnx.NodeProto], Iterable[str]]:
    """Return the nodes of a graph, and the names that it reads and does not define. protobuf bounds the depth."""
    defined = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    defined |= {tensor.values.name for tensor in graph.sparse_initializer}
    nodes: list[onnx.NodeProto] = []
    read: dict[str, None] = {}
    for node in graph.node:
        inner = bodies(node)
        nodes += [node, *inner.nodes]
        read |= dict.fromkeys([*node.input, *inner.captured])
        defined.update(node.output)
    read |= dict.fromkeys(value.name for value in graph.output)
    return nodes, [name for name in read if name and name not in defined]
