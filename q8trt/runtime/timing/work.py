"""The arithmetic of an encoder. Its matrix products are counted, so that a time can be given as a rate.

For a sequence of S tokens (a multiplication and an addition are 2 operations, as in every vendor's peak figures):

    linears     2 S W    W: elements of the weights that each token is multiplied with
    attention   4 S^2 A  A: the width of Q, K and V, summed over the layers; Q K^T and P V take 2 S^2 A each

Pooler and head read one token of a sequence, less than 0.01% of the work. They are left out, as are embeddings, softmax,
LayerNorm and GELU.
BERT-base at 128 tokens: 22.35 GFLOP, BERT-large: 78.92.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from q8trt.runtime.timing.latency import Latency


@dataclass(frozen=True)
class Work:
    """W and A of the module's formula."""

    weights: int
    attention_width: int

    @classmethod
    def of_encoder(cls, layers: int, hidden_size: int, intermediate_size: int) -> Work:
        """Return the work of a BERT encoder: Q, K, V and attention output, and two feed-forward linears, in each layer."""
        weights = 4 * hidden_size**2 + 2 * hidden_size * intermediate_size
        return cls(layers * weights, layers * hidden_size)

    def flop(self, batch: int, sequence: int) -> int:
        """Return the operations of one batch of full-length sequences."""
        return batch * (2 * sequence * self.weights + 4 * sequence**2 * self.attention_width)


def work_of_onnx(path: str | Path) -> Work | None:
    """Return the work of an exported encoder, read from its graph; None if the graph does not show it.

    Args:
        path: an ONNX file; its weights are not read.

    Raises:
        EngineError: the file is missing or is not an ONNX file.
    """
    from q8trt.lint.graph import operand, read_graph
    from q8trt.lint.structure import find_structure

    graph = read_graph(path)
    parts = find_structure(graph)
    weights = width = 0
    for gemm in parts.gemms:
        output = graph.shape(gemm.node.outputs[0])
        if output is None or not graph.size(gemm.weight):
            return None
        if len(output) == 3:  # (batch, sequence, channels): each token; pooler and head have (batch, channels)
            weights += graph.size(gemm.weight)
    for attention in parts.attentions:
        values = graph.shape(operand(attention.context.node, 1)) if attention.context else None
        if values is None or len(values) != 4 or values[1] is None or values[3] is None:
            return None
        width += values[1] * values[3]  # (batch, heads, sequence, head size)
    return Work(weights, width) if weights and width else None


def rated(latency: Latency, work: Work | None, peak: float | None) -> Latency:
    """Return `latency` with the rate of the model's matrix products and its share of `peak` (10^12 operations a second).

    None for `work` or `peak` means unknown; each figure that depends on it is then None.
    """
    tops = work.flop(latency.batch, latency.sequence) / (latency.compute_ms * 1e9) if work else None
    return replace(latency, gemm_tops=tops, peak_share=tops / peak if tops is not None and peak else None)
