"""The linter's rules: stable id -> the reason why it matters for TensorRT, the fix, and the source of both.

Sources: TRT is NVIDIA's TensorRT documentation (docs.nvidia.com/deeplearning/tensorrt) by section. T#n is issue n of
NVIDIA/TensorRT, MO#n of NVIDIA/Model-Optimizer. "Built" means tried with TensorRT-RTX 1.7.1. If no source states a fact, the
text says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: error: TensorRT refuses the graph, or computes something else than the graph says; warning: the engine is slower, larger or
#: less accurate than it could be; info: all other facts.
Level = Literal["error", "warning", "info"]
#: From worst to mildest.
LEVELS: tuple[Level, ...] = ("error", "warning", "info")


@dataclass(frozen=True)
class Rule:
    """The reason why a finding matters, the fix in one line, and the source of both."""

    why: str
    fix: str
    source: str


_EXPLICIT = 'TRT "Explicit Quantization", Q/DQ Layer-Placement Recommendations'
_SYMMETRIC = 'TRT "Working with Quantized Types": symmetric quantization, signed INT8'
_MHA = 'TRT 10 developer guide "MHA Fusion", as quoted in T#2981 and T#4167'
_ATTENTION = 'TRT "Fused Attention"'

RULES = {
    # Refused, or something else than the file says.
    "unsupported-op": Rule(
        "TensorRT's ONNX parser has no importer for it and refuses the file",
        "quantize statically in Q/DQ format (QuantizeLinear/DequantizeLinear), and export without runtime-specific fusions",
        "onnx-tensorrt docs/operators.md; built: MatMulInteger, DynamicQuantizeLinear, QLinearMatMul and "
        "com.microsoft ops other than those named like ONNX's own are refused",
    ),
    "unsupported-type": Rule(
        "TensorRT has no such type, and its parser refuses the file",
        "store or cast it as FP32, FP16, BF16, INT8, INT32, INT64 or BOOL",
        "built: UINT8 inputs and casts, 16-bit and unsigned integers, strings, complex numbers, UINT4 and FP8 other than E4M3FN "
        "are refused",
    ),
    "mixed-types": Rule(
        "ONNX defines these inputs to have one type; the network is strongly typed, and the parser refuses the node",
        "cast one of them",
        'TRT "Strong Typing"; built: refused',
    ),
    "contradiction": Rule(
        "shapes or attributes contradict each other: a size that does not fit, an axis out of range",
        "export the model again; if the file was edited, undo the change of this node",
        "ONNX shape inference; built: refused",
    ),
    "invalid-onnx": Rule(
        "ONNX's own checker refuses the file; TensorRT's parser may still accept it",
        "export the model again, or for the opset that it declares",
        "onnx.checker",
    ),
    "subgraph-not-read": Rule(
        "the linter reads only the main graph; it does not check or count nodes in the bodies of If, Loop and Scan",
        "none needed if the bodies hold no Q/DQ; otherwise move the Q/DQ out of them, or export without control flow",
        "this linter",
    ),
    "scale-count": Rule(
        "TensorRT's parser refuses scales that do not fit the dimension that they run along",
        "give one scale, one for each index of the axis, or one for each block of the axis and each index of all others",
        "built: refused; ONNX DequantizeLinear; T#994, onnxruntime#10045",
    ),
    "scale-axis": Rule(
        "the scales run along a dimension that the tensor does not have, and the parser refuses the node",
        "set the node's axis to the output channels of the weight",
        "built: refused",
    ),
    "zero-point-count": Rule(
        "TensorRT's parser refuses a node with another number of zero points than of scales",
        "leave the zero point out, or give one zero for each scale",
        "built: refused",
    ),
    "scales-unchecked": Rule(
        "several scales for a dimension that is not known: the parser refuses them if the dimension is dynamic",
        "quantize activations with one scale; give weights a fixed shape",
        "built: scales along a dynamic dimension are refused",
    ),
    "scale-type": Rule(
        "a scale is a floating-point number; the parser refuses others",
        "store the scales in FP32 or FP16",
        "built: INT32 scales are refused",
    ),
    "quantized-type": Rule(
        "TensorRT's DequantizeLinear takes INT8, INT4, FP8 (E4M3FN) or FP4, and types on both sides of a node must agree",
        "quantize again with signed INT8",
        f"{_SYMMETRIC}; built: refused",
    ),
    "zero-point": Rule(
        "TensorRT quantizes symmetrically; its parser refuses a zero point other than 0 (except for DLA)",
        "quantize again with symmetric INT8 (onnxruntime: ActivationSymmetric and WeightSymmetric, QInt8)",
        f"{_SYMMETRIC}; T#2774, T#4698; built: refused",
    ),
    "unsigned-integers": Rule(
        "TensorRT refuses UINT8 constants, and reads UINT8 activations as INT8: values above 127 saturate",
        "quantize again with signed INT8 (onnxruntime: activation_type=QInt8, weight_type=QInt8)",
        f"{_SYMMETRIC}; built: a UINT8 weight is refused, a UINT8 zero point gives the warning 'Defaulting to INT8'",
    ),
    "int32-dequantize": Rule(
        "TensorRT's DequantizeLinear takes INT8, INT4, FP8 or FP4 and refuses INT32",
        "leave biases in floating point (onnxruntime: extra_options={'QuantizeBias': False})",
        "T#3360, onnx-tensorrt#850; built: refused",
    ),
    "scale-not-positive": Rule(
        "TensorRT refuses scales that are zero or negative; one that is not finite makes every value zero or not a number",
        "calibrate again: such a channel or tensor was all zeros; use a tiny positive amax for it",
        "built: zero and negative scales are refused, an infinite one is not; ModelOpt replaces zero scales before export",
    ),
    "gather-before-dequantize": Rule(
        "TensorRT accepts a quantized constant only straight before a DequantizeLinear and refuses to build this table",
        "dequantize the table and gather from that: DequantizeLinear -> Gather stays INT8 in the plan",
        "built: 'Quantized constant is only allowed before DQ'",
    ),
    # Not INT8 where it could be.
    "gemm-not-int8": Rule(
        "a GEMM runs in INT8 only when both its activation and its weight come through Q/DQ",
        "put a pair of symmetric INT8 Q/DQ on the named side",
        f"{_EXPLICIT}: quantize all inputs of weighted operations; T#4073",
    ),
    "bmm-not-int8": Rule(
        "a BMM of attention without INT8 on both sides runs in floating point, with reformats around it",
        "put Q/DQ on Q and K before the first BMM, on the probabilities and V before the second",
        "T#3243 (explicit Q/DQ before both batched GEMMs), T#2981",
    ),
    "residual-not-int8": Rule(
        "the Add runs in floating point; with Q/DQ on it, TensorRT-RTX builds the same layers and only rounds more",
        "none needed; if a measurement on your GPU favors it, put a pair of symmetric INT8 Q/DQ on each of the Add's inputs",
        "built: MiniLM, recipes `gpu` and `full`, INT8+FP16, fused QKV: 30 layers in INT8, 29 in FP16, 2 in FP32, 6 fused "
        f"attentions, 1 reformat in both; {_EXPLICIT} and T#3243 advise Q/DQ before the residual Add",
    ),
    "weight-axis": Rule(
        "scales along the dimension of the sum cannot be factored out of it, so no INT8 GEMM can apply them",
        "give the weight one scale per output channel",
        "arithmetic of the product; TRT: per-channel scales run along the output channels",
    ),
    "activation-per-channel": Rule(
        "an activation has one scale in TensorRT; several scales cannot be factored out of the GEMM's sum",
        "quantize the activation per tensor (move outliers into the weights: SmoothQuant)",
        f"{_EXPLICIT}: per-tensor for activations, per-channel for weights",
    ),
    "not-quantized": Rule(
        "without Q/DQ every op runs in the float type that it has in the graph: TensorRT 11 has no INT8 flag",
        "calibrate and export with Q/DQ: q8trt calibrate, then build-engine --int8",
        'TRT "Strong Typing"; implicit quantization is gone from TensorRT 11',
    ),
    # Attention.
    "attention-head-size": Rule(
        "the fused INT8 kernel exists for head sizes 16, 32 and 64; in FP16/BF16 for 16 to 256 in steps of 8",
        "choose a model with such heads; otherwise attention runs as two BMMs and a softmax",
        f"{_MHA}; T#3714",
    ),
    "attention-sequence": Rule(
        "the fused INT8 kernel exists for sequences up to 512 tokens",
        "lower the longest sequence of the profile to 512",
        f"{_MHA}; T#3714",
    ),
    "attention-scale": Rule(
        "TensorRT requires the attention scale on Q or K, before the first BMM; quantized, before Q's quantizer",
        "multiply Q by 1/sqrt(head size) before its Q/DQ, or fold the factor into the query projection",
        f"{_ATTENTION}: Q or K to be multiplied with the attention scale before the first BMM",
    ),
    "attention-qkv-qdq": Rule(
        "INT8 attention is fused only with Q/DQ on both inputs of the first BMM, and both of the second",
        "put symmetric INT8 Q/DQ on the named input",
        f"{_MHA}; T#3243",
    ),
    "attention-softmax-qdq": Rule(
        "INT8 attention is fused only with Q/DQ after Softmax",
        "quantize the probabilities (amax 1)",
        _MHA,
    ),
    "attention-output-qdq": Rule(
        "INT8 attention is fused only with Q/DQ after the second BMM",
        "put Q/DQ between the second BMM and the output projection",
        _MHA,
    ),
    "attention-mask-qdq": Rule(
        "Q/DQ between the first BMM and Softmax is not at a documented place, and no scale covers the range of the mask",
        "remove the Q/DQ around the mask Add",
        f"{_MHA} lists the places; accuracy: T#2382",
    ),
    "attention-float-type": Rule(
        "fused attention takes FP16, BF16 or INT8 inputs, not FP32",
        "export in FP16, or quantize the BMMs",
        _MHA,
    ),
    # Accuracy and float types.
    "layernorm-input-quantized": Rule(
        "LayerNorm's input holds the residual stream's outliers: INT8 there costs accuracy (STS-B 86.8 -> 62.9 on MiniLM)",
        "quantize the inputs of the residual Add, not its sum",
        "measured with q8trt (all-MiniLM-L6-v2); LayerNorm itself runs in floating point",
    ),
    "fp32-leftover": Rule(
        "the graph is strongly typed: this op runs in FP32 or wider, with casts on both sides, in a graph otherwise FP16",
        "export it in FP16, unless it was kept in FP32 against overflow",
        'TRT "Strong Typing"; T#2843, MO#59',
    ),
    "scale-fp32": Rule(
        "FP32 scales make DequantizeLinear give FP32: casts, or FP32 ops, follow in a graph that is FP16 elsewhere",
        "store the scales in FP16 (opset 19 or later)",
        "ONNX DequantizeLinear 19: the output has the scale's type; MO#2321",
    ),
    "scale-not-constant": Rule(
        "the builder has to fold the scale first; per-channel scales computed in the graph doubled the plan",
        "fold constants before building",
        "built: the plan of MiniLM doubled",
    ),
    "mask-constant": Rule(
        "FP16 ends at 65504: the constant becomes infinity, and infinity times 0 or minus itself is not a number",
        "use a mask constant within FP16, such as -10000",
        "T#2466, T#1568",
    ),
    "constant-overflow": Rule(
        "a constant holds infinity or NaN: a weight beyond FP16's 65504, or a damaged file",
        "keep the op that reads it in FP32, or rescale the weight",
        "T#3101",
    ),
    "decomposed-layernorm": Rule(
        "spelled out, LayerNorm's squares and sums can overflow FP16, and TensorRT must recognize the pattern",
        "export LayerNormalization as one op (opset 17 or later)",
        "TensorRT's own build warning, pytorch/TensorRT#4061; T#2564",
    ),
    "decomposed-gelu": Rule(
        "TensorRT must recognize the pattern of several ops to fuse it; a single Gelu op needs no pattern",
        "export Gelu as one op (opset 20 or later)",
        'TRT "Layer Fusion Catalog"; which formulas it recognizes in INT8 graphs is not documented',
    ),
    "opset-too-low": Rule(
        "older operator sets lack what the graph needs",
        "export with opset 20",
        "ONNX: LayerNormalization is one op from 17, FP16 scales of Q/DQ exist from 19; MO#2321",
    ),
    # Q/DQ without purpose, sizes, shapes.
    "dangling-qdq": Rule(
        "the reader of the dequantized tensor cannot run in INT8, so the pair only costs accuracy and time",
        "remove the Q/DQ pair",
        f"{_EXPLICIT}: be conservative when adding Q/DQ",
    ),
    "quantize-alone": Rule(
        "TensorRT fuses pairs, and an integer tensor without DequantizeLinear has no use",
        "add the DequantizeLinear, or remove the QuantizeLinear",
        f"{_EXPLICIT}",
    ),
    "requantized": Rule(
        "DequantizeLinear -> QuantizeLinear rounds twice, or, with equal scales, does nothing",
        "keep one Q/DQ pair",
        "arithmetic; whether TensorRT merges such pairs is not documented",
    ),
    "duplicate-qdq": Rule(
        "the same tensor is quantized again with the same scale; whether the builder merges the copies is not documented",
        "let the readers share one Q/DQ pair",
        "no source on merging",
    ),
    "float-weights": Rule(
        "the file holds four bytes a weight (two in FP16) instead of one; the builder must quantize them",
        "fold QuantizeLinear into the constant: INT8 weights, then DequantizeLinear",
        'TRT "Explicit Quantization", Quantized Weights: both are accepted',
    ),
    "weights-per-tensor": Rule(
        "one scale for a whole weight is less accurate than one per output channel",
        "quantize weights per channel (onnxruntime: per_channel=True)",
        f"{_EXPLICIT}: per-tensor for activations, per-channel for weights",
    ),
    "embedding-float": Rule(
        "the table keeps its float size in the plan; embeddings are a large part of a small BERT",
        "store it as INT8 -> DequantizeLinear -> Gather",
        "built: stays INT8 in the plan",
    ),
    "int64-input": Rule(
        "the engine's binding is INT64: callers must pass INT64, and ids are cast before they are used",
        "export INT32 inputs",
        "built: 'Make sure input has Int64 binding'",
    ),
    "dynamic-shapes": Rule(
        "a network with dynamic inputs needs an optimization profile, and TensorRT tunes only for its opt shape",
        "give min, opt and max (batch x sequence) to the build; --max_shapes lets the linter judge by them",
        'TRT "Working with Dynamic Shapes"; T#1166; built: refused without one',
    ),
    "not-recognized": Rule(
        "the linter recognizes transformer encoders, and cannot judge other graphs",
        "none needed; the rules for Q/DQ, types and ops apply to any graph",
        "this linter",
    ),
}

#: Rules with level error, and rules with level info. All others are warnings. A check may set another level for a case.
_ERRORS = (
    "unsupported-op", "unsupported-type", "mixed-types", "contradiction", "scale-count", "scale-axis", "zero-point-count",
    "scale-type", "quantized-type", "zero-point", "unsigned-integers", "int32-dequantize", "scale-not-positive",
    "gather-before-dequantize",
)  # fmt: skip
_NOTES = (
    "scales-unchecked", "not-quantized", "weights-per-tensor", "decomposed-gelu", "embedding-float", "int64-input",
    "dynamic-shapes", "not-recognized", "attention-float-type", "residual-not-int8",
)  # fmt: skip


def level_of(rule: str) -> Level:
    """Return the usual level of a rule."""
    return "error" if rule in _ERRORS else "info" if rule in _NOTES else "warning"
