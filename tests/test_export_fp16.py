"""FP16: all of the graph but what it cannot hold, found on data and named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from q8trt.export.graph import constant, nodes
from q8trt.export.onnx import ExportedModel, ExportOptions, export_onnx
from q8trt.export.overflow import LARGEST, SMALLEST_NORMAL, ops_to_keep, tensor_ranges
from q8trt.export.passes import normal
from q8trt.export.report import KeptOp
from q8trt.lint import lint
from q8trt.quantization.insertion import model_quantizers
from q8trt.quantization.precision import Precision

TORCHSCRIPT = ExportOptions("torchscript")


def arrays(batch: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().astype(np.int32) for name, tensor in batch.items()}


def run(path: Path, batch: dict[str, torch.Tensor]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options).run(["logits"], arrays(batch))[0]


def export(
    model: Any, path: Path, precision: str, batches: list[dict[str, torch.Tensor]], **options: Any
) -> ExportedModel:
    names = list(batches[0])
    return export_onnx(model, path, precision, names, TORCHSCRIPT, [arrays(batch) for batch in batches], **options)


def inflate(model: Any, factor: float) -> Any:
    """Let the feed-forward output of layer 1 reach `factor` times as far; LayerNorm takes it back."""
    with torch.no_grad():
        dense = model.bert.encoder.layer[1].output.dense
        dense.weight *= factor
        dense.bias *= factor
    return model


@pytest.mark.parametrize("precision", ["fp16", "int8+fp16"])
def test_nothing_is_kept_without_need(
    precision: str, tmp_path: Path, tiny_model: Callable[..., Any], tiny_quantized: Callable[..., Any],
    tiny_batch: Callable[..., Any],
) -> None:  # fmt: skip
    model = tiny_quantized()[0] if Precision(precision).is_quantized else tiny_model()
    result = export(model, tmp_path / "model.onnx", precision, [tiny_batch()])
    assert result.kept_fp32 == ()
    graph = ir.load(result.path).graph
    kinds = Counter(str(value.const_value.dtype) for value in graph.initializers.values())
    assert kinds["FLOAT"] == 0
    casts = [(node.name, str(node.attributes["to"].value)) for node in nodes(graph, "Cast")]
    assert [name for name, _ in casts] == ["Cast", "classifier/Cast"]  # of the mask, and of the logits
    assert {report.name: report.changed for report in result.passes}["to_fp16"] == 1


def test_overflow_is_found_on_data_and_kept_in_fp32_by_name(
    tmp_path: Path, tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any]
) -> None:
    model, batch = inflate(tiny_model(), 6e4), tiny_batch(seed=3)
    with torch.no_grad():
        expected = model(**batch).logits.numpy()
    blind = export_onnx(model, tmp_path / "blind.onnx", "fp16", list(batch), TORCHSCRIPT)
    assert not np.isfinite(run(blind.path, batch)).all(), "else the test shows nothing"
    result = export(model, tmp_path / "model.onnx", "fp16", [tiny_batch(seed=0)])
    assert np.abs(run(result.path, batch) - expected).max() < 0.02
    stem = "bert.encoder.layer.1.output"
    kept = {op.name: op.reason for op in result.kept_fp32}
    assert list(kept) == [
        f"{stem}.dense/MatMul", f"{stem}.dense/Add", f"{stem}/Add", f"{stem}.LayerNorm/LayerNormalization"
    ]  # fmt: skip
    assert kept[f"{stem}.dense/MatMul"].startswith(f"{stem}.dense/MatMul reaches ")
    assert kept[f"{stem}.dense/MatMul"].endswith("; FP16 ends at 65504")
    assert [node.name for node in typed(result.path) if node.inputs[0].dtype is ir.DataType.FLOAT] == list(kept)


def test_the_linter_knows_what_was_kept_and_why(
    tmp_path: Path, tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any]
) -> None:
    result = export(inflate(tiny_model(), 6e4), tmp_path / "model.onnx", "fp16", [tiny_batch()])
    found = [finding for finding in lint(result.path).findings if finding.rule == "fp32-leftover"]
    assert {finding.level for finding in found} == {"info"}
    assert {finding.node for finding in found} == {op.name for op in result.kept_fp32}
    kept = result.kept_fp32[0]
    assert f"MatMul in FP32, on purpose: {kept.reason}" in {finding.text for finding in found}


def typed(path: Path) -> list[Any]:
    """The nodes that compute, with types."""
    model = ir.load(path)
    normal.infer_shapes(model)
    return [node for node in model.graph if node.op_type in ("MatMul", "Add", "LayerNormalization", "Gelu", "Softmax")]


def test_in_int8_what_overflows_goes_to_its_quantizer_in_fp32(
    tmp_path: Path, tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any]
) -> None:
    from q8trt.quantization.calibration import calibrate
    from q8trt.quantization.insertion import insert_quantizers
    from q8trt.quantization.recipe import Recipe

    recipe = Recipe.from_dict(
        {"name": "r", "activations": {"calibrator": "max"}, "weights": {"axis": 0, "calibrator": "max"},
         "sites": {"gelu_out": {}, "ffn_output.weight": {}, "ffn_residual": {}}}
    )  # fmt: skip
    model, batch = inflate(tiny_model(), 6e4), tiny_batch(seed=0)
    insert_quantizers(model, recipe)
    calibrate(model, recipe, [batch])
    with torch.no_grad():
        expected = model(**batch).logits.numpy()
    result = export(model, tmp_path / "model.onnx", "int8+fp16", [batch])
    assert np.abs(run(result.path, batch) - expected).max() < 0.2
    graph = ir.load(result.path)
    normal.infer_shapes(graph)
    types = {node.name: node.inputs[0].dtype for node in nodes(graph.graph, "QuantizeLinear")}
    assert types["layer.1.ffn_residual.branch/QuantizeLinear"] is ir.DataType.FLOAT
    assert types["layer.0.ffn_residual.branch/QuantizeLinear"] is ir.DataType.FLOAT16
    kept = {op.name for op in result.kept_fp32}
    assert "layer.1.ffn_output.weight/DequantizeLinear" in kept  # no Cast between a weight and its GEMM
    assert not any(
        node.op_type == "Cast" for node in graph.graph if ".1." in node.inputs[0].name and "weight" in node.name
    )


def test_a_scale_below_fp16_keeps_its_site_in_fp32(
    tmp_path: Path, tiny_quantized: Callable[..., Any], tiny_batch: Callable[..., Any]
) -> None:
    model, batch = tiny_quantized()[0], tiny_batch()
    model_quantizers(model)["layer.1.ffn_input"].amax = torch.tensor(1e-6)
    with torch.no_grad():
        expected = model(**batch).logits.numpy()
    result = export(model, tmp_path / "model.onnx", "int8+fp16", [batch])
    assert np.abs(run(result.path, batch) - expected).max() < 0.2
    pair = [op for op in result.kept_fp32 if op.name.startswith("layer.1.ffn_input/")]
    assert [op.op_type for op in pair] == ["QuantizeLinear", "DequantizeLinear"]
    assert (
        pair[0].reason
        == "the scale 7.87e-09 of layer.1.ffn_input/DequantizeLinear is below FP16's smallest normal number"
    )
    assert {op.op_type for op in result.kept_fp32} == {"QuantizeLinear", "DequantizeLinear", "MatMul"}
    report = lint(result.path)
    assert not report.count("error")
    assert {each.level for each in report.findings if each.rule == "scale-fp32"} == {"info"}
    graph = ir.load(result.path).graph
    assert all((constant(node.inputs[1]) > 0).all() for node in nodes(graph, "QuantizeLinear", "DequantizeLinear"))


def test_small_scales_of_weights_are_raised(
    tmp_path: Path, tiny_quantized: Callable[..., Any], tiny_batch: Callable[..., Any]
) -> None:
    """A channel that is almost zero: what it is rounded to differs by half the smallest normal number of FP16 at most."""
    model, _ = tiny_quantized()
    key, batch = "layer.0.ffn_intermediate.weight", tiny_batch()
    dense = model.bert.encoder.layer[0].intermediate.dense
    with torch.no_grad():
        dense.weight[3] *= 1e-3
    quantizer = model_quantizers(model)[key]
    amax = quantizer.amax.clone()
    amax[3] = dense.weight[3].detach().abs().max()
    quantizer.amax = amax
    assert float(amax[3]) / 127 < SMALLEST_NORMAL
    result = export(model, tmp_path / "model.onnx", "int8+fp16", [batch])
    (node,) = [node for node in ir.load(result.path).graph if node.name == f"{key}/DequantizeLinear"]
    integers, scale = constant(node.inputs[0]), constant(node.inputs[1])
    assert scale.dtype == np.float16
    assert scale.min() == SMALLEST_NORMAL
    written = integers[:, 3].astype(np.float32) * np.float32(scale[3])
    assert np.abs(written - dense.weight[3].detach().numpy()).max() <= SMALLEST_NORMAL / 2 + float(amax[3]) / 254
    others = np.arange(64) != 3
    expected = np.rint(dense.weight.detach().numpy()[others] / (amax.numpy() / 127)[others]).astype(np.int8)
    assert np.array_equal(integers[:, others], expected.T)


def test_ranges_are_numpys(tmp_path: Path, tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any]) -> None:
    model, batches = tiny_model(), [tiny_batch(seed=seed) for seed in range(2)]
    result = export(model, tmp_path / "model.onnx", "fp32", batches)
    graph = ir.load(result.path)
    normal.infer_shapes(graph)
    ranges = tensor_ranges(graph, [arrays(batch) for batch in batches])
    with torch.no_grad():
        hidden = [model.bert(**batch).last_hidden_state.abs().max() for batch in batches]
        logits = [model(**batch).logits.abs().max() for batch in batches]
    last = "bert.encoder.layer.1.output.LayerNorm/LayerNormalization"
    assert ranges[last] == pytest.approx(float(max(hidden)), rel=1e-5)
    assert ranges["logits"] == pytest.approx(float(max(logits)), rel=1e-5)


def test_a_tensor_with_nan_stays_in_fp32() -> None:
    x, y = (ir.val(name, dtype=ir.DataType.FLOAT, shape=[2]) for name in "xy")
    graph = ir.Graph([x], [y], nodes=[ir.Node("", "Sqrt", [x], outputs=[y], name="root")], opset_imports={"": 20})
    model = ir.Model(graph, ir_version=9)
    ranges = tensor_ranges(model, [{"x": np.array([4, sign], np.float32)} for sign in (1, -1, 1)])
    assert np.isnan(ranges["y"])
    assert [op.reason for op in ops_to_keep(model, ranges)] == ["y reaches nan; FP16 ends at 65504"]


def test_constants_are_judged_without_data() -> None:
    weight = ir.val("w", const_value=ir.tensor(np.array([1.0, -1e6], np.float32)))
    x, y = ir.val("x", dtype=ir.DataType.FLOAT, shape=[2]), ir.val("y", dtype=ir.DataType.FLOAT, shape=[2])
    node = ir.Node("", "Add", [x, weight], outputs=[y], name="big/Add")
    graph = ir.Graph([x], [y], nodes=[node], initializers=[weight], opset_imports={"": 20})
    kept = ops_to_keep(ir.Model(graph, ir_version=9), {})
    assert kept == [KeptOp("big/Add", "Add", "its constant w reaches 1e+06")]
    assert float(np.finfo(np.float16).max) == LARGEST
