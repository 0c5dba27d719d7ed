"""The export passes: both exporters' graphs come out the same, and each pass leaves what the graph computes as it was."""

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
from conftest import ARCHITECTURES
from onnx import TensorProto, helper, numpy_helper

from q8trt.evaluation.parity.probed import ProbedOnnxRuntime, ProbedTorch
from q8trt.export.graph import attribute, constant, nodes, power_of_two
from q8trt.export.onnx import ExportOptions, export_onnx
from q8trt.export.options import EXPORTERS
from q8trt.export.passes import PASSES, attention, normal, quantize, run_passes, smoothing
from q8trt.export.trace import trace
from q8trt.quantization.calibration import calibrate
from q8trt.quantization.insertion import insert_quantizers
from q8trt.quantization.recipe import load_recipe

#: The first pass after which ONNX Runtime knows every node.
RUNNABLE = "insert_qdq"


@pytest.fixture(scope="module")
def full(tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any]) -> Callable[[str], Any]:
    """A model with recipe `full`, smoothed, whose channels differ in size as real ones do."""

    made: dict[str, Any] = {}

    def build(architecture: str) -> Any:
        if architecture not in made:
            model, recipe = tiny_model(architecture), load_recipe("full")
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "LayerNorm.weight" in name or "layer_norm.weight" in name:
                        parameter[::5] *= 20
            insert_quantizers(model, recipe)
            calibrate(model, recipe, [tiny_batch(architecture, seed=seed) for seed in range(3)])
            made[architecture] = model
        return made[architecture]

    return build


def logits(graph: ir.Model, batches: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    """By ONNX Runtime, node by node; quantizers not yet written as Q/DQ are, in a copy."""
    proto = ir.to_proto(graph)
    if any(node.op_type == "QuantizeDequantize" for node in proto.graph.node):
        copy = ir.from_proto(proto)
        normal.lift_constants(copy)
        quantize.insert_qdq(copy)
        proto = ir.to_proto(copy)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    return [session.run(["logits"], batch)[0] for batch in batches]


def batches_of(tiny_batch: Callable[..., Any], architecture: str = "bert") -> list[dict[str, np.ndarray]]:
    return [
        {name: tensor.numpy().astype(np.int32) for name, tensor in tiny_batch(architecture, shape, seed=7).items()}
        for shape in ((1, 8), (3, 17))
    ]


@pytest.mark.parametrize(
    ("architecture", "quantized"),
    [("bert", False), *((architecture, True) for architecture in (*ARCHITECTURES, "deberta-v2"))],
)
def test_both_exporters_give_the_same_file(
    architecture: str, quantized: bool, tmp_path: Path,
    full: Callable[[str], Any], tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any],
) -> None:  # fmt: skip
    model = full(architecture) if quantized else tiny_model(architecture)
    for exporter in EXPORTERS:
        path = tmp_path / f"{exporter}.onnx"
        export_onnx(
            model, path, "int8" if quantized else "fp32", list(tiny_batch(architecture)), ExportOptions(exporter)
        )
    first, second = ((tmp_path / f"{exporter}.onnx").read_bytes() for exporter in EXPORTERS)
    assert first == second


def test_each_pass_computes_the_same(
    architecture: str, full: Callable[[str], Any], tiny_batch: Callable[..., Any]
) -> None:
    batches = batches_of(tiny_batch, architecture)
    graph = trace(full(architecture), list(batches[0]), "torchscript")
    before, changed = logits(graph, batches), Counter[str]()
    for step in PASSES:
        changed[step.name] = step.run(graph)
        after = logits(graph, batches)
        for one, other in zip(before, after, strict=True):
            assert np.isfinite(other).all()
            if step.exact:
                assert np.array_equal(one, other), step.name
            else:
                # Rounding alone: 1 / sqrt(16), the attention scale here, is a power of two.
                assert np.allclose(one, other, atol=1e-5), step.name
        before = after
    # All of them had something to do.
    assert changed["fold_weights"] >= 2 * 6 + 2
    assert changed["insert_qdq"] == 2 * 12
    assert changed["constant_reshapes"] == 2 * 4
    assert changed["fold_attention_scale"] == changed["merge_key_transposes"] == changed["fuse_qkv"] == 2
    assert changed["fold_branch_factors"] == changed["divisions_to_products"] == 2 * 2
    assert changed["fold_layernorm_factors"] >= 3
    for name in ("lift_constants", "transpose_constants", "constants_last", "merge_unsqueezes"):
        assert changed[name] > 0, name


