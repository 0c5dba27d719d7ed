"""From the bytes of an ONNX file to sound parts that the linter's graph is made of.

The file may hold anything. Nothing is folded or computed here, so time and memory follow the size of the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from q8trt.errors import EngineError
from q8trt.files import MalformedError
from q8trt.files.onnx import check_model, load_external
from q8trt.files.onnx.size import nodes_of
from q8trt.files.onnx.storage import elements
from q8trt.lint import soundness
from q8trt.lint.subgraphs import NONE, bodies

if TYPE_CHECKING:
    import onnx

#: Tensors with more elements are described to shape inference, not shown to it.
_SMALL = 4096
#: ONNX element type -> the name used in reports; what is not listed shows under ONNX's own name.
_NAMES = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16", "DOUBLE": "fp64"}

Dims = tuple[int | None, ...]


@dataclass(frozen=True)
class Parts:
    """One ONNX file, read and checked.

    Attributes:
        path: the file.
        model: the file's message as it is.
        skeleton: the same graph without Constant nodes and large constants, in topological order, functions inlined.
        tensors: name -> initializer or value of a Constant node.
        types: tensor -> its type and shape, as far as they are known.
        opset: version of ONNX's own operators.
        contradiction: what shape inference says that cannot be; "" where all shapes agree.
        invalid: what ONNX's own checker says against the graph; "" where it passes.
    """

    path: Path
    model: onnx.ModelProto
    skeleton: onnx.GraphProto
    tensors: dict[str, onnx.TensorProto]
    types: dict[str, tuple[str, Dims | None]]
    opset: int
    contradiction: str
    invalid: str


def read(path: Path) -> Parts:
    """Read an ONNX file; local functions are inlined.

    Raises:
        EngineError: the file is missing, is no ONNX file, is truncated or malformed, is larger than the linter reads, or
            lacks (part of) its external data.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise EngineError(f"{path} does not exist; expected an .onnx file or an engine folder")
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except DecodeError:
        raise EngineError(f"{path} is no ONNX file, or a truncated one; export it again") from None
    except OSError as error:
        raise EngineError(f"{path} cannot be read: {error.strerror or error}") from None
    if not model.graph.node or not model.opset_import:
        raise EngineError(f"{path} holds no ONNX graph: it is empty, truncated or of another format; export it again")
    try:
        return _parts(path, model)
    except (ValueError, RecursionError) as error:
        text = soundness.show(" ".join(str(error).split()), 300)
        raise EngineError(f"{path} is malformed: {text}") from None


def _parts(path: Path, model: onnx.ModelProto) -> Parts:
    import onnx

    soundness.check_names(model)
    check_model(model, path)
    newest = onnx.defs.onnx_opset_version()
    opset = next((entry.version for entry in model.opset_import if entry.domain in soundness.ONNX_DOMAINS), 0)
    small, tensors = _skeleton(path, model, newest)
    _sort(small.graph)
    soundness.check_graph(small.graph, min(opset, newest))
    types, contradiction = _inferred_types(small)
    return Parts(path, model, small.graph, tensors, types, opset, contradiction, _verdict(small, min(opset, newest)))


