"""The linter on graphs made node by node: each fault is found, where it is, and nothing else is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from lint_graphs import SITES, make_encoder
from onnx import TensorProto, helper, numpy_helper

from q8trt.errors import ConfigError, EngineError
from q8trt.lint import LEVELS, LintConfig, LintReport, lint
from q8trt.lint.rules import RULES

PROFILE = LintConfig(max_shapes=(8, 128))


def linted(folder: Path, config: LintConfig = PROFILE, **changes: Any) -> LintReport:
    return lint(make_encoder(folder / "model.onnx", **changes), config)


def rules(report: LintReport) -> dict[tuple[str, str], int]:
    """(level, rule) -> findings, without the head's GEMM, which no encoder here quantizes."""
    counts: dict[tuple[str, str], int] = {}
    for finding in report.findings:
        if (finding.block, finding.rule) != ("head", "gemm-not-int8"):
            counts[finding.level, finding.rule] = counts.get((finding.level, finding.rule), 0) + 1
    return counts


def without(*sites: str) -> tuple[str, ...]:
    return tuple(site for site in SITES if site not in sites)


def test_a_graph_without_fault_has_no_findings(tmp_path: Path) -> None:
    report = linted(tmp_path)
    assert rules(report) == {}
    assert report.worst == "info"  # the classifier is not quantized
    assert not report.reaches("warning")


def test_the_forecast_counts_what_the_graph_was_made_of(tmp_path: Path) -> None:
    cast = linted(tmp_path).forecast
    layer = 6 + 1 + 1 + 1 + 1 + 6 + 2  # biases, scale, mask, Softmax, Gelu, factors around residuals, LayerNorms
    assert cast.compute_ops_by_type == {"int8": 2 * (6 + 2 + 2), "fp16": 2 * layer + 2, "fp32": 0}
    assert (cast.layers, cast.gemms, cast.int8_gemms, cast.bmms, cast.int8_bmms) == (2, 13, 12, 4, 4)
    assert (cast.residual_adds, cast.int8_residual_adds, cast.fusable_attentions) == (4, 4, 2)
    assert (cast.embeddings, cast.int8_embeddings, cast.fp32_compute_ops) == (1, 1, [])
    activations = 1 + 3 + 1 + 1 + 2 + 1 + 1 + 2  # qkv, bmm inputs, softmax, context, residual, ffn, gelu, residual
    assert cast.qdq_nodes == 2 * (2 * activations + 6) + 1
    assert cast.dangling_qdq == cast.float_weights_behind_quantizer == 0
    assert cast.int8_weight_bytes == 50 * 32 + 2 * (4 * 32 * 32 + 2 * 32 * 64)
    model = onnx.load(tmp_path / "model.onnx")
    floats = [np.prod(t.dims) for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16]
    assert cast.float_weight_bytes == 2 * sum(floats)


def test_blocks_say_what_each_part_does(tmp_path: Path) -> None:
    blocks = {block.name: block for block in linted(tmp_path, sites=without("weight", "softmax")).blocks}
    assert list(blocks) == [
        "embeddings",
        "layer 0 attention",
        "layer 0 feed-forward",
        "layer 1 attention",
        "layer 1 feed-forward",
        "head",
    ]
    attention = {item.label: item.text for item in blocks["layer 1 attention"].items}
    assert attention == {
        "query GEMM": "INT8 x FP16",
        "key GEMM": "INT8 x FP16",
        "value GEMM": "INT8 x FP16",
        "first BMM": "INT8 x INT8",
        "K's Transpose": "after its Q/DQ",
        "Softmax": "FP16",
        "attention": "not fusable: no INT8 after Softmax",
        "second BMM": "FP16 x INT8",
        "output GEMM": "INT8 x FP16",
        "residual Add": "INT8 + INT8",
        "LayerNorm": "FP16",
    }
    for name in ("layer 0 feed-forward", "layer 1 feed-forward"):
        labels = [item.label for item in blocks[name].items]
        assert labels == ["intermediate GEMM", "GELU", "output GEMM", "residual Add", "LayerNorm"]
    assert [item.label for item in blocks["head"].items] == ["GEMM 1"]
    assert [(item.label, item.text) for item in blocks["embeddings"].items] == [
        ("table 50x32", "INT8 table"),
        ("LayerNorm", "FP16"),
    ]


