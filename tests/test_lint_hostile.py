"""The linter on files that nobody should have written: one line or a finding, within seconds and megabytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import pytest
from lint_graphs import make_encoder
from onnx import TensorProto, helper, numpy_helper

from benchmarks.campaign import onnx_files as campaign
from q8trt.engine.build_process import build_plan
from q8trt.engine.config import BuildConfig
from q8trt.errors import EngineError
from q8trt.lint import LintReport, lint
from q8trt.runtime.onnxruntime.runner import OnnxRuntimeRunner
from q8trt.runtime.timing.work import work_of_onnx


def changed(folder: Path, change: Callable[[onnx.ModelProto], Any]) -> Path:
    """A small encoder after `change`."""
    path = make_encoder(folder / "model.onnx", layers=1)
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def first(model: onnx.ModelProto, op: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == op)


def findings(report: LintReport, rule: str) -> list[tuple[str, str]]:
    return [(each.level, each.text) for each in report.findings if each.rule == rule]


REFUSED: dict[str, tuple[Callable[[onnx.ModelProto], Any], str]] = {
    "a tensor that nothing makes": (lambda model: first(model, "Gelu").input.__setitem__(0, "gone"), "which nothing makes"),
    "an output made twice": (lambda model: model.graph.node.append(first(model, "Gelu")), "which is there already"),
    "an input too few": (lambda model: first(model, "MatMul").input.pop(), "has 1 inputs; expected 2"),
    "an input left out": (lambda model: first(model, "MatMul").input.__setitem__(1, ""), "lacks its input B"),
    "no output": (lambda model: first(model, "Gelu").output.pop(), "has no output"),
    "an attribute of another type": (
        lambda model: first(model, "Softmax").attribute[0].CopyFrom(helper.make_attribute("axis", "last")),
        "an attribute axis of another type than INT",
    ),
    "two constants of one name": (
        lambda model: model.graph.initializer.append(model.graph.initializer[0]), "two constants of one name",
    ),
    "a dimension of 2^40": (lambda model: model.graph.initializer[0].dims.append(2**40), "but stores"),
    "a negative dimension": (lambda model: model.graph.initializer[0].dims.append(-1), "has the shape"),
    "an undefined type": (lambda model: setattr(model.graph.initializer[0], "data_type", 99), "type number 99"),
    "a Constant of nothing": (
        lambda model: model.graph.node.append(onnx.NodeProto(op_type="Constant", output=["k"])), "one attribute",
    ),
    "an input too few without an opset": (
        lambda model: (setattr(model.opset_import[0], "domain", "other"), first(model, "MatMul").input.pop()),
        "has 1 inputs; expected 2",
    ),
    "an output that nothing makes": (lambda model: setattr(model.graph.output[0], "name", "gone"), "nothing makes its output"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_malformed_is_one_line(name: str, tmp_path: Path) -> None:
    change, words = REFUSED[name]
    path = changed(tmp_path, change)
    with pytest.raises(EngineError) as caught:
        lint(path)
    assert str(caught.value).startswith(f"{path} is malformed: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_subgraph_that_makes_a_tensor_twice_is_refused(tmp_path: Path) -> None:
    path = with_an_if(tmp_path / "model.onnx", quantized=False)
    model = onnx.load(path)
    body = first(model, "If").attribute[0].g
    body.node.append(body.node[0])
    path.write_bytes(model.SerializeToString())
    with pytest.raises(EngineError, match=r"malformed: node '' in a subgraph makes 'b', which is there already"):
        lint(path)


def test_what_onnx_ir_does_not_read_does_not_stop_the_linter(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Sparse constants, and types that ONNX does not define."""
    sparse = onnx.SparseTensorProto(
        values=numpy_helper.from_array(np.ones(1, np.float32), "s"),
        indices=numpy_helper.from_array(np.zeros(1, np.int64)),
        dims=[2],
    )

    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        graph.sparse_initializer.append(sparse)
        graph.node.append(helper.make_node("Constant", [], ["k"], sparse_value=sparse))
        graph.node.append(helper.make_node("Add", ["s", "k"], ["sum"]))
        graph.value_info.append(helper.make_tensor_value_info("sum", 99, [2]))

    report = lint(changed(tmp_path, change))
    assert report.forecast.layers == 1
    assert caplog.records == []


def test_names_that_are_not_utf_8_are_refused(tmp_path: Path) -> None:
    path = changed(tmp_path, lambda model: setattr(first(model, "Gelu"), "name", "QQQQ"))
    path.write_bytes(path.read_bytes().replace(b"QQQQ", b"Q\xff\xfeQ"))
    with pytest.raises(EngineError, match="not UTF-8"):
        lint(path)


def test_names_do_not_reach_the_terminal_as_they_are(tmp_path: Path) -> None:
    def rename(model: onnx.ModelProto) -> None:
        node = first(model, "Gelu")
        node.op_type, node.name, model.producer_name = "Ge\x1b[31mlu", "a\nb\u202e", "\x07me"

    report = lint(changed(tmp_path, rename))
    texts = [report.producer, *(text for each in report.findings for text in (each.node, each.text))]
    assert all(text.isprintable() for text in texts)
    assert any("Ge\\x1b[31mlu is not an op of ONNX" in text for text in texts)