def test_passes_done_twice_change_nothing_more(full: Callable[[str], Any], tiny_batch: Callable[..., Any]) -> None:
    graph = trace(full("bert"), list(tiny_batch()), "torchscript")
    run_passes(graph, frozenset({"fuse_qkv"}))
    first = ir.to_proto(graph)
    again = run_passes(ir.from_proto(first), frozenset({"fuse_qkv"}))
    assert {report.name: report.changed for report in again if report.changed} == {}


def test_optional_passes_run_only_when_asked_for(
    tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any]
) -> None:
    graph = trace(tiny_model(), list(tiny_batch()), "torchscript")
    assert "fuse_qkv" not in {report.name for report in run_passes(graph)}
    assert [step.name for step in PASSES if step.optional] == ["fuse_qkv"]


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "deberta-v2"])
@pytest.mark.parametrize("quantized", [False, True], ids=["float", "full"])
def test_fused_qkv_is_one_gemm_a_layer_to_the_bit_the_same(
    architecture: str, quantized: bool, tmp_path: Path,
    full: Callable[[str], Any], tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any],
) -> None:  # fmt: skip
    model, batches = full(architecture) if quantized else tiny_model(architecture), batches_of(tiny_batch, architecture)
    graphs = []
    for fused in (False, True):
        path = tmp_path / f"{fused}.onnx"
        options = ExportOptions("torchscript", fuse_qkv=fused)
        export_onnx(model, path, "int8" if quantized else "fp32", list(batches[0]), options)
        graphs.append(ir.load(path))
    for one, other in zip(*(logits(graph, batches) for graph in graphs), strict=True):
        if quantized:
            assert np.array_equal(one, other)
        else:  # a wider GEMM may add in another order
            assert np.allclose(one, other, atol=1e-5)
    gemms = [
        sum(constant(node.inputs[1]) is not None or _weight(node) for node in nodes(graph.graph, "MatMul"))
        for graph in graphs
    ]
    assert gemms[0] - gemms[1] == 2 * 2
    splits = nodes(graphs[1].graph, "Split")
    assert len(splits) == 2
    for split in splits:  # MatMul -> Add -> Reshape -> Transpose -> Split of the heads, which TensorRT-RTX runs in INT8
        assert (attribute(split, "axis", None), split.inputs[0].producer().op_type) == (1, "Transpose")
        assert constant(split.inputs[0].producer().inputs[0].producer().inputs[1]).tolist() == [0, 0, 3 * 2, 16]
        assert constant(split.inputs[1]).tolist() == [2, 2, 2]


def _weight(node: Any) -> bool:
    dequantize = node.inputs[1].producer()
    return dequantize is not None and constant(dequantize.inputs[0]) is not None


def test_heads_that_are_split_otherwise_are_not_fused(
    tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any]
) -> None:
    graph = trace(tiny_model(), list(tiny_batch()), "torchscript")
    run_passes(graph)
    for transpose in nodes(
        graph.graph, "Transpose"
    ):  # (batch, sequence, heads, size) -> (heads, batch, sequence, size)
        if list(attribute(transpose, "perm", ())) == [0, 2, 3, 1]:
            transpose.attributes["perm"] = ir.Attr("perm", ir.AttributeType.INTS, (2, 0, 3, 1))
    before = len(graph.graph)
    assert attention.fuse_qkv(graph) == 0
    assert len(graph.graph) == before