def _constants_of(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield initializers, and what Constant nodes hold, each under the name of its tensor."""
    from onnx import numpy_helper

    yield from graph.initializer
    for node in graph.node:
        if node.op_type != "Constant" or node.domain not in soundness.ONNX_DOMAINS:
            continue
        if len(node.output) != 1 or len(node.attribute) != 1:
            raise MalformedError(f"Constant {soundness.show(node.name)!r} needs one output and one attribute")
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


def _skeleton(path: Path, model: onnx.ModelProto, newest: int) -> tuple[onnx.ModelProto, dict[str, onnx.TensorProto]]:
    """The model with its large constants as inputs, functions inlined, and all constants by name."""
    import onnx
    from onnx import helper, inliner

    small = onnx.ModelProto(ir_version=min(max(model.ir_version, 4), onnx.IR_VERSION))
    for entry in model.opset_import:
        version = min(entry.version, newest) if entry.domain in soundness.ONNX_DOMAINS else entry.version
        small.opset_import.add(domain=entry.domain, version=version)
    imported = {entry.domain for entry in small.opset_import}
    for domain in sorted({node.domain for node in nodes_of(model.graph)} - imported - {"", "ai.onnx"}):
        small.opset_import.add(
            domain=domain, version=1
        )  # a file that forgets it is read all the same, as TensorRT does
    small.functions.extend(model.functions)
    graph = small.graph
    graph.name = "skeleton"
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    graph.sparse_initializer.extend(model.graph.sparse_initializer)
    if model.functions:
        try:
            small = inliner.inline_local_functions(small)
        except RuntimeError as error:
            raise MalformedError(f"its functions cannot be inlined: {error}") from None
        graph = small.graph
    constants = [*model.graph.initializer, *(each for each in _constants_of(graph))]
    tensors = {tensor.name: tensor for tensor in constants}
    if len(tensors) < len(constants):
        raise MalformedError("it has two constants of one name")
    kept = [
        node for node in graph.node if not node.output or node.output[0] not in tensors or node.op_type != "Constant"
    ]
    del graph.node[:]
    graph.node.extend(kept)
    declared = {value.name for value in graph.input}
    for name, tensor in tensors.items():
        if elements(tensor) <= _SMALL:
            copied = graph.initializer.add()
            copied.CopyFrom(tensor)
            load_external(copied, path)
        elif name not in declared:
            graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    return small, tensors


def _sort(graph: onnx.GraphProto) -> None:
    """Put the nodes in topological order, which ONNX asks for and not every tool keeps."""
    maker = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    needs = [{maker[name] for name in (*node.input, *bodies(node).captured) if name in maker} for node in graph.node]
    if all(max(needed, default=-1) < index for index, needed in enumerate(needs)):
        return
    nodes = list(graph.node)
    try:
        order = list(TopologicalSorter(dict(enumerate(needs))).static_order())
    except CycleError as error:
        node = nodes[min(error.args[1])]
        raise MalformedError(f"its graph has a cycle at {soundness.show(node.name or node.op_type)}") from None
    del graph.node[:]
    graph.node.extend(nodes[index] for index in order)


def _verdict(small: onnx.ModelProto, opset: int) -> str:
    """Return what ONNX's checker says; ops that ONNX does not define are none of its business."""
    import onnx

    checked = onnx.ModelProto()
    checked.CopyFrom(small)
    for node in checked.graph.node:
        if node.domain in soundness.ONNX_DOMAINS and soundness.schema(node.op_type, opset) is None:
            node.domain = "unknown"
    checked.opset_import.add(domain="unknown", version=1)
    try:
        onnx.checker.check_model(checked)
    except (onnx.checker.ValidationError, ValueError) as error:  # ValueError: larger than protobuf's limit
        return _first_words(error)
    return ""


def _inferred_types(model: onnx.ModelProto) -> tuple[dict[str, tuple[str, Dims | None]], str]:
    """Return the type and shape of each tensor, and what contradicts itself on the way."""
    graph, contradiction = _infer(model)
    types: dict[str, tuple[str, Dims | None]] = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        kind = value.type.tensor_type
        shape = None
        if kind.HasField("shape"):
            shape = tuple(
                size.dim_value if size.HasField("dim_value") and size.dim_value >= 0 else None
                for size in kind.shape.dim
            )
        types[value.name] = (dtype_name(kind.elem_type), shape)
    for tensor in graph.initializer:
        types[tensor.name] = (dtype_name(tensor.data_type), tuple(tensor.dims))
    return types, contradiction


def _infer(model: onnx.ModelProto) -> tuple[onnx.GraphProto, str]:
    """Run shape inference; where it stops, the shapes declared by the file are kept.

    A contradiction is told only where ONNX knows every op and the type of every input: else the inference complains about what
    it does not know.
    """
    from onnx import checker, shape_inference

    refusals = (shape_inference.InferenceError, checker.ValidationError, RuntimeError, ValueError)
    contradiction = ""
    try:
        if not _is_plain(model):
            return shape_inference.infer_shapes(model, data_prop=True).graph, ""
        # Declared shapes of inner tensors and outputs are remarks that TensorRT passes over; what is computed counts.
        bare = type(model)()
        bare.CopyFrom(model)
        del bare.graph.value_info[:]
        for value in bare.graph.output:
            value.type.Clear()
        shape_inference.infer_shapes(bare, strict_mode=True, data_prop=True)
    except refusals as error:
        contradiction = _first_words(error)
    try:
        return shape_inference.infer_shapes(model, data_prop=True).graph, contradiction
    except refusals as error:
        return model.graph, contradiction or _first_words(error)


def _is_plain(model: onnx.ModelProto) -> bool:
    """Return whether the graph has typed inputs, no subgraphs, and ONNX's own ops alone."""
    opset = next((entry.version for entry in model.opset_import if entry.domain in soundness.ONNX_DOMAINS), 0)
    typed = all(value.type.tensor_type.elem_type for value in model.graph.input)
    return typed and all(
        node.domain in soundness.ONNX_DOMAINS and soundness.schema(node.op_type, opset) and bodies(node) is NONE
        for node in model.graph.node
    )


def _first_words(error: Exception) -> str:
    return soundness.show(" ".join(str(error).split()), 300)


def dtype_name(number: int) -> str:
    """Return "fp32", "int8" ... for ONNX's number of a type; "" where it is not known."""
    from onnx import TensorProto

    if number not in TensorProto.DataType.values() or not number:
        return ""
    name: Any = TensorProto.DataType.Name(number)
    return _NAMES.get(name, name.lower())
