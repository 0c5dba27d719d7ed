"""Which node belongs to which block, from the order of the residual Adds.

Every residual Add closes a block: attention if a Softmax leads to it, feed-forward otherwise. What leads to both inputs of
the first Add lies before the layers (embeddings); what leads to both inputs of a later one belongs to the block before.
"""

from __future__ import annotations

from q8trt.lint.graph import Graph, Node
from q8trt.lint.structure import Structure

EMBEDDINGS, HEAD, MODEL = "embeddings", "head", "model"


def assign_blocks(graph: Graph, found: Structure) -> tuple[list[str], dict[Node, str]]:
    """Names of the blocks in order, and node -> name."""
    if not found.residuals:
        return [MODEL], dict.fromkeys(graph.nodes, MODEL)
    before = _ancestors(graph)
    made = {name: node.index for name, node in graph.producers.items()}

    def leading_to(tensor: str) -> int:
        return before[made[tensor]] | 1 << made[tensor] if tensor in made else 0

    softmaxes = sum(1 << attention.softmax.index for attention in found.attentions)
    names, members, done, layer = [EMBEDDINGS], [0], 0, -1
    for residual in found.residuals:
        left, right = (leading_to(name) for name in residual.node.inputs)
        common = left & right & ~done
        members[-1] |= common
        own = (left | right | 1 << residual.node.index) & ~done & ~common
        is_attention = bool(own & softmaxes)
        layer += is_attention or layer < 0
        names.append(f"layer {layer} {'attention' if is_attention else 'feed-forward'}")
        members.append(own)
        done |= left | right | 1 << residual.node.index
    members[-1] |= _closing_norms(found, before, done)
    names.append(HEAD)
    members.append(0)
    useful = 0
    for name in graph.outputs:
        useful |= leading_to(name)
    where: dict[Node, str] = {}
    for node in graph.nodes:
        assigned = next((name for name, group in zip(names, members, strict=True) if group >> node.index & 1), None)
        if assigned is None and not useful >> node.index & 1:  # leads nowhere: it lies where it starts
            sources = [where[graph.producers[name]] for name in node.inputs if name in graph.producers]
            assigned = sources[0] if sources else None
        where[node] = assigned or HEAD
    return names, where


def _ancestors(graph: Graph) -> list[int]:
    """For each node the nodes that it depends on, as bits."""
    before: list[int] = []
    for node in graph.nodes:
        bits = 0
        for name in node.inputs:
            if (producer := graph.producers.get(name)) is not None:
                bits |= before[producer.index] | 1 << producer.index
        before.append(bits)
    return before


def _closing_norms(found: Structure, before: list[int], done: int) -> int:
    """The LayerNorm right after the last residual Add, which belongs to its block, and what lies between."""
    last = found.residuals[-1].node.index
    for norm in found.norms:
        end = max(node.index for node in norm.nodes)
        if before[end] >> last & 1:
            return (before[end] | 1 << end) & ~done
    return 0


def kind_of(name: str) -> str:
    """ "layer 3 attention" -> "attention"; other names as they are."""
    return name.split(" ", 2)[2] if name.startswith("layer ") else name
