"""Export: the ONNX file computes what torch computes, stores weights as INT8 and keeps the fused ops whole."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper

from q8trt.errors import ConfigError
from q8trt.export.onnx import ExportOptions, export_onnx
from q8trt.quantization.calibration import calibrate
from q8trt.quantization.insertion import insert_quantizers, model_quantizers, set_quantization
from q8trt.quantization.precision import Precision
from q8trt.quantization.recipe import load_recipe

pytestmark = pytest.mark.usefixtures("quick_export")

SHAPES = ((1, 8), (3, 17), (2, 64))
#: Bounds on |ONNX Runtime's logits - torch's|: of the median row and of any row. The logits are of the order of 1.
#: FP32: rounding. INT8: the median row agrees as in FP32, but x * (127/amax) and x / (amax/127) differ in the last bit, so
#: that once in a while a value beside a tie takes the next integer, which moves that row as much as quantization does
#: (measured: up to 0.03). FP16: eleven bits of mantissa; with INT8 most rows hold such a value (measured: up to 0.06).
BOUNDS = {"fp32": (1e-5, 1e-5), "fp16": (5e-3, 1e-2), "int8": (1e-5, 0.1), "int8+fp16": (0.05, 0.15)}


def inputs_of(batch: dict[str, torch.Tensor]) -> list[str]:
    return list(batch)


def source(
    precision: str, architecture: str, tiny_model: Callable[..., Any], tiny_quantized: Callable[..., Any]
) -> Any:
    """A model that `precision` can be exported from."""
    return tiny_quantized(architecture)[0] if precision.is_quantized else tiny_model(architecture)


def run(model: Path | onnx.ModelProto, batch: dict[str, torch.Tensor]) -> np.ndarray:
    """Logits by ONNX Runtime, node by node: nothing fused, nothing folded."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    data = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model.read_bytes()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    arrays = {name: tensor.numpy().astype(np.int32) for name, tensor in batch.items()}
    return session.run(["logits"], arrays)[0]


def tensors(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """All constants, initializers or Constant nodes."""
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            found.update((node.output[0], attribute.t) for attribute in node.attribute if attribute.name == "value")
    return found


def differences(path: Path, model: Any, make_batch: Callable[..., Any], architecture: str = "bert") -> np.ndarray:
    """|ONNX Runtime - torch| of each row of batches of all SHAPES."""
    rows = []
    for batch in (make_batch(architecture, shape, seed) for shape in SHAPES for seed in range(4)):
        with torch.no_grad():
            rows.append(np.abs(run(path, batch) - model(**batch).logits.numpy()).max(axis=1))
    return np.concatenate(rows)


@pytest.fixture(scope="module")
def exported(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Callable[..., Any],
    tiny_quantized: Callable[..., Any],
    tiny_batch: Callable[..., Any],
) -> dict[str, Path]:
    """BERT in each precision."""
    folder = tmp_path_factory.mktemp("onnx")
    names = inputs_of(tiny_batch("bert"))
    for precision in Precision:
        model = source(precision, "bert", tiny_model, tiny_quantized)
        export_onnx(model, folder / f"{precision}.onnx", precision, names)
    return {precision: folder / f"{precision}.onnx" for precision in Precision}


@pytest.mark.parametrize("precision", list(Precision))
def test_file_is_sound_and_dynamic(exported: dict[str, Path], precision: str) -> None:
    model = onnx.load(exported[precision])
    onnx.checker.check_model(model, full_check=True)
    assert {opset.domain: opset.version for opset in model.opset_import}[""] >= 19
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["precision"] == precision
    assert json.loads(metadata["modules"])["modules"].keys() == {
        f"bert.encoder.layer.{n}.attention.self.query" for n in range(2)
    }  # the attention scale is in Q's projection
    assert model.producer_name == "q8trt"
    assert [value.name for value in model.graph.input] == ["input_ids", "attention_mask", "token_type_ids"]
    for value in model.graph.input:
        assert value.type.tensor_type.elem_type == TensorProto.INT32
        assert [dim.dim_param for dim in value.type.tensor_type.shape.dim] == ["batch", "sequence"]
    (logits,) = model.graph.output
    assert logits.name == "logits"
    assert logits.type.tensor_type.elem_type == TensorProto.FLOAT
    assert [dim.dim_param or dim.dim_value for dim in logits.type.tensor_type.shape.dim] == ["batch", 1]


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT8_FP16])
def test_fp16_logits_are_torchs(
    exported: dict[str, Path],
    precision: str,
    tiny_model: Callable[..., Any],
    tiny_quantized: Callable[..., Any],
    tiny_batch: Callable[..., Any],
) -> None:
    errors = differences(exported[precision], source(precision, "bert", tiny_model, tiny_quantized), tiny_batch)
    assert np.median(errors) < BOUNDS[precision][0]
    assert errors.max() < BOUNDS[precision][1]


