"""A tiny quantized ONNX model, and what it computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from q8trt.engine.shapes import ShapeProfile

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
SMALL = ShapeProfile((1, 1), (2, 8), (4, 16))


RANDOM = np.random.default_rng(0)
TABLE = RANDOM.normal(size=(11, 8)).astype(np.float32)
WEIGHT = RANDOM.integers(-127, 128, (8, 3), dtype=np.int8)
SCALE = np.float32(0.02)


def tiny_onnx(
    path: Path,
    shape: tuple[int | str, ...] = ("batch", "sequence"),
    operator: str = "ReduceMean",
    ids: int = 6,
    labels: int = 3,
) -> Path:
    """Embedding, times mask -> Q/DQ -> INT8 MatMul -> mean over the sequence -> logits (batch, labels); see `tiny_logits`.

    `ids` is the ONNX type of the inputs: 6 is int32, 7 int64, 1 float32.
    """
    node, value, proto = onnx.helper.make_node, onnx.helper.make_tensor_value_info, onnx.TensorProto
    constants = {"table": TABLE, "weight": WEIGHT[:, :labels], "scale": SCALE, "zero": np.int8(0)}
    axes = {"one": np.array([1], np.int64), "last": np.array([2], np.int64)}
    nodes = [
        node("Gather", ["table", "input_ids"], ["embedded"], "embed"),
        node("Cast", ["attention_mask"], ["float_mask"], "cast", to=proto.FLOAT),
        node("Unsqueeze", ["float_mask", "last"], ["mask"], "unsqueeze"),
        node("Mul", ["embedded", "mask"], ["masked"], "mask"),
        node("QuantizeLinear", ["masked", "scale", "zero"], ["q"], "quantize"),
        node("DequantizeLinear", ["q", "scale", "zero"], ["dq"], "dequantize"),
        node("DequantizeLinear", ["weight", "scale", "zero"], ["w"], "weights"),
        node("MatMul", ["dq", "w"], ["product"], "matmul"),
        node(operator, ["product", "one"], ["logits"], "pool", keepdims=0),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "tiny",
        [value(name, ids, shape) for name in ("input_ids", "attention_mask")],
        [value("logits", proto.FLOAT, ("batch", labels))],
        [onnx.numpy_helper.from_array(np.asarray(each), name) for name, each in {**constants, **axes}.items()],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9), path)
    return path


def tiny_logits(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
    """Return the logits of `tiny_onnx`, computed by NumPy."""
    masked = TABLE[input_ids] * attention_mask[..., None]
    quantized = np.clip(np.rint(masked / SCALE), -128, 127) * SCALE
    return (quantized @ (WEIGHT * SCALE)).mean(1).astype(np.float32)
