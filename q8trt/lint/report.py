"""What the linter takes and gives: plain frozen dataclasses, ready for JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from q8trt.errors import ConfigError
from q8trt.lint.rules import RULES

#: From worst to mildest. error: TensorRT refuses the graph, or computes something else than it says; warning: slower, larger
#: or less accurate than it could be; info: worth knowing.
LEVELS = ("error", "warning", "info")


@dataclass(frozen=True)
class LintConfig:
    """What the linter is told beside the file.

    Attributes:
        max_shapes: the largest (batch, sequence) of the engine's optimization profiles; None where there is no profile.

    Raises:
        ConfigError: a size is below 1.
    """

    max_shapes: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.max_shapes is not None and (len(self.max_shapes) != 2 or min(self.max_shapes) < 1):
            raise ConfigError(f"max_shapes must be a positive batch and sequence; got {self.max_shapes}")


@dataclass(frozen=True)
class Item:
    """One part of a block: its `label` ("query GEMM"), the `node`, and `what` it does ("INT8 x INT8")."""

    label: str
    node: str
    what: str


@dataclass(frozen=True)
class Block:
    """A piece of the model: `name` as in "layer 0 attention", `kind` the same without the number, its items in order."""

    name: str
    kind: str
    items: list[Item]


@dataclass(frozen=True)
class Finding:
    """One thing to know or to change.

    Attributes:
        rule: stable id, a key of `q8trt.lint.rules.RULES`.
        level: one of LEVELS.
        block: the block that it is in; "" for the graph as a whole.
        node: the node; "" for the graph as a whole.
        what: what is so.
    """

    rule: str
    level: str
    block: str
    node: str
    what: str

    @property
    def why(self) -> str:
        """Why it matters for TensorRT."""
        return RULES[self.rule].why

    @property
    def fix(self) -> str:
        """How to put it right, in one line."""
        return RULES[self.rule].fix


@dataclass(frozen=True)
class Forecast:
    """What TensorRT is expected to run, counted in the graph.

    A *compute op* is a node that does arithmetic on activations: GEMM, BMM, Add (of biases, residuals or the mask), Mul, Div,
    Softmax, LayerNormalization, Gelu and so on; the nodes of a decomposed LayerNorm or GELU count one each. None are: Q/DQ,
    Cast, ops that only move data (Reshape, Transpose, Gather, Concat ...), and whatever is computed from the integer inputs
    alone (mask, positions, shapes). An activation is what the rows gathered from an embedding table, or a float input, become.

    Attributes:
        layers: attention blocks.
        gemms: products of an activation and a constant; Conv counts as one.
        int8_gemms: those fed INT8 on both sides: activation by one scale, weight by one or by one per output channel.
        bmms: products of two activations.
        int8_bmms: those fed INT8 on both sides.
        residual_adds: Adds of two activations that a LayerNorm reads.
        int8_residual_adds: those with two INT8 inputs.
        fusable_attentions: attentions that meet the documented conditions for one fused kernel, in INT8 where any of their
            inputs is quantized, else in FP16 or BF16.
        embeddings: tables that rows are gathered from.
        int8_embeddings: those stored in INT8 as TensorRT takes them, DequantizeLinear -> Gather.
        fp32_compute_ops: names of the compute ops in FP32.
        compute_ops_by_type: how many compute ops run in "int8" (products and residual Adds fed INT8 on both sides), "fp16",
            "fp32", and in other types where there are any.
        qdq_nodes: QuantizeLinear and DequantizeLinear nodes.
        dangling_qdq: those without purpose: what they feed cannot run in INT8, they repeat another one, or a
            QuantizeLinear has no DequantizeLinear.
        int8_weight_bytes: constants of 8-bit integers with two dimensions or more, as stored.
        float_weight_bytes: floating-point constants, as stored.
        float_weights_behind_quantizer: float constants that a QuantizeLinear reads.
    """

    layers: int
    gemms: int
    int8_gemms: int
    bmms: int
    int8_bmms: int
    residual_adds: int
    int8_residual_adds: int
    fusable_attentions: int
    embeddings: int
    int8_embeddings: int
    fp32_compute_ops: list[str]
    compute_ops_by_type: dict[str, int]
    qdq_nodes: int
    dangling_qdq: int
    int8_weight_bytes: int
    float_weight_bytes: int
    float_weights_behind_quantizer: int


@dataclass(frozen=True)
class LintReport:
    """What the linter says of one file.

    Attributes:
        path: the ONNX file.
        producer: what wrote it.
        opset: version of ONNX's operators.
        max_shapes: the (batch, sequence) that it was judged for; None where none was given.
        forecast: what TensorRT is expected to run, in numbers.
        blocks: embeddings, layers and head, in order.
        findings: the worst first, then in the order of the graph.
    """

    path: str
    producer: str
    opset: int
    max_shapes: tuple[int, int] | None
    forecast: Forecast
    blocks: list[Block]
    findings: list[Finding]

    @property
    def worst(self) -> str | None:
        """The worst level among the findings; None where there are none."""
        return next((level for level in LEVELS if self.count(level)), None)

    def count(self, level: str) -> int:
        """How many findings are of this level."""
        return sum(finding.level == level for finding in self.findings)

    def reaches(self, level: str) -> bool:
        """Whether a finding is at `level` or worse."""
        return any(self.count(each) for each in LEVELS[: LEVELS.index(level) + 1])

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data; each finding with why it matters and how to fix it."""
        data = dataclasses.asdict(self)
        data["worst"] = self.worst
        data["findings"] = [{**dataclasses.asdict(each), "why": each.why, "fix": each.fix} for each in self.findings]
        return data