@pytest.mark.parametrize("cycle", [False, True])
def test_functions_that_multiply_are_not_spelled_out(cycle: bool, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(campaign._laughs(40, cycle))
    with pytest.raises(EngineError, match="calls itself" if cycle else "more than 20,000 nodes"):
        lint(tmp_path / "model.onnx")
    with pytest.raises(EngineError, match="calls itself" if cycle else "more than 20,000 nodes"):
        OnnxRuntimeRunner(tmp_path / "model.onnx", "fp32")


def test_values_that_are_no_integers_do_not_stop_the_linter(tmp_path: Path) -> None:
    """Infinity as a zero point, and as the sizes of every Reshape."""

    def spoil(model: onnx.ModelProto) -> None:
        names = {node.input[1]: 3 for node in model.graph.node if node.op_type == "Reshape"}
        names |= {node.input[2]: 0 for node in model.graph.node if node.op_type == "QuantizeLinear"}
        for tensor in model.graph.initializer:
            if tensor.name in names:
                shape = [names[tensor.name] + 1] if names[tensor.name] else []
                tensor.CopyFrom(numpy_helper.from_array(np.full(shape, np.inf, np.float32), tensor.name))

    report = lint(changed(tmp_path, spoil))
    assert ("error", "FP32 with zero point inf") in findings(report, "zero-point")


def with_an_if(path: Path, quantized: bool) -> Path:
    """x + 1, the sum in both branches of an If, which a Q/DQ pair may follow there."""
    output = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
    nodes = [helper.make_node("Add", ["h", "one"], ["b0" if quantized else "b"])]
    if quantized:
        nodes.append(helper.make_node("QuantizeLinear", ["b0", "one", "zero"], ["b1"]))
        nodes.append(helper.make_node("DequantizeLinear", ["b1", "one", "zero"], ["b"]))
    body = helper.make_graph(nodes, "body", [], [output])
    choose = helper.make_node("If", ["c"], ["y"], "choose", then_branch=body, else_branch=body)
    graph = helper.make_graph(
        [choose, helper.make_node("Tanh", ["x"], ["h"])],  # out of order: only the body reads h
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])],
        [
            numpy_helper.from_array(np.float32(1), "one"),
            numpy_helper.from_array(np.int8(0), "zero"),
            numpy_helper.from_array(np.bool_(True), "c"),
        ],
    )
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString())
    return path


def test_qdq_in_a_subgraph_is_not_called_absent(tmp_path: Path) -> None:
    report = lint(with_an_if(tmp_path / "model.onnx", quantized=True))
    text = "If: 6 nodes in its subgraphs were not read, 4 of them Q/DQ"
    assert findings(report, "subgraph-not-read") == [("warning", text)]
    assert findings(report, "not-quantized") == []


def test_a_subgraph_without_qdq_is_a_note(tmp_path: Path) -> None:
    report = lint(with_an_if(tmp_path / "model.onnx", quantized=False))
    assert [level for level, _ in findings(report, "subgraph-not-read")] == ["info"]
    assert len(findings(report, "not-quantized")) == 1


def test_an_op_that_the_parser_lacks_is_told_in_a_subgraph_too(tmp_path: Path) -> None:
    path = with_an_if(tmp_path / "model.onnx", quantized=False)
    model = onnx.load(path)
    first(model, "If").attribute[0].g.node[0].op_type = "BitwiseAnd"
    path.write_bytes(model.SerializeToString())
    assert ("error", "BitwiseAnd in a subgraph is not in TensorRT") in findings(lint(path), "unsupported-op")


READERS: dict[str, Callable[[Path], Any]] = {
    "lint": lint,
    "the counter of work": work_of_onnx,
    "the CPU runner": lambda path: OnnxRuntimeRunner(path, "fp32"),
    "the CPU runner, rewriting": lambda path: OnnxRuntimeRunner(path, "int8"),
    "the builder": lambda path: build_plan(path, path.with_suffix(".plan"), BuildConfig()),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("place", ["../secret.bin", "link.bin", "{folder}/../secret.bin"])
def test_no_reader_follows_weights_out_of_the_folder(reader: str, place: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(65_536))
    (folder / "link.bin").symlink_to("../secret.bin")

    def move(model: onnx.ModelProto) -> None:
        tensor = next(each for each in model.graph.initializer if len(each.dims) == 2)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=place.format(folder=folder))

    path = changed(folder, move)
    with pytest.raises(EngineError, match=r"outside the model's folder|keeps weights in another file"):
        READERS[reader](path)


def test_a_few_cases_of_the_campaign_end_well(tmp_path: Path) -> None:
    """In this process: no fork where threads are."""
    for precision in campaign.PRECISIONS:
        make_encoder(tmp_path / f"{precision}.onnx", layers=1, half="16" in precision)
    bad = []
    names = {}
    for number, (name, data) in enumerate(campaign.files(tmp_path, Random(3))):
        if name.startswith(("external", "forged")) or number % 14:
            continue
        path = tmp_path / "x.onnx"
        path.write_bytes(data)
        names[name.split(":")[0]] = name
        for reader in (lint, lambda path, name=name: OnnxRuntimeRunner(path, name.split(" ")[-2], threads=1)):
            try:
                reader(path)
            except EngineError as error:
                bad += [name] if "\n" in str(error) else []
            except Exception as error:
                bad.append(f"{name}: {error!r}")
    assert len(names) > 10
    assert bad == []
