"""The reading of an ONNX file as an `onnx_ir` graph with inferred types and shapes.

The file is not trusted. Constants are not folded, so time and memory are proportional to the size of the file.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx import AttributeProto, TensorProto, helper, inliner, numpy_helper

from q8trt.errors import EngineError
from q8trt.files import MalformedError, parse_json
from q8trt.files.onnx import check_model, load_external
from q8trt.files.onnx.size import nodes_of
from q8trt.files.onnx.storage import elements
from q8trt.lint import soundness
from q8trt.lint.soundness import ONNX_DOMAINS, show

#: Shape inference receives only the type and shape of tensors with more elements than this.
_SMALL = 4096
_TYPES = frozenset(TensorProto.DataType.values())
_SPARSE = (AttributeProto.SPARSE_TENSOR, AttributeProto.SPARSE_TENSORS)
_REFUSALS = (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError)
# The checks here report in one line what onnx_ir would log.
logging.getLogger("onnx_ir").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Source:
    """One ONNX file, read and checked.

    Attributes:
        path: the file.
        producer: the program that wrote it, such as "pytorch 2.13.0".
        opset: version of ONNX's own operators.
        graph: the nodes in topological order, without the Constant nodes of `constants`. Functions are inlined, and large
            constants are inputs.
        captured: for each node, the names that its subgraphs read from outside.
        constants: name -> initializer or value of a Constant node, in the order of the file.
        declared: input or output -> the number of its type in the file.
        contradiction: the error of shape inference; "" if all shapes agree.
        invalid: the error of ONNX's checker; "" if it passes.
        kept_fp32: node -> the reason why q8trt's exporter left it in FP32, from the file's metadata.
    """

    path: Path
    producer: str
    opset: int
    graph: ir.Graph
    captured: list[tuple[str, ...]]
    constants: dict[str, TensorProto]
    declared: dict[str, int]
    contradiction: str
    invalid: str
    kept_fp32: dict[str, str]


def read(path: Path) -> Source:
    """Read an ONNX file. Local functions are inlined.

    Raises:
        EngineError: the file is missing, truncated or malformed, is not an ONNX file, has too many nodes, or its external data
            are missing.
    """
    if not path.is_file():
        raise EngineError(f"{path} does not exist; expected an .onnx file or an engine folder")
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except DecodeError:
        raise EngineError(f"{path} is not an ONNX file, or is truncated; export it again") from None
    except OSError as error:
        raise EngineError(f"{path} cannot be read: {error.strerror or error}") from None
    if not model.graph.node or not model.opset_import:
        raise EngineError(f"{path} has no ONNX graph: it is empty, truncated or of another format; export it again")
    try:
        return _source(path, model)
    except (ValueError, RecursionError, ir.serde.SerdeError) as error:
        raise EngineError(f"{path} is malformed: {_first_words(error)}") from None


def _source(path: Path, model: onnx.ModelProto) -> Source:
    soundness.check_names(model)
    check_model(model, path)
    newest = onnx.defs.onnx_opset_version()
    opset = next((entry.version for entry in model.opset_import if entry.domain in ONNX_DOMAINS), 0)
    small, constants = _skeleton(path, model, newest)
    soundness.sort_nodes(small.graph)
    soundness.check_graph(small.graph, min(opset, newest))
    inferred, contradiction = _infer(small)
    return Source(
        path=path,
        producer=show(f"{model.producer_name} {model.producer_version}".strip()) or "unknown",
        opset=opset,
        graph=_to_ir(inferred),
        captured=[tuple(soundness.captured(node)) for node in inferred.node],
        constants=constants,
        declared={each.name: each.type.tensor_type.elem_type for each in (*model.graph.input, *model.graph.output)},
        contradiction=contradiction,
        invalid=_complaint(small, min(opset, newest)),
        kept_fp32=_kept_fp32(model),
    )


def _constants_of(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """Yield the initializers and the values of Constant nodes, each with the name of its tensor."""
    yield from graph.initializer
    for node in graph.node:
        if node.op_type != "Constant" or node.domain not in ONNX_DOMAINS:
            continue
        if len(node.output) != 1 or len(node.attribute) != 1:
            raise MalformedError(f"Constant {show(node.name)!r} needs one output and one attribute")
        attribute = node.attribute[0]
        if attribute.name == "value":
            tensor = attribute.t
        elif attribute.name.startswith("value_") and "string" not in attribute.name:
            number = {"value_int": attribute.i, "value_ints": list(attribute.ints), "value_float": attribute.f}
            values = number.get(attribute.name, list(attribute.floats))
            tensor = numpy_helper.from_array(np.array(values, np.int64 if "int" in attribute.name else np.float32))
        else:
            continue
        tensor.name = node.output[0]
        yield tensor


def _skeleton(path: Path, model: onnx.ModelProto, newest: int) -> tuple[onnx.ModelProto, dict[str, TensorProto]]:
    """Return the model with its large constants as inputs and its functions inlined, and all constants by name."""
    small = onnx.ModelProto(ir_version=min(max(model.ir_version, 4), onnx.IR_VERSION))
    for entry in model.opset_import:
        version = min(entry.version, newest) if entry.domain in ONNX_DOMAINS else entry.version
        small.opset_import.add(domain=entry.domain, version=version)
    imported = {entry.domain for entry in small.opset_import} | set(ONNX_DOMAINS)
    for domain in sorted({node.domain for node in nodes_of(model.graph)} - imported):
        small.opset_import.add(domain=domain, version=1)  # TensorRT accepts files without this entry
    small.functions.extend(model.functions)
    graph = small.graph
    graph.name = "skeleton"
    for field in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(graph, field).extend(getattr(model.graph, field))
    if model.functions:
        try:
            small = inliner.inline_local_functions(small)
        except RuntimeError as error:
            raise MalformedError(f"its functions cannot be inlined: {error}") from None
        graph = small.graph
    tensors = [*model.graph.initializer, *_constants_of(graph)]
    constants = {tensor.name: tensor for tensor in tensors}
    if len(constants) < len(tensors):
        raise MalformedError("it has two constants of one name")
    nodes = [node for node in graph.node if node.op_type != "Constant" or not constants.keys() & node.output]
    del graph.node[:]
    graph.node.extend(nodes)
    declared = {value.name for value in graph.input}
    for name, tensor in constants.items():
        if elements(tensor) <= _SMALL:
            copied = graph.initializer.add()
            copied.CopyFrom(tensor)
            load_external(copied, path)
        elif name not in declared:
            graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    return small, constants


def _infer(model: onnx.ModelProto) -> tuple[onnx.GraphProto, str]:
    """Run shape inference. Return the graph, with the shapes that the file declares if inference fails, and the error.

    Strict inference runs only if ONNX defines every op and the type of every input is known. Otherwise it would also report ops
    and types that it does not know.
    """
    contradiction = ""
    try:
        if not _is_plain(model):
            return onnx.shape_inference.infer_shapes(model, data_prop=True).graph, ""
        # TensorRT ignores the declared shapes of inner tensors and outputs, and uses only the computed ones.
        bare = onnx.ModelProto()
        bare.CopyFrom(model)
        del bare.graph.value_info[:]
        for value in bare.graph.output:
            value.type.Clear()
        onnx.shape_inference.infer_shapes(bare, strict_mode=True, data_prop=True)
    except _REFUSALS as error:
        contradiction = _first_words(error)
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True).graph, contradiction
    except _REFUSALS as error:
        return model.graph, contradiction or _first_words(error)


def _is_plain(model: onnx.ModelProto) -> bool:
    """Return whether the graph has typed inputs, no subgraphs, and only ONNX's own ops."""
    opset = next((entry.version for entry in model.opset_import if entry.domain in ONNX_DOMAINS), 0)
    typed = all(value.type.tensor_type.elem_type for value in model.graph.input)
    return typed and all(
        node.domain in ONNX_DOMAINS and soundness.schema(node.op_type, opset) and not _has_subgraph(node)
        for node in model.graph.node
    )