def test_the_bounds_tell_int8_from_float(
    exported: dict[str, Path], tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any]
) -> None:
    """Against the float model the INT8 file fails: the comparison sees whether quantization took place."""
    assert np.median(differences(exported["int8"], tiny_model(), tiny_batch)) > 100 * BOUNDS["int8"][0]


def test_one_site_too_few_is_seen(
    exported: dict[str, Path], tiny_quantized: Callable[..., Any], tiny_batch: Callable[..., Any]
) -> None:
    model, _ = tiny_quantized()
    model_quantizers(model)["layer.1.gelu_out"].disable()
    assert np.median(differences(exported["int8"], model, tiny_batch)) > 10 * BOUNDS["int8"][0]


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8, Precision.INT8_FP16])
def test_padding_changes_nothing(exported: dict[str, Path], precision: str, tiny_batch: Callable[..., Any]) -> None:
    """Whatever stands in padded places: the mask keeps it out of the first token's attention."""
    batch = tiny_batch("bert", (3, 17))
    noise = copy.deepcopy(batch)
    padded = batch["attention_mask"] == 0
    assert padded.any()
    noise["input_ids"][padded] = 77
    assert np.array_equal(run(exported[precision], batch), run(exported[precision], noise))


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
def test_every_architecture(
    architecture: str,
    precision: str,
    tmp_path: Path,
    tiny_model: Callable[..., Any],
    tiny_quantized: Callable[..., Any],
    tiny_batch: Callable[..., Any],
) -> None:
    model = source(precision, architecture, tiny_model, tiny_quantized)
    names = inputs_of(tiny_batch(architecture))
    result = export_onnx(model, tmp_path / "model.onnx", precision, names)
    errors = differences(result.path, model, tiny_batch, architecture)
    assert np.median(errors) < BOUNDS[precision][0]
    assert errors.max() < BOUNDS[precision][1]
    graph = onnx.load(result.path)
    ops = Counter(node.op_type for node in graph.graph.node)
    quantized = precision == "int8"
    assert (ops["QuantizeLinear"], ops["DequantizeLinear"]) == ((2 * 4, 2 * 10) if quantized else (0, 0))
    assert (result.quantize_nodes, result.folded_weights) == ((2 * 4, 2 * 6) if quantized else (0, 0))
    assert result.input_names == tuple(names)
    assert ops["LayerNormalization"] == 1 + 2 * 2
    assert ops["Gelu"] == (3 if architecture == "electra" else 2)  # Electra's head has one too
    assert ops["Softmax"] == 2
    assert ops.keys().isdisjoint({"Erf", "ReduceMean", "Pow", "Sqrt"} if architecture == "bert" else {"Erf", "Pow"})


@pytest.mark.parametrize("precision", ["int8", "int8+fp16"])
def test_weights_are_stored_as_int8(exported: dict[str, Path], precision: str) -> None:
    model = onnx.load(exported[precision])
    found = tensors(model)
    matrices = {n: t for n, t in found.items() if len(t.dims) == 2 and "embedding" not in n}
    integers = [tensor for tensor in matrices.values() if tensor.data_type == TensorProto.INT8]
    assert Counter(tuple(t.dims) for t in integers) == {(32, 32): 8, (32, 64): 2, (64, 32): 2}
    floats = Counter(tuple(t.dims) for t in matrices.values() if t.data_type != TensorProto.INT8)
    assert floats[(32, 64)] == floats[(64, 32)] == 0
    assert floats[(32, 32)] == 1  # the pooler
    for (
        node
    ) in model.graph.node:  # an INT8 constant is read by one DequantizeLinear, per output channel, constant scale
        if node.op_type == "DequantizeLinear" and node.input[0] in matrices:
            (axis,) = (attribute.i for attribute in node.attribute if attribute.name == "axis")
            assert list(found[node.input[1]].dims) == [matrices[node.input[0]].dims[axis]]
            assert (numpy_helper.to_array(found[node.input[1]]) > 0).all()


@pytest.mark.parametrize("precision", list(Precision))
def test_no_shape_arithmetic_is_left(exported: dict[str, Path], precision: str) -> None:
    """But for the length of the sequence, up to which positions are read."""
    model = onnx.load(exported[precision])
    ops = Counter(node.op_type for node in model.graph.node)
    assert ops["Shape"] == ops["Slice"] == 1
    assert ops.keys().isdisjoint({"Concat", "Expand", "Where", "Range", "Identity", "Constant", "Gemm", "Div"})
    constants = tensors(model)
    targets = [constants[node.input[1]] for node in model.graph.node if node.op_type == "Reshape"]
    assert Counter(tuple(numpy_helper.to_array(target)) for target in targets) == {(0, 0, 2, 16): 6, (0, 0, 32): 2}


