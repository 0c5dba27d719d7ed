"""What every check is given, and how it reports."""

from __future__ import annotations

from dataclasses import dataclass, field

from q8trt.lint.attention import Verdict
from q8trt.lint.graph import Graph, Node
from q8trt.lint.report import Finding, LintConfig
from q8trt.lint.soundness import show
from q8trt.lint.structure import Structure

#: Characters of a finding: names in the file may be of any length.
_LONGEST = 400


@dataclass
class Context:
    """One model under the linter.

    Attributes:
        graph: the file.
        found: its parts.
        where: node -> block.
        roles: GEMM or BMM -> what it is called in its block.
        verdicts: Softmax -> whether its attention can be fused.
        types: compute op -> the type that it runs in.
        half: whether floating point is mostly FP16 or BF16.
        config: what the linter was told.
        findings: what the checks reported so far.
        purposeless: Q/DQ nodes found to do nothing.
    """

    graph: Graph
    found: Structure
    where: dict[Node, str]
    roles: dict[Node, str]
    verdicts: dict[Node, Verdict]
    types: dict[Node, str]
    half: bool
    config: LintConfig
    findings: list[Finding] = field(default_factory=list)
    purposeless: set[Node] = field(default_factory=set)

    def report(self, rule: str, level: str, what: str, node: Node | None = None) -> None:
        """Add a finding; `node` None for the graph as a whole."""
        block = "" if node is None else self.where[node]
        self.findings.append(Finding(rule, level, block, "" if node is None else node.name, show(what, _LONGEST)))

    @property
    def quantized(self) -> bool:
        """Return whether the graph or a subgraph holds any Q/DQ, or an op on integers in its place."""
        ops = (op for node in self.graph.nodes for op in (node.op, *(inner.op_type for inner in node.bodies.nodes)))
        return any("Quantize" in op or "Integer" in op or "QLinear" in op for op in ops)

    @property
    def sequence(self) -> int | None:
        """The longest sequence: what the linter was told, or the fixed size of the first input; None where not known."""
        if self.config.max_shapes is not None:
            return self.config.max_shapes[1]
        shape = self.graph.shape(self.graph.inputs[0]) if self.graph.inputs else None
        return shape[1] if shape and len(shape) == 2 else None
