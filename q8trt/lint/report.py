"""The linter's configuration and its report, as frozen dataclasses."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any

from q8trt.errors import ConfigError
from q8trt.lint.rules import LEVELS, RULES, Level


@dataclass(frozen=True)
class LintConfig:
    """Facts about the engine that the file does not contain.

    Attributes:
        max_shapes: the largest (batch, sequence) of the engine's optimization profiles; None if there is no profile.

    Raises:
        ConfigError: a size is below 1.
    """

    max_shapes: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.max_shapes is not None and (len(self.max_shapes) != 2 or min(self.max_shapes) < 1):
            raise ConfigError(f"max_shapes must be a positive batch and sequence; got {self.max_shapes}")


EMBEDDINGS, HEAD = "embeddings", "head"


@dataclass(frozen=True)
class Place:
    """A block of the model: "embeddings", "head" or "model", or "attention" or "feed-forward" of a numbered layer."""

    kind: str
    layer: int | None = None

    @property
    def name(self) -> str:
        """Return the name, such as "layer 0 attention"."""
        return self.kind if self.layer is None else f"layer {self.layer} {self.kind}"


class SiteKind(StrEnum):
    """The kinds of parts for which the linter makes a forecast."""

    EMBEDDING = "embedding"
    GEMM = "GEMM"
    BMM = "attention product"
    ATTENTION = "fused attention"
    RESIDUAL = "residual Add"


@dataclass(frozen=True)
class Site:
    """A part of a graph, with the linter's forecast.

    Attributes:
        kind: its kind.
        name: its block and its name there, such as "layer 0 attention: query GEMM".
        nodes: names of its ONNX nodes: one, or the two products of an attention.
        forecast: the type that it runs in, such as "INT8" or "FP16"; for an attention `FUSED` or `NOT_FUSED`.
    """

    kind: SiteKind
    name: str
    nodes: tuple[str, ...]
    forecast: str


FUSED, NOT_FUSED = "fused", "not fused"

#: The kinds of parts of a block.
Part = Enum("Part", "TABLE GEMM BMM KEY_TRANSPOSE SOFTMAX ATTENTION RESIDUAL NORM GELU ACTIVATION")
#: The parts that TensorRT can run in INT8.
_INT8_PARTS = (Part.GEMM, Part.BMM, Part.RESIDUAL)


@dataclass(frozen=True)
class Item:
    """One part of a block.

    Attributes:
        part: its kind.
        label: its name in the block, such as "query GEMM".
        node: the name of its node.
        text: the forecast in a few words, such as "INT8 x INT8".
        int8: whether it runs in INT8; always False except for products and residual Adds.
        dtype: the float type of a Softmax, LayerNorm, GELU or other activation function, such as "FP16"; "" for other parts.
        note: a detail of such a part, such as "in 9 ops".
        plural: `text` for several tables, such as "INT8 tables".
    """

    part: Part
    label: str
    node: str
    text: str
    int8: bool = False
    dtype: str = ""
    note: str = ""
    plural: str = ""


@dataclass(frozen=True)
class Block:
    """A block of the model and its items in order."""

    place: Place
    items: list[Item]

    @property
    def name(self) -> str:
        """Return the name of its place."""
        return self.place.name


@dataclass(frozen=True)
class Finding:
    """One remark on a graph, or one fault in it.

    Attributes:
        rule: stable id, a key of `q8trt.lint.rules.RULES`.
        level: one of LEVELS.
        place: the block of the node; None for the graph as a whole.
        node: the name of the node; "" for the graph as a whole.
        text: the facts, in a few words.
    """

    rule: str
    level: Level
    place: Place | None
    node: str
    text: str

    @property
    def block(self) -> str:
        """Return the name of its place; "" for the graph as a whole."""
        return "" if self.place is None else self.place.name

    @property
    def why(self) -> str:
        """Return the reason why it matters for TensorRT."""
        return RULES[self.rule].why

    @property
    def fix(self) -> str:
        """Return the fix, in one line."""
        return RULES[self.rule].fix


@dataclass(frozen=True)
class Forecast:
    """The work that TensorRT is expected to run, counted in the graph.

    A *compute op* is a node that does arithmetic on activations: GEMM, BMM, Add (of biases, residuals or the mask), Mul, Div,
    Softmax, LayerNormalization, Gelu and so on. Each node of a decomposed LayerNorm or GELU counts as one. Q/DQ, Cast, ops that
    only move data (Reshape, Transpose, Gather, Concat ...), and computations on the integer inputs only (mask, positions,
    shapes) are not compute ops. An activation is a value computed from the rows of an embedding table, or from a float input.

    Attributes:
        layers: attentions, one for each Softmax of activations.
        gemms: products of an activation and a constant; Conv counts as one.
        int8_gemms: those with INT8 on both sides: one scale for the activation, one or one per output channel for the weight.
        bmms: products of two activations.
        int8_bmms: those with INT8 on both sides.
        residual_adds: Adds of two activations, at least one behind a product, that a LayerNorm reads.
        int8_residual_adds: those with two INT8 inputs.
        fusable_attentions: attentions that meet the documented conditions for one fused kernel: in INT8 if any input is
            quantized, else in FP16 or BF16.
        embeddings: Gathers of rows from a table, without those that are only added to attention scores.
        int8_embeddings: those with a table in INT8 in the form that TensorRT accepts, DequantizeLinear -> Gather.
        fp32_compute_ops: names of the compute ops in FP32.
        compute_ops_by_type: number of compute ops in "int8" (products and residual Adds with INT8 on both sides), "fp16",
            "fp32", and in other types if there are any.
        qdq_nodes: QuantizeLinear and DequantizeLinear nodes.
        dangling_qdq: Q/DQ nodes without purpose. Their reader cannot run in INT8, they repeat another pair, or a
            QuantizeLinear has no DequantizeLinear.
        int8_weight_bytes: bytes of the constants of 8-bit integers with two dimensions or more.
        float_weight_bytes: bytes of the floating-point constants.
        float_weights_behind_quantizer: constants with two dimensions or more that a QuantizeLinear reads.
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
    """The linter's report on one file.

    Attributes:
        path: the ONNX file.
        producer: the program that wrote it.
        opset: version of ONNX's operators.
        max_shapes: the largest (batch, sequence) that the forecast assumes; None if none was given.
        forecast: the expected work, in numbers.
        blocks: embeddings, layers and head, in order.
        findings: the worst first, then in the order of the checks.
    """

    path: str
    producer: str
    opset: int
    max_shapes: tuple[int, int] | None
    forecast: Forecast
    blocks: list[Block]
    findings: list[Finding]

    @property
    def in_float(self) -> tuple[str, ...]:
        """Return the parts in floating point that other layers run in INT8, such as "layer 0 attention: value GEMM".

        These parts are products and residual Adds.
        """
        parts = [(block, item) for block in self.blocks for item in block.items if item.part in _INT8_PARTS]
        int8 = {(block.place.kind, item.label) for block, item in parts if item.int8}
        return tuple(
            f"{block.name}: {item.label}"
            for block, item in parts
            if not item.int8 and (block.place.kind, item.label) in int8
        )

    @property
    def worst(self) -> Level | None:
        """Return the worst level among the findings; None if there are none."""
        return next((level for level in LEVELS if self.count(level)), None)

    def count(self, level: Level) -> int:
        """Return the number of findings of this level."""
        return sum(finding.level == level for finding in self.findings)

    def reaches(self, level: Level) -> bool:
        """Return whether a finding is at `level` or worse."""
        return any(self.count(each) for each in LEVELS[: LEVELS.index(level) + 1])

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data, with the reason and the fix of each finding and the worst level."""
        data = dataclasses.asdict(self)
        data["blocks"] = [
            {
                "name": block.name,
                "kind": block.place.kind,
                "items": [{"label": each.label, "node": each.node, "what": each.text} for each in block.items],
            }
            for block in self.blocks
        ]
        facts = {
            "rule": "rule",
            "level": "level",
            "block": "block",
            "node": "node",
            "what": "text",
            "why": "why",
            "fix": "fix",
        }
        data["findings"] = [{key: getattr(each, name) for key, name in facts.items()} for each in self.findings]
        return data | {"worst": self.worst}
