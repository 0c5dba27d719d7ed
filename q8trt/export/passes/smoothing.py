"""Passes that fold the per-channel factors of SmoothQuant and of smoothed residuals into constants.

The factors are powers of two (`quantization.smoothquant`), so the results stay the same to the bit in FP32 and FP16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from q8trt.export.graph import (
    constant,
    make,
    new_constant,
    nodes,
    note_factor,
    only_reader,
    operands,
    power_of_two,
    producer,
    readers,
    replace,
)
from q8trt.export.passes.attention import scale_linear


def _channel_factor(node: ir.Node) -> Any:
    """Return the factors (channels,) of a Mul by a constant; None for any other node."""
    factors = operands(node) if node.op_type == "Mul" else None
    return factors[1] if factors is not None and factors[1].ndim == 1 and factors[1].size > 1 else None


def fold_branch_factors(model: ir.Model) -> int:
    """Fold the per-channel factor of linear -> Mul -> Q into the weight, or the scales of a quantized weight, and the bias."""
    folded = 0
    for mul in nodes(model.graph, "Mul"):
        factor = _channel_factor(mul)
        add = producer(operands(mul)[0], "Add") if factor is not None else None
        if (
            add is None
            or only_reader(add.outputs[0], "Mul") is None
            or only_reader(mul.outputs[0], "QuantizeLinear") is None
        ):
            continue
        if power_of_two(factor) and scale_linear(add, factor):
            replace(mul.outputs[0], add.outputs[0])
            folded += 1
    return folded


def fold_layernorm_factors(model: ir.Model) -> int:
    """Fold a factor into a LayerNorm's weight and bias if every reader of its output multiplies it by a factor.

    The folded factor is that of the residual, if there is one. Its reader then quantizes the LayerNorm's output directly, and
    the other readers multiply it by the remaining factor.
    """
    folded = 0
    for norm in nodes(model.graph, "LayerNormalization"):
        output = norm.outputs[0]
        muls = readers(output)
        factors = [_channel_factor(mul) for mul in muls]
        if not muls or output.is_graph_output() or any(factor is None for factor in factors):
            continue
        chosen = max(range(len(muls)), key=lambda index: _feeds_add(muls[index]))
        if not power_of_two(factors[chosen]):
            continue
        for index in range(1, sum(value is not None for value in norm.inputs)):  # weight, and bias if there is one
            array = constant(norm.inputs[index])
            scaled = new_constant(model.graph, f"{norm.inputs[index].name}.scaled", array * factors[chosen])
            norm.replace_input_with(index, scaled)
        note_factor(norm, factors[chosen])
        for mul, factor in zip(muls, factors, strict=True):
            rest = factor / factors[chosen]
            if np.all(rest == 1):
                replace(mul.outputs[0], output)
            else:
                product = make("Mul", [output, new_constant(model.graph, "factor", rest)], mul)
                replace(mul.outputs[0], product.outputs[0])
        folded += 1
    return folded


def _feeds_add(mul: ir.Node) -> bool:
    """Return whether the output of `mul` reaches an Add through one Q/DQ pair: the skip input of a residual."""
    quantize = only_reader(mul.outputs[0], "QuantizeLinear")
    dequantize = only_reader(quantize.outputs[0], "DequantizeLinear") if quantize is not None else None
    return dequantize is not None and only_reader(dequantize.outputs[0], "Add") is not None