#: What is changed -> the findings that this must make in two layers, and no others.
FAULTS: list[tuple[dict[str, Any], dict[tuple[str, str], int]]] = [
    ({"sites": without("qkv")}, {("warning", "gemm-not-int8"): 6}),
    ({"sites": without("weight")}, {("warning", "gemm-not-int8"): 12}),
    ({"sites": without("residual")}, {("info", "residual-not-int8"): 4}),
    ({"sites": without("table")}, {("info", "embedding-float"): 1}),
    (
        {"sites": without("q", "k", "v", "softmax")},  # attention in FP16: can be fused as such
        {("warning", "bmm-not-int8"): 4},
    ),
    ({"sites": without("v")}, {("warning", "bmm-not-int8"): 2, ("warning", "attention-qkv-qdq"): 2}),
    ({"sites": without("softmax")}, {("warning", "bmm-not-int8"): 2, ("warning", "attention-softmax-qdq"): 2}),
    ({"sites": without("context")}, {("warning", "gemm-not-int8"): 2, ("warning", "attention-output-qdq"): 2}),
    ({"head_size": 24}, {("warning", "attention-head-size"): 2}),
    ({"scale_at": "scores"}, {("warning", "attention-scale"): 2}),
    ({"scale_at": "after quantizer"}, {("warning", "bmm-not-int8"): 2, ("warning", "attention-scale"): 2}),
    ({"mask_qdq": True}, {("warning", "attention-mask-qdq"): 2}),
    ({"key_first": True}, {}),
    ({"gather_first": True}, {("error", "gather-before-dequantize"): 1}),
    ({"norm_input": True}, {("warning", "layernorm-input-quantized"): 4}),
    ({"float_weights": True}, {("warning", "float-weights"): 12}),
    ({"per_tensor_weights": True}, {("info", "weights-per-tensor"): 12}),
    ({"wrong_axis": True}, {("warning", "weight-axis"): 12}),
    ({"activation_by_channel": True}, {("warning", "activation-per-channel"): 8}),
    ({"fp32_softmax": True}, {("warning", "fp32-leftover"): 2}),
    ({"mask_value": -1e9}, {("error", "mask-constant"): 1}),
    ({"mask_value": -1e9, "half": False}, {("info", "mask-constant"): 1}),
    ({"extra": "dangling"}, {("warning", "dangling-qdq"): 2}),
    ({"extra": "alone"}, {("warning", "quantize-alone"): 2}),
    ({"extra": "again"}, {("warning", "requantized"): 2}),
    ({"extra": "again-other"}, {("warning", "requantized"): 2}),
    ({"ids": TensorProto.INT64}, {("info", "int64-input"): 2}),
    ({"scale": 0.0}, {("error", "scale-not-positive"): 37}),
    ({"scale": float("inf")}, {("error", "scale-not-positive"): 37}),
    ({"computed_scale": True}, {("warning", "scale-not-constant"): 37}),
    ({"fixed": (1, 600)}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "expected"), FAULTS, ids=[str(changes) for changes, _ in FAULTS])
def test_each_fault_is_found_and_nothing_else(
    changes: dict[str, Any], expected: dict[tuple[str, str], int], tmp_path: Path
) -> None:
    report = linted(tmp_path, **changes)
    assert rules(report) == expected
    for finding in report.findings:
        assert finding.block.split(" ")[0] in ("", "embeddings", "layer", "head")
        assert finding.why
        assert finding.fix


def test_names_of_nodes_do_not_matter(tmp_path: Path) -> None:
    named, unnamed = linted(tmp_path), linted(tmp_path, names=False)
    assert unnamed.forecast == named.forecast
    assert [block.name for block in unnamed.blocks] == [block.name for block in named.blocks]


def test_one_gemm_for_query_key_and_value(tmp_path: Path) -> None:
    report = linted(tmp_path, fused=True)
    assert rules(report) == {}
    assert (report.forecast.gemms, report.forecast.int8_gemms, report.forecast.fusable_attentions) == (9, 8, 2)
    labels = [item.label for item in report.blocks[1].items if "GEMM" in item.label]
    assert labels == ["fused QKV GEMM", "output GEMM"]