@pytest.mark.parametrize("quantized", [False, True], ids=["float", "full"])
def test_a_fused_file_still_shows_what_leaves_each_module(
    quantized: bool, tmp_path: Path, full: Callable[[str], Any], tiny_model: Callable[..., Any],
    tiny_batch: Callable[..., Any],
) -> None:  # fmt: skip
    """The parity check compares Q, K and V too, which lie by heads, Q times the attention scale."""
    model, batch = full("bert") if quantized else tiny_model(), tiny_batch(shape=(2, 9))
    arrays, precision = {name: tensor.numpy() for name, tensor in batch.items()}, "int8" if quantized else "fp32"
    export_onnx(model, tmp_path / "m.onnx", precision, list(batch), ExportOptions("torchscript", fuse_qkv=True))
    names = [f"bert.encoder.layer.0.attention.self.{name}" for name in ("query", "key", "value")]
    with ProbedTorch(model, precision) as torch_runner, ProbedOnnxRuntime(tmp_path / "m.onnx", precision) as runner:
        expected, found = torch_runner.outputs(arrays, names), runner.outputs(arrays, names)
    for name in names:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-4)


def test_smoothing_leaves_two_products_a_block(full: Callable[[str], Any], tiny_batch: Callable[..., Any]) -> None:
    """One before the linears and one after the Add: those of branch and way around are in weights and LayerNorm."""
    graph = trace(full("bert"), list(tiny_batch()), "torchscript")
    before = len(nodes(graph.graph, "Mul", "Div"))
    run_passes(graph)
    left = [constant(node.inputs[1]).shape for node in nodes(graph.graph, "Mul")]
    assert Counter(left) == {(): 1, (32,): 2 * 4, (64,): 2}  # the scalar is the mask's; those of 64 follow GELU
    assert before == 1 + 2 + 2 * 9  # the mask; Q's scale; three linears' inputs, two Adds of two inputs and a sum
    assert all(
        power_of_two(constant(node.inputs[1])) for node in nodes(graph.graph, "Mul") if node.inputs[1].shape.rank()
    )


def graph_of(
    text_nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: dict[str, np.ndarray]
) -> ir.Model:
    graph = helper.make_graph(
        text_nodes, "g", inputs, outputs, [numpy_helper.from_array(value, name) for name, value in constants.items()]
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))


def tensor(name: str, shape: list[int | str]) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def attention_graph(scale_of_scores: bool = False, q_read_twice: bool = False, quantized: bool = False) -> ir.Model:
    """Q and K from one linear each, a product, a scale, softmax."""
    outputs = [tensor("p", ["b", 4, 4])]
    made = [
        helper.make_node("MatMul", ["x", "wq"], ["mq"]), helper.make_node("Add", ["mq", "bq"], ["q"]),
        helper.make_node("MatMul", ["x", "wk"], ["mk"]), helper.make_node("Add", ["mk", "bk"], ["k"]),
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
    ]  # fmt: skip
    query = "q"
    if not scale_of_scores:
        made.append(helper.make_node("Mul", ["q", "c"], ["qs"]))
        query = "qs"
    if quantized:
        made += [helper.make_node("QuantizeLinear", [query, "s", "z"], ["qi"]),
                 helper.make_node("DequantizeLinear", ["qi", "s", "z"], ["qd"])]  # fmt: skip
        query = "qd"
    made.append(helper.make_node("MatMul", [query, "kt"], ["raw"]))
    if scale_of_scores:
        made.append(helper.make_node("Mul", ["raw", "c"], ["scores"]))
    made.append(helper.make_node("Softmax", ["scores" if scale_of_scores else "raw"], ["p"], axis=-1))
    if q_read_twice:
        made.append(helper.make_node("Relu", ["q"], ["also"]))
        outputs.append(tensor("also", ["b", 4, 8]))
    random = np.random.default_rng(0)
    weights = {name: random.normal(size=(8, 8)).astype(np.float32) for name in ("wq", "wk")}
    biases = {name: random.normal(size=8).astype(np.float32) for name in ("bq", "bk")}
    constants = weights | biases | {"c": np.float32(0.25), "s": np.float32(0.05), "z": np.int8(0)}
    return graph_of(made, [tensor("x", ["b", 4, 8])], outputs, constants)


