"""The linter on files that exporters and quantizers really write: q8trt's own, ModelOpt's, onnxruntime's, torch's."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from q8trt.lint import LintConfig, LintReport, lint

pytestmark = pytest.mark.usefixtures("quick_export")

PROFILE = LintConfig(max_shapes=(4, 32))


def export(model: Any, batch: dict[str, Any], path: Path, **options: Any) -> Path:
    """torch's exporter alone, with dynamic batch and sequence."""
    import torch

    axes = {"dynamic_axes": {name: {0: "batch", 1: "sequence"} for name in batch}}
    if options.get("dynamo"):
        sizes = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("sequence", min=2, max=64)}
        axes = {"dynamic_shapes": dict.fromkeys(batch, sizes)}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (), str(path), kwargs=batch, input_names=list(batch), output_names=["logits"], **axes, **options
        )
    return path


@pytest.fixture(scope="module")
def float_path(tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any], tmp_path_factory: Any) -> Path:
    path = tmp_path_factory.mktemp("float") / "model.onnx"
    model = tiny_model()
    model.set_attn_implementation("eager")
    return export(model, tiny_batch(), path, dynamo=False, opset_version=18)


def worst_of(report: LintReport) -> dict[str, str]:
    """rule -> the worst level at which it was reported."""
    return {finding.rule: finding.level for finding in reversed(report.findings)}


@pytest.mark.parametrize(("name", "opset"), [("bert", 13), ("electra", 20), ("distilbert", 20)])
def test_torch_export_by_tracing(
    name: str, opset: int, tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any], tmp_path: Path
) -> None:
    path, model = tmp_path / "model.onnx", tiny_model(name)
    if opset < 14:
        model.set_attn_implementation("eager")  # torch exports its own attention from opset 14 on
    export(model, tiny_batch(name), path, dynamo=False, opset_version=opset)
    cast = lint(path).forecast
    projection = 1 if name == "electra" else 0  # from embedding size to hidden size
    assert (cast.layers, cast.gemms, cast.bmms, cast.residual_adds) == (2, 12 + 2 + projection, 4, 4)
    assert cast.compute_ops_by_type["fp32"] == len(cast.fp32_compute_ops) > cast.gemms + cast.bmms


def test_torch_export_by_dynamo(
    tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any], float_path: Path, tmp_path: Path
) -> None:
    path = export(tiny_model(), tiny_batch(), tmp_path / "model.onnx", dynamo=True, opset_version=20, verbose=False)
    report, traced = lint(path), lint(float_path)
    assert [block.name for block in report.blocks] == [block.name for block in traced.blocks]
    for name in ("layers", "gemms", "bmms", "residual_adds", "embeddings"):
        assert getattr(report.forecast, name) == getattr(traced.forecast, name), name


def quantized_by_modelopt(model: Any, batch: dict[str, Any]) -> Any:
    import modelopt.torch.quantization as mtq
    import torch

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mtq.quantize(model, mtq.INT8_DEFAULT_CFG, lambda quantized: quantized(**batch))


def test_modelopt_plain_export(tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any], tmp_path: Path) -> None:
    batch = tiny_batch()
    model = quantized_by_modelopt(tiny_model(), batch)
    report = lint(export(model, batch, tmp_path / "model.onnx", dynamo=False, opset_version=20), PROFILE)
    cast, found = report.forecast, worst_of(report)
    assert (cast.int8_gemms, cast.int8_bmms, cast.int8_residual_adds, cast.fusable_attentions) == (14, 0, 0, 0)
    assert cast.float_weights_behind_quantizer == 14
    assert cast.int8_weight_bytes == cast.int8_embeddings == 0
    assert cast.dangling_qdq == 2 * 5  # a pair before each LayerNorm
    assert {"bmm-not-int8", "residual-not-int8", "layernorm-input-quantized", "float-weights"} <= set(found)
    assert not report.reaches("error")
    assert report.reaches("warning")


