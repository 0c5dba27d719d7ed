"""The reported layers of an engine: samples of both texts that TensorRT writes, and a build whose log is really read."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_fixtures import SMALL, tiny_onnx

from q8trt.engine.backend import Backend
from q8trt.engine.builder import build_here, graph_sites
from q8trt.engine.config import BuildConfig
from q8trt.engine.layers import layers_of_inspector, layers_of_log
from q8trt.engine.report import BuildLog, GraphSites, engine_report
from q8trt.engine.shapes import bucket_profiles

# In the form that NVIDIA documents: TensorRT 10 with "Format/Datatype", TensorRT 11 with "Datatype" and "Format".
TENSORRT_10 = {
    "Layers": [
        {
            "Name": "Reformatting CopyNode for Input Tensor 0 to conv", "LayerType": "Reformat",
            "Inputs": [{"Name": "x", "Dimensions": [1, 3, 8, 8], "Format/Datatype": "Row major linear FP16 format"}],
            "Outputs": [{"Name": "y", "Dimensions": [1, 3, 8, 8],
                         "Format/Datatype": "Channel major FP16 format where channel % 4 == 0"}],
            "TacticValue": "0x00000000000003ea", "StreamId": 0, "Metadata": "",
        },
        {
            "Name": "conv + relu", "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "y", "Dimensions": [1, 3, 8, 8],
                        "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
            "Outputs": [{"Name": "z", "Dimensions": [1, 8, 8, 8], "Format/Datatype": "Row major linear FP32"}],
            "Weights": {"Type": "Int8", "Count": 216}, "Bias": {"Type": "Float", "Count": 8},
            "Metadata": "[ONNX Layer: /conv/Conv][ONNX Layer: /relu/Relu]",
        },
        {
            "Name": "shuffle", "LayerType": "NoOp",
            "Inputs": [{"Name": "z", "Dimensions": [1, 512], "Format/Datatype": "N/A due to dynamic shapes"}],
            "Outputs": [], "Metadata": "",
        },
    ],
    "Bindings": ["x", "z"],
}  # fmt: skip


def tensor(datatype: str, *dims: int) -> dict[str, Any]:
    return {"Name": "t", "Dimensions": list(dims), "Datatype": datatype, "Format": "(Linear) Row major linear format"}


def layer(
    name: str, kind: str, inputs: list[Any], constants: list[Any], outputs: list[Any], *nodes: str
) -> dict[str, Any]:
    metadata = "\x1f".join(f"[ONNX Layer: {node}]" for node in nodes)
    return {
        "Name": name, "LayerType": kind, "Inputs": inputs, "Constants": constants, "Outputs": outputs,
        "TacticName": "t", "StreamId": 0, "Metadata": metadata,
    }  # fmt: skip


ALPHA = tensor("Float", 1)
TENSORRT_11 = {
    "Layers": [
        layer("v+k+q_myl1_2", "gemm", [tensor("Int8", -1, 32)], [tensor("Int8", 32, 96), ALPHA, ALPHA],
              [tensor("Half", -1, 96)], "q", "k", "v"),
        layer("_gemm_mha_v2_myl1_4", "kgen", [tensor("Int8", -1, 8), tensor("Int8", 8, -1), tensor("Float", -1, -1),
              tensor("Int8", -1, 8)], [], [tensor("Int8", -1, 8)], "bmm1", "softmax", "bmm2"),
        layer("__myl_FcAdd_myl1_5", "runtime_fusion", [tensor("Int8", -1, 32)],
              [tensor("Float", 1, 32), tensor("Half", 32, 32)], [tensor("Half", -1, 32)], "weight-only"),
        layer("__myl_MulAddMinMaxRounCast_myl1_6", "kgen", [tensor("Half", -1, 32), tensor("Int8", -1, 32)], [],
              [tensor("Int8", -1, 32)], "add"),
        layer("__myl_TranReshMove_myl1_7", "kgen", [tensor("Int8", -1, 32)], [], [tensor("Int8", -1, 32)], "q"),
        layer("__myl_GathAdd_myl1_8", "kgen", [tensor("Int32", -1, -1)], [tensor("Int8", 99, 32)],
              [tensor("BFloat16", -1, 32)], "embed"),
        layer("__mye1_myl1_9", "signal", [], [], []),
    ],
    "I/O Tensors": [],
}  # fmt: skip
SITES = GraphSites(("q", "k", "v", "weight-only", "gone"), ("bmm1", "bmm2"), ("add",))


def test_both_forms_of_the_inspectors_json_are_read() -> None:
    reformat, convolution, shuffle = layers_of_inspector(json.dumps(TENSORRT_10))
    assert (reformat.precision, reformat.is_reformat, reformat.is_matrix) == ("FP16", True, False)
    assert (convolution.precision, convolution.is_reformat, convolution.is_matrix) == ("INT8", False, True)
    assert convolution.sources == {"/conv/Conv", "/relu/Relu"}
    assert shuffle.precision is None
    qkv, mha, weight_only, add, transpose, embed, signal = layers_of_inspector(json.dumps(TENSORRT_11))
    assert [each.precision for each in (qkv, mha, add, transpose, embed)] == ["INT8", "INT8", "FP16", "INT8", "BF16"]
    assert weight_only.precision == "FP16", "a product computes in the wider of its operands; a bias is none"
    assert signal.precision is None
    assert [each.is_reformat for each in (qkv, mha, add, transpose, embed)] == [False, False, False, True, False]


def test_the_inspector_is_counted() -> None:
    report = engine_report(BuildLog(), json.dumps(TENSORRT_11), SITES, 1)
    assert (report.source, report.profiles, report.layers) == ("inspector", 1, 6)
    assert report.layers_by_precision == {"BF16": 1, "FP16": 2, "INT8": 3}
    assert report.layers_by_type == {"gemm": 1, "kgen": 4, "runtime_fusion": 1, "signal": 1}
    assert (report.gemms, report.int8_gemms) == (5, 3), "one layer computes Q, K and V; a node that is gone is not INT8"
    assert (report.bmms, report.int8_bmms, report.fused_attentions) == (2, 2, 1)
    assert (report.residual_adds, report.int8_residual_adds) == (1, 0), "its layer also reads FP16"
    assert report.reformats == 1
    assert report.weights_bytes is None
    assert "weights_bytes is not in the builder's log" in report.notes


@pytest.mark.parametrize(("activation", "weight"), [("Half", "Int8"), ("Int8", "Half")])
def test_a_product_computes_in_the_wider_of_its_operands(activation: str, weight: str) -> None:
    gemm = layer("g", "gemm", [tensor(activation, -1, 32)], [ALPHA, tensor(weight, 32, 96), tensor("Float", 1, 96)], [])
    assert [each.precision for each in layers_of_inspector(json.dumps({"Layers": [gemm]}))] == ["FP16"]


def test_a_product_of_two_activations_reads_no_weights() -> None:
    bmm = layer("bmm_myl1_1", "gemm", [tensor("Int8", 4, 8, 8), tensor("Half", 4, 8, 8)], [ALPHA, ALPHA], [], "bmm1")
    [read] = layers_of_inspector(json.dumps({"Layers": [bmm]}))
    assert read.precision == "FP16"


def test_a_node_is_int8_only_where_every_profile_runs_it_so() -> None:
    one = TENSORRT_11["Layers"][0]
    other = layer("v+k+q [profile 1]_myl3_2", "gemm", [tensor("Half", -1, 32)], [tensor("Half", 32, 96)], [], "q")
    report = engine_report(BuildLog(), json.dumps({"Layers": [one, other]}), SITES, 2)
    assert report.int8_gemms == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (json.dumps({"Layers": ["conv + relu", "softmax"]}), "has only the names of its layers"),
        (json.dumps({"Nodes": []}), 'no list "Layers"'),
        ("[]", 'no list "Layers"'),
        ("not JSON", "the layers are not known: not JSON: "),
        ("[" * 100_000, "nested more than"),
        ('{"Layers": [{"LayerType": "gemm", "Inputs": 3}]}', '"Inputs" of a layer is not a list'),
        ('{"Layers": [{"LayerType": "gemm", "Inputs": [[]]}]}', '"Inputs" of a layer is not a list'),
        ('{"Layers": [{"LayerType": "gemm", "Outputs": [{"Dimensions": "8"}]}]}', '"Dimensions" of a tensor'),
        ('{"Layers": [{"LayerType": "gemm", "Outputs": [{"Dimensions": [null]}]}]}', "not a whole number"),
        ('{"Layers": [{"LayerType": "gemm", "Weights": {"Count": "x"}}]}', "not a whole number"),
    ],
)
def test_what_cannot_be_read_is_none_with_the_reason(text: str, reason: str) -> None:
    report = engine_report(BuildLog(), text, SITES, 1)
    assert report.layers is report.int8_gemms is report.reformats is None
    assert any(reason in note for note in report.notes)


def test_a_log_without_layers_says_so() -> None:
    log = BuildLog()
    for line in ("Total Weights Memory: 100 bytes", "Total Activation Memory: 7 bytes", "Max Scratch Memory: 5 bytes",
                 "Total Activation Memory: 6 bytes", "Total Host Persistent Memory: 80 bytes"):  # fmt: skip
        log.add(line)
    report = engine_report(log, None, SITES, 2)
    assert (report.weights_bytes, report.activation_bytes, report.scratch_bytes) == (100, 7, 5), "the largest profile's"
    assert report.source == "builder log"
    assert report.layers is None
    assert "the builder's log does not list them" in report.notes[0]
    log.add("Layers:\nof a form to come")
    assert "no layer information in a form known here" in engine_report(log, None, SITES, 2).notes[0]


def test_names_with_brackets_and_commas_are_read_from_a_log() -> None:
    text = (
        "Layers:\n"
        "Name: [ShapeHostToDeviceCopy 0], LayerType: ShapeHostToDevice, Inputs: [], Outputs: [ { Name: n, Location: Device, "
        "Dimensions: [1], Datatype: Int64, Format: Format not available due to dynamic shapes }], StreamId: 0, Metadata: \n"
        "Name: a, b [profile 1]_myl3_4, LayerType: gemm, Inputs: [ { Name: x[0], Dimensions: [-1,8], Strides: [8,1], "
        "StrideOrder: [1,0], Datatype: Int8, Format: (Linear) Row major linear format }], Constants: [ { Name: w, "
        "Dimensions: [8,4], Strides: [4,1], StrideOrder: [1,0], Datatype: Int8, Format: (Linear) Row }], Outputs: [ { Name: "
        "y, Dimensions: [-1,4], Strides: [4,1], StrideOrder: [1,0], Datatype: Float, Format: (Linear) Row }], TacticName: , "
        "StreamId: 0, Metadata: [ONNX Layer: /a/MatMul]\x1e[ONNX Layer: /b/MatMul]\n"
        "\nI/O Tensors:\n Name: x, IOMode: Input, DataType: Int32\n"
    )
    shape, gemm = layers_of_log(text)
    assert (shape.name, shape.precision) == ("[ShapeHostToDeviceCopy 0]", None)
    assert (gemm.name, gemm.kind, gemm.precision) == ("a, b [profile 1]_myl3_4", "gemm", "INT8")
    assert [each.dims for each in (*gemm.inputs, *gemm.constants, *gemm.outputs)] == [(-1, 8), (8, 4), (-1, 4)]
    assert gemm.sources == {"/a/MatMul", "/b/MatMul"}


# Real builds. TensorRT-RTX lists the layers in its log, without a GPU.


def test_a_build_is_read_from_its_log(rtx: Backend, tmp_path: Path) -> None:
    report = build_here(tiny_onnx(tmp_path / "m.onnx"), tmp_path / "m.plan", BuildConfig("rtx", (SMALL,))).report
    if report.source != "builder log":
        pytest.skip("this machine's GPU loads the plan: the inspector was read instead")
    assert (report.gemms, report.int8_gemms, report.bmms) == (1, 1, 0)
    assert sum(report.layers_by_precision.values()) == report.layers > 1
    assert report.weights_bytes >= 8 * 3 + 4 * 11 * 8
    assert report.activation_bytes > 0
    assert report.notes == ()


def test_sites_are_told_by_what_feeds_them(rtx: Backend, tmp_path: Path) -> None:
    """A product with a weight, behind Q/DQ and a transposition; one of two activations; adds of two, of one, of none."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["xq"]), node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        node("DequantizeLinear", ["w", "s", "z"], ["wd"]), node("Transpose", ["wd"], ["wt"], perm=[1, 0]),
        node("MatMul", ["xd", "wt"], ["g"], "gemm"),
        node("QuantizeLinear", ["g", "s", "z"], ["gq"]), node("DequantizeLinear", ["gq", "s", "z"], ["gd"]),
        node("Add", ["gd", "xd"], ["both"], "add-both"), node("Add", ["gd", "x"], ["one"], "add-one"),
        node("Add", ["both", "one"], ["none"], "add-none"),
        node("Transpose", ["none"], ["turned"], perm=[1, 0]), node("MatMul", ["none", "turned"], ["y"], "bmm"),
    ]  # fmt: skip
    constants = {"s": np.float32(0.1), "z": np.int8(0), "w": np.eye(4, dtype=np.int8)}
    graph = helper.make_graph(
        nodes, "sites", [helper.make_tensor_value_info("x", TensorProto.FLOAT, (4, 4))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (4, 4))],
        [numpy_helper.from_array(np.asarray(each), name) for name, each in constants.items()],
    )  # fmt: skip
    path = tmp_path / "sites.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    trt = rtx.module
    network = trt.Builder(rtx.logger()).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, rtx.logger())
    assert parser.parse_from_file(str(path))
    assert graph_sites(trt, network) == GraphSites(("gemm",), ("bmm",), ("add-both",))


