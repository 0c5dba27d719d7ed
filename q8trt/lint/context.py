"""The facts that every check reads, and the list of findings that it adds to."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from q8trt.lint.attention import Verdict
from q8trt.lint.graph import Graph, inner_nodes, op_of
from q8trt.lint.report import Finding, LintConfig, Place
from q8trt.lint.rules import Level, level_of
from q8trt.lint.soundness import show
from q8trt.lint.structure import Structure

#: Largest number of characters of a finding, because names in the file may have any length.
_LONGEST = 400


@dataclass
class Context:
    """The facts about one model.

    Attributes:
        graph: the graph of the file.
        parts: its recognized parts.
        block_of: node -> block.
        roles: GEMM or BMM -> its name in its block.
        verdicts: Softmax -> the verdict on its attention.
        types: compute op -> the type that it runs in.
        half: whether at least as many compute ops are in FP16 or BF16 as in FP32.
        config: facts that the file does not contain.
        findings: the findings of the checks so far.
        purposeless: Q/DQ nodes without purpose.
    """

    graph: Graph
    parts: Structure
    block_of: dict[ir.Node, Place]
    roles: dict[ir.Node, str]
    verdicts: dict[ir.Node, Verdict]
    types: dict[ir.Node, str]
    half: bool
    config: LintConfig
    findings: list[Finding] = field(default_factory=list)
    purposeless: set[ir.Node] = field(default_factory=set)

    def report(self, rule: str, text: str, node: ir.Node | None = None, level: Level | None = None) -> None:
        """Add a finding. `node` is None for the graph as a whole, `level` is None for the usual level of the rule."""
        place, name = (None, "") if node is None else (self.block_of[node], node.name or "")
        self.findings.append(Finding(rule, level or level_of(rule), place, name, show(text, _LONGEST)))

    @property
    def quantized(self) -> bool:
        """Return whether the graph or a subgraph has any Q/DQ, or an integer op that replaces it."""
        ops = (op_of(each) for node in self.graph.nodes for each in (node, *inner_nodes(node)))
        return any("Quantize" in op or "Integer" in op or "QLinear" in op for op in ops)

    @property
    def sequence(self) -> int | None:
        """Return the longest sequence, from the configuration or from the fixed shape of the first input; None if not known."""
        if self.config.max_shapes is not None:
            return self.config.max_shapes[1]
        shape = self.graph.shape(self.graph.inputs[0]) if self.graph.inputs else None
        return shape[1] if shape and len(shape) == 2 else None
