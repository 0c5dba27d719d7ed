"""The blocks of a model and their nodes, from the order of the residual Adds.

Every residual Add closes a block: attention if a Softmax leads to it, else feed-forward. Nodes that lead to both inputs of the
first Add come before the layers (embeddings). Nodes that lead to both inputs of a later Add belong to the previous block.
"""

from __future__ import annotations

import onnx_ir as ir

from q8trt.lint.graph import Graph, Value
from q8trt.lint.report import EMBEDDINGS, HEAD, Place
from q8trt.lint.structure import Structure


def assign_blocks(graph: Graph, structure: Structure) -> tuple[list[Place], dict[ir.Node, Place]]:
    """Return the blocks in order, and node -> block. A graph without residual Adds is one block, "model"."""
    if not structure.residuals:
        model = Place("model")
        return [model], dict.fromkeys(graph.nodes, model)
    before = _ancestors(graph)

    def leading_to(value: Value) -> int:
        node = graph.producer(value)
        return 0 if node is None else before[graph.index[node]] | 1 << graph.index[node]

    softmaxes = sum(1 << graph.index[attention.softmax] for attention in structure.attentions)
    places, members, done, layer = [Place(EMBEDDINGS)], [0], 0, -1
    for residual in structure.residuals:
        left, right = (leading_to(value) for value in residual.node.inputs)
        common = left & right & ~done
        members[-1] |= common
        block = (left | right | 1 << graph.index[residual.node]) & ~done & ~common
        is_attention = bool(block & softmaxes)
        layer += is_attention or layer < 0
        places.append(Place("attention" if is_attention else "feed-forward", layer))
        members.append(block)
        done |= left | right | 1 << graph.index[residual.node]
    members[-1] |= _closing_norm(graph, structure, before, done)
    places.append(Place(HEAD))
    members.append(0)
    useful = 0
    for value in graph.outputs:
        useful |= leading_to(value)
    block_of: dict[ir.Node, Place] = {}
    for index, node in enumerate(graph.nodes):
        assigned = next((place for place, group in zip(places, members, strict=True) if group >> index & 1), None)
        if assigned is None and not useful >> index & 1:  # it leads to no output: take the block of its first producer
            producers = [producer for value in node.inputs if (producer := graph.producer(value)) is not None]
            assigned = block_of[producers[0]] if producers else None
        block_of[node] = assigned or places[-1]
    return places, block_of


def _ancestors(graph: Graph) -> list[int]:
    """Return the nodes that each node depends on, as the bits of an integer."""
    before: list[int] = []
    for node in graph.nodes:
        bits = 0
        for value in node.inputs:
            if (producer := graph.producer(value)) is not None:
                bits |= before[graph.index[producer]] | 1 << graph.index[producer]
        before.append(bits)
    return before


def _closing_norm(graph: Graph, structure: Structure, before: list[int], done: int) -> int:
    """Return the LayerNorm after the last residual Add, which belongs to its block, and the nodes between them, as bits."""
    last = graph.index[structure.residuals[-1].node]
    for norm in structure.norms:
        end = max(graph.index[node] for node in norm.nodes)
        if before[end] >> last & 1:
            return (before[end] | 1 << end) & ~done
    return 0