@pytest.fixture(scope="module")
def exported(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any]
) -> Callable[..., Path]:
    """``exported(recipe, fuse_qkv=False)``: a tiny BERT of two layers as ONNX; heads of 16, which TensorRT fuses."""
    from q8trt.export.onnx import ExportOptions, export_onnx
    from q8trt.quantization.calibration import calibrate
    from q8trt.quantization.insertion import insert_quantizers
    from q8trt.quantization.recipe import load_recipe

    @functools.cache
    def build(recipe: str, fuse_qkv: bool = False) -> Path:
        model, loaded = tiny_model(), load_recipe(recipe)
        insert_quantizers(model, loaded)
        calibrate(model, loaded, [tiny_batch(seed=seed) for seed in range(3)])
        path = tmp_path_factory.mktemp(recipe) / "model.onnx"
        export_onnx(model, path, "int8", list(tiny_batch()), ExportOptions("torchscript", fuse_qkv=fuse_qkv))
        return path

    return build


@pytest.mark.parametrize("profiles", [(SMALL,), bucket_profiles((8, 16), 2, 4)], ids=["one profile", "two"])
def test_every_int8_product_of_the_graph_runs_in_int8(
    rtx: Backend,
    exported: Callable[..., Path],
    tmp_path: Path,
    profiles: Any,
) -> None:
    report = build_here(exported("full"), tmp_path / "m.plan", BuildConfig("rtx", tuple(profiles))).report
    assert (report.gemms, report.int8_gemms) == (2 * 6 + 2, 2 * 6), "pooler and classifier stay in float"
    assert (report.bmms, report.int8_bmms) == (4, 4)
    assert report.residual_adds == 4
    assert report.layers_by_precision["INT8"] >= len(profiles) * 2 * 4
    assert report.profiles == len(profiles)


@pytest.mark.parametrize("recipe", ["linear", "full"])
def test_the_fused_qkv_gemm_runs_in_int8_in_fewer_layers(
    rtx: Backend, exported: Callable[..., Path], tmp_path: Path, recipe: str
) -> None:
    """The place of the split matters: if Q, K and V are split before the heads, the builder runs the wide GEMM in float."""
    config = BuildConfig("rtx", (SMALL,))
    plain, fused = (
        build_here(exported(recipe, fuse_qkv), tmp_path / "m.plan", config).report for fuse_qkv in (False, True)
    )
    assert (fused.gemms, fused.int8_gemms) == (2 * 4 + 2, 2 * 4)
    assert fused.int8_bmms == plain.int8_bmms == (4 if recipe == "full" else 0)
    assert fused.layers < plain.layers