def _has_subgraph(node: onnx.NodeProto) -> bool:
    return any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)


def _complaint(small: onnx.ModelProto, opset: int) -> str:
    """Return the error of ONNX's checker, "" if there is none. Ops that ONNX does not define are not checked."""
    checked = onnx.ModelProto()
    checked.CopyFrom(small)
    for node in checked.graph.node:
        if node.domain in ONNX_DOMAINS and soundness.schema(node.op_type, opset) is None:
            node.domain = "unknown"
    checked.opset_import.add(domain="unknown", version=1)
    try:
        onnx.checker.check_model(checked)
    except (onnx.checker.ValidationError, ValueError) as error:  # ValueError: larger than protobuf's limit
        return _first_words(error)
    return ""


def _to_ir(graph: onnx.GraphProto) -> ir.Graph:
    """Convert a graph, without sparse tensors and types that ONNX does not define, which onnx_ir does not read."""
    for sparse in graph.sparse_initializer:
        graph.input.add(name=sparse.values.name)
    for node in nodes_of(graph):
        node.ClearField("device_configurations")
        dense = [each for each in node.attribute if each.type not in _SPARSE]
        if len(dense) < len(node.attribute):
            del node.attribute[:]
            node.attribute.extend(dense)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type not in _TYPES:
            value.ClearField("type")
    return ir.serde.deserialize_graph(graph)


def _kept_fp32(model: onnx.ModelProto) -> dict[str, str]:
    """Return the strings of the JSON object under ``kept_fp32`` in the metadata; {} if there is no such object."""
    text = next((entry.value for entry in model.metadata_props if entry.key == "kept_fp32"), "{}")
    with contextlib.suppress(MalformedError):
        if isinstance(entries := parse_json(text), dict):
            return {name: show(reason) for name, reason in entries.items() if isinstance(reason, str)}
    return {}


def _first_words(error: BaseException) -> str:
    while isinstance(error, ir.serde.SerdeError) and error.__cause__ is not None:
        error = error.__cause__
    return show(" ".join(str(error).split()), 300)