@pytest.mark.parametrize("changes", [{"extra": "add"}, {"tables": 2}])
def test_other_sums_of_activations_are_no_residual_adds(changes: dict[str, Any], tmp_path: Path) -> None:
    report = linted(tmp_path, **changes)
    assert report.forecast.residual_adds == report.forecast.int8_residual_adds == 4
    assert rules(report) == {}


def test_the_place_of_the_keys_transpose_is_told(tmp_path: Path) -> None:
    items = [item for block in linted(tmp_path, key_first=True).blocks for item in block.items]
    assert [item.text for item in items if item.label == "K's Transpose"] == ["before its Q/DQ"] * 2


def test_smoothing_of_residuals_is_looked_through(tmp_path: Path) -> None:
    assert linted(tmp_path, smooth=False).forecast.int8_residual_adds == 4


def test_asymmetric_and_unsigned_integers_are_errors_and_count_as_float(tmp_path: Path) -> None:
    shifted = linted(tmp_path, zero_point=3)
    assert rules(shifted)["error", "zero-point"] == 37
    assert shifted.forecast.int8_gemms == shifted.forecast.int8_bmms == shifted.forecast.int8_embeddings == 0
    unsigned = linted(tmp_path, integers=np.uint8)
    assert rules(unsigned)["error", "unsigned-integers"] == 37
    assert unsigned.forecast.int8_residual_adds == 0
    assert "UINT8 x UINT8" in [item.text for block in unsigned.blocks for item in block.items]


@pytest.mark.parametrize("opset", [18, 20])
def test_fp32_scales_in_an_fp16_graph(opset: int, tmp_path: Path) -> None:
    found = rules(linted(tmp_path, scale_type=np.float32, opset=opset, decomposed=opset < 20))
    assert found["warning", "scale-fp32"] == 37
    assert ("warning", "opset-too-low") in found or opset > 18


def test_decomposed_layernorm_and_gelu_are_one_each(tmp_path: Path) -> None:
    half = linted(tmp_path, decomposed=True, opset=16, sites=())
    # opset 16 has no LayerNormalization: one finding for each of the five
    assert rules(half) == {
        ("warning", "decomposed-layernorm"): 5,
        ("warning", "opset-too-low"): 5,
        ("info", "decomposed-gelu"): 2,
        ("info", "not-quantized"): 1,
    }
    assert half.forecast.residual_adds == 4
    assert rules(linted(tmp_path, decomposed=True, opset=17, sites=(), half=False)) == {
        ("info", "decomposed-layernorm"): 5,
        ("info", "decomposed-gelu"): 2,
        ("info", "not-quantized"): 1,
        ("info", "attention-float-type"): 2,
    }


def test_a_pair_with_the_same_scale_as_its_neighbour_is_without_purpose(tmp_path: Path) -> None:
    assert linted(tmp_path, extra="again").forecast.dangling_qdq == 4
    assert linted(tmp_path, extra="again-other").forecast.dangling_qdq == 0
    assert linted(tmp_path, extra="dangling").forecast.dangling_qdq == 4
    assert linted(tmp_path, extra="alone").forecast.dangling_qdq == 2


def test_one_tensor_quantized_twice_alike(tmp_path: Path) -> None:
    report = linted(tmp_path, twice=True)
    assert rules(report)["warning", "duplicate-qdq"] == 2


def test_the_longest_sequence_decides_on_int8_attention(tmp_path: Path) -> None:
    path = make_encoder(tmp_path / "model.onnx")
    assert lint(path, LintConfig((1, 512))).forecast.fusable_attentions == 2
    longer = lint(path, LintConfig((1, 513)))
    assert longer.forecast.fusable_attentions == 0
    assert rules(longer) == {("warning", "attention-sequence"): 2}
    assert rules(lint(path)) == {("info", "dynamic-shapes"): 1}
    fixed = make_encoder(tmp_path / "fixed.onnx", fixed=(1, 513))
    assert rules(lint(fixed)) == {("warning", "attention-sequence"): 2}


def test_float_attention_is_fusable_in_fp16_by_other_sizes(tmp_path: Path) -> None:
    assert linted(tmp_path, sites=(), head_size=24).forecast.fusable_attentions == 2
    assert rules(linted(tmp_path, sites=(), head_size=12))["warning", "attention-head-size"] == 2
    assert linted(tmp_path, sites=(), half=False).forecast.fusable_attentions == 0