def test_onnxruntime_static_quantization(float_path: Path, tiny_batch: Callable[..., Any], tmp_path: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter([{name: tensor.numpy() for name, tensor in tiny_batch().items()}])

        def get_next(self) -> Any:
            return next(self.left, None)

    path = tmp_path / "model.onnx"
    quantize_static(str(float_path), str(path), Reader())
    plain = lint(path, PROFILE)
    assert plain.forecast.gemms == 14
    assert plain.forecast.int8_gemms <= 1  # one whose calibrated range happens to lie evenly around 0
    assert {"zero-point", "int32-dequantize"} <= {rule for rule, level in worst_of(plain).items() if level == "error"}
    symmetric = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
    types = {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8}
    quantize_static(
        str(float_path), str(path), Reader(), op_types_to_quantize=["MatMul", "Gemm"], extra_options=symmetric, **types
    )
    good = lint(path, PROFILE)
    assert not good.reaches("error")
    assert (good.forecast.int8_gemms, good.forecast.int8_bmms) == (14, 4)
    assert "attention-scale" in worst_of(good)
    assert "weights-per-tensor" in worst_of(good)


def test_onnxruntime_dynamic_quantization(float_path: Path, tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    path = tmp_path / "model.onnx"
    quantize_dynamic(str(float_path), str(path))
    report = lint(path)
    refused = Counter(finding.text.split()[0] for finding in report.findings if finding.rule == "unsupported-op")
    assert set(refused) == {"DynamicQuantizeLinear", "MatMulInteger"}
    assert refused["MatMulInteger"] == report.forecast.gemms == 14
    assert report.forecast.int8_gemms == 0
    assert report.forecast.layers == 2


def test_onnxruntime_operator_format_does_not_crash(
    float_path: Path, tiny_batch: Callable[..., Any], tmp_path: Path
) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):
        left = iter([{name: tensor.numpy() for name, tensor in tiny_batch().items()}])

        def get_next(self) -> Any:
            return next(self.left, None)

    path = tmp_path / "model.onnx"
    quantize_static(str(float_path), str(path), Reader(), quant_format=QuantFormat.QOperator)
    report = lint(path)
    refused = {finding.text.split()[0] for finding in report.findings if finding.rule == "unsupported-op"}
    assert "QLinearMatMul" in refused
    assert report.forecast.int8_gemms == 0
    assert report.worst == "error"


@pytest.fixture(scope="module")
def full_model(tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any]) -> Any:
    """Calibrated by the recipe that quantizes everything but the head."""
    from q8trt.quantization.calibration import calibrate
    from q8trt.quantization.insertion import insert_quantizers
    from q8trt.quantization.recipe import load_recipe

    model, recipe = tiny_model(), load_recipe("full")
    insert_quantizers(model, recipe)
    calibrate(model, recipe, [tiny_batch(seed=seed) for seed in range(3)])
    return model


@pytest.mark.parametrize("precision", ["int8", "int8+fp16"])
def test_our_own_export_of_the_full_recipe(
    precision: str, full_model: Any, tiny_batch: Callable[..., Any], tmp_path: Path
) -> None:
    from q8trt.export.onnx import export_onnx

    path = tmp_path / "model.onnx"
    export_onnx(full_model, path, precision, list(tiny_batch()))
    report = lint(path, PROFILE)
    cast = report.forecast
    assert (cast.gemms, cast.int8_gemms) == (14, 12)  # the head is left in floating point
    assert (cast.bmms, cast.int8_bmms, cast.residual_adds, cast.int8_residual_adds) == (4, 4, 4, 4)
    assert (cast.embeddings, cast.int8_embeddings) == (3, 3)
    assert (cast.layers, cast.fusable_attentions) == (2, 2)
    assert (cast.dangling_qdq, cast.float_weights_behind_quantizer) == (0, 0)
    assert bool(cast.fp32_compute_ops) == (precision == "int8")
    assert not report.reaches("warning"), report.findings[0]