def test_int8_scales_are_amax_over_127(exported: dict[str, Path], tiny_quantized: Callable[..., Any]) -> None:
    model = onnx.load(exported["int8"])
    constants = tensors(model)
    scales = [
        float(numpy_helper.to_array(constants[node.input[1]]))
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    ]
    quantizers = model_quantizers(tiny_quantized()[0])
    expected = [float(q.amax) / 127 for key, q in quantizers.items() if not key.endswith("weight")]
    assert sorted(scales) == pytest.approx(sorted(expected), rel=1e-6)


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT8_FP16])
def test_fp16_has_no_float32_weights(exported: dict[str, Path], precision: str) -> None:
    kinds = {t.data_type for t in tensors(onnx.load(exported[precision])).values() if np.prod(t.dims) > 1}
    assert TensorProto.FLOAT16 in kinds
    assert TensorProto.FLOAT not in kinds


def test_sizes(exported: dict[str, Path]) -> None:
    size = {precision: path.stat().st_size for precision, path in exported.items()}
    assert size["int8+fp16"] < size["int8"] < size["fp32"]
    assert size["fp16"] < size["fp32"]
    stored = {
        precision: sum(
            numpy_helper.to_array(t).nbytes
            for name, t in tensors(onnx.load(path)).items()
            if len(t.dims) == 2 and t.data_type != TensorProto.INT64 and "embedding" not in name
        )
        for precision, path in exported.items()
    }
    weights, pooler, classifier = 2 * (4 * 32 * 32 + 2 * 32 * 64), 32 * 32, 32
    head = pooler + classifier
    assert stored == {
        "fp32": 4 * (weights + head),
        "fp16": 2 * (weights + head),
        "int8": weights + 4 * head,
        "int8+fp16": weights + 2 * head,
    }


@pytest.mark.parametrize("precision", list(Precision))
def test_precision_must_fit_the_model(
    precision: str, tmp_path: Path, tiny_model: Callable[..., Any], tiny_quantized: Callable[..., Any]
) -> None:
    quantized = precision.is_quantized
    model = tiny_model() if quantized else tiny_quantized()[0]
    words = "needs a quantized checkpoint; this one is not" if quantized else "needs a floating-point checkpoint; this"
    with pytest.raises(ConfigError, match=f"^--{precision.options[0][2:]} {words}"):
        export_onnx(model, tmp_path / "model.onnx", precision, ["input_ids"])
    assert list(tmp_path.iterdir()) == []


def test_a_quantizer_that_takes_no_part_is_named(
    tmp_path: Path, tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any]
) -> None:
    """Else the file would hold fewer quantizers than the recipe, and nothing would say so."""
    model, recipe = tiny_model(), load_recipe("attention")
    insert_quantizers(model, recipe)
    calibrate(model, recipe, [tiny_batch()])
    model.set_attn_implementation("eager")
    with pytest.raises(
        ConfigError,
        match=r"^the quantizer layer\.0\.bmm_q and 7 others took no part .*set_attn_implementation\('q8trt'\)",
    ):
        export_onnx(model, tmp_path / "m.onnx", "int8", inputs_of(tiny_batch()), ExportOptions("torchscript"))
    assert list(tmp_path.iterdir()) == []
    model.set_attn_implementation("q8trt")
    result = export_onnx(model, tmp_path / "m.onnx", "int8", inputs_of(tiny_batch()), ExportOptions("torchscript"))
    assert result.quantize_nodes + result.folded_weights == len(model_quantizers(model))


def test_unknown_precision(tmp_path: Path, tiny_model: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"unknown precision 'int4'; known: fp32, fp16, int8, int8\+fp16"):
        export_onnx(tiny_model(), tmp_path / "model.onnx", "int4", ["input_ids"])


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT8_FP16])
def test_the_model_is_left_as_it_was_and_exports_the_same_twice(
    precision: str,
    tmp_path: Path,
    tiny_model: Callable[..., Any],
    tiny_quantized: Callable[..., Any],
    tiny_batch: Callable[..., Any],
) -> None:
    model = source(precision, "bert", tiny_model, tiny_quantized).train()
    state, batch = copy.deepcopy(model.state_dict()), tiny_batch()
    attention = model.config._attn_implementation
    for name in ("one.onnx", "two.onnx"):
        export_onnx(model, tmp_path / name, precision, inputs_of(batch))
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.onnx", "two.onnx"]
    assert model.training
    assert model.config._attn_implementation == attention == "sdpa"
    assert list(model.state_dict()) == list(state)
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == state[name].dtype
        assert torch.equal(tensor, state[name])
    if precision.is_quantized:
        set_quantization(model, enabled=False)  # still works as a quantized model
    with torch.no_grad():
        assert torch.equal(model.eval()(**batch).logits, tiny_model()(**batch).logits)