def test_a_weight_beyond_fp16_is_found(tmp_path: Path) -> None:
    path = make_encoder(tmp_path / "model.onnx")
    model = onnx.load(path)
    add = next(node for node in model.graph.node if node.op_type == "Gelu").input[0]
    name = next(node for node in model.graph.node if add in node.output).input[1]
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    bias.CopyFrom(numpy_helper.from_array(np.full(64, np.inf, np.float16), name))
    onnx.save(model, path)
    assert rules(lint(path, PROFILE)) == {("warning", "constant-overflow"): 1}


def test_int32_biases_are_refused(tmp_path: Path) -> None:
    values = {"b": np.ones(8, np.int32), "s": np.ones(8, np.float32)}
    nodes = [
        helper.make_node("DequantizeLinear", ["b", "s"], ["f"], axis=0),
        helper.make_node("Add", ["x", "f"], ["y"]),
    ]
    assert ("error", "int32-dequantize") in rules(lint(small_graph(tmp_path, nodes, values)))


def small_graph(folder: Path, nodes: list[Any], values: dict[str, Any], opset: int = 20) -> Path:
    """x (2, 8) -> y, whatever the nodes do."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    path = folder / "small.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def test_what_is_no_transformer_is_said_so(tmp_path: Path) -> None:
    values = {"w": np.ones((4, 1, 3), np.float32), "s": np.array([2, 1, 8], np.int64)}
    nodes = [
        helper.make_node("Reshape", ["x", "s"], ["r"]),
        helper.make_node("Conv", ["r", "w"], ["c"]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    report = lint(small_graph(tmp_path, nodes, values))
    (finding,) = (each for each in report.findings if each.rule == "not-recognized")
    assert "no attention" in finding.text
    assert "Conv x1, Relu x1" in finding.text
    assert [(item.label, item.text) for item in report.blocks[0].items] == [("GEMM 1", "FP32 x FP32"), ("Relu", "FP32")]


@pytest.mark.parametrize(
    ("op", "domain", "refused"),
    [("FastGelu", "com.microsoft", True), ("Gelu", "com.microsoft", False), ("Relu", "", False)],
)
def test_ops_of_other_domains(op: str, domain: str, refused: bool, tmp_path: Path) -> None:
    report = lint(small_graph(tmp_path, [helper.make_node(op, ["x"], ["y"], domain=domain)], {}))
    assert (("error", "unsupported-op") in rules(report)) == refused


def test_nodes_out_of_order_are_put_in_order(tmp_path: Path) -> None:
    path = make_encoder(tmp_path / "model.onnx")
    expected, model = lint(path), onnx.load(path)
    nodes = list(reversed(model.graph.node))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)
    assert lint(path).forecast == expected.forecast


def test_external_data_is_not_read_and_must_be_there(tmp_path: Path) -> None:
    path = make_encoder(tmp_path / "model.onnx")
    expected, model = lint(path), onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert lint(path).forecast == expected.forecast
    weights = tmp_path / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(EngineError, match=r"'weights\.bin' is truncated"):
        lint(path)
    weights.unlink()
    with pytest.raises(EngineError, match=r"weights\.bin', which does not exist; copy it"):
        lint(path)


def test_the_report_is_json_and_says_why(tmp_path: Path) -> None:
    report = linted(tmp_path, sites=without("v"))
    data = json.loads(json.dumps(report.to_dict()))
    assert data["worst"] == "warning"
    assert data["forecast"] == dataclasses.asdict(report.forecast)
    first = data["findings"][0]
    assert (first["why"], first["fix"]) == (RULES[first["rule"]].why, RULES[first["rule"]].fix)
    levels = [LEVELS.index(finding.level) for finding in report.findings]
    assert levels == sorted(levels)


def test_every_rule_says_where_it_is_written() -> None:
    for name, rule in RULES.items():
        assert name == name.lower()
        assert rule.why
        assert rule.fix
        assert rule.source, name
        assert "\n" not in rule.fix


@pytest.mark.parametrize("shapes", [(0, 128), (4,), (1, -1)])
def test_impossible_shapes_are_refused(shapes: Any) -> None:
    with pytest.raises(ConfigError, match="max_shapes must be a positive batch and sequence"):
        LintConfig(max_shapes=shapes)