@pytest.mark.parametrize("scale_of_scores", [False, True])
def test_attention_scale_is_folded_wherever_it_stands(scale_of_scores: bool) -> None:
    graph = attention_graph(scale_of_scores)
    assert attention.fold_attention_scale(graph) == 1
    assert nodes(graph.graph, "Mul") == []
    weight = constant(nodes(graph.graph, "MatMul")[0].inputs[1])
    assert np.array_equal(weight, constant(attention_graph().graph.initializers["wq"]) * np.float32(0.25))


@pytest.mark.parametrize(
    "case", [{"q_read_twice": True}, {"scale_of_scores": True, "quantized": True}], ids=["Q read twice", "Q quantized"]
)
def test_attention_scale_stays_where_folding_would_change_something_else(case: dict[str, bool]) -> None:
    graph = attention_graph(**case)
    assert attention.fold_attention_scale(graph) == 0
    assert len(nodes(graph.graph, "Mul")) == 1


def test_a_division_by_what_is_no_power_of_two_stays(tmp_path: Path) -> None:
    made = [helper.make_node("Div", ["x", "a"], ["y"]), helper.make_node("Div", ["y", "b"], ["z"])]
    constants = {"a": np.array([0.5, 4.0], np.float32), "b": np.array([3.0, 1.0], np.float32)}
    graph = graph_of(made, [tensor("x", [2])], [tensor("z", [2])], constants)
    assert normal.divisions_to_products(graph) == 1
    assert [node.op_type for node in graph.graph] == ["Mul", "Div"]
    assert constant(nodes(graph.graph, "Mul")[0].inputs[1]).tolist() == [2.0, 0.25]


def test_layernorm_read_by_something_else_keeps_its_values() -> None:
    made = [
        helper.make_node("LayerNormalization", ["x", "w", "b"], ["n"]),
        helper.make_node("Mul", ["n", "f"], ["y"]), helper.make_node("Tanh", ["n"], ["z"]),
    ]  # fmt: skip
    constants = {name: np.full(4, value, np.float32) for name, value in (("w", 1), ("b", 0), ("f", 2))}
    graph = graph_of(made, [tensor("x", ["b", 4])], [tensor("y", ["b", 4]), tensor("z", ["b", 4])], constants)
    assert smoothing.fold_layernorm_factors(graph) == 0
    assert constant(graph.graph.initializers["w"]).tolist() == [1] * 4


def test_factors_that_are_no_powers_of_two_stay_out_of_weights() -> None:
    made = [
        helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["a"]),
        helper.make_node("Mul", ["a", "f"], ["y"]), helper.make_node("QuantizeLinear", ["y", "s", "z"], ["q"]),
    ]  # fmt: skip
    constants = {"w": np.eye(4, dtype=np.float32), "b": np.ones(4, np.float32), "s": np.float32(1), "z": np.int8(0)}
    output = helper.make_tensor_value_info("q", TensorProto.INT8, ["b", 4])
    for factor, folded in ((3.0, 0), (4.0, 1)):
        factors = {"f": np.full(4, factor, np.float32)}
        graph = graph_of(made, [tensor("x", ["b", 4])], [output], constants | factors)
        assert smoothing.fold_branch_factors(graph) == folded


@pytest.mark.parametrize("field", [{"exporter": "onnxscript"}])
def test_unknown_exporter(field: dict[str, str]) -> None:
    from q8trt.errors import ConfigError

    message = r"^unknown --exporter 'onnxscript' \(did you mean 'torchscript'\?\); known: dynamo, torchscript$"
    with pytest.raises(ConfigError, match=message):
        ExportOptions(**field)
