"""An ONNX file as the linter reads it: nodes in order, who makes and who reads a tensor, its type, shape and constants.

Weights stay on disk until their values are asked for, and only scales, zero points and small constants ever are; a file with
external data of any size is read as fast as a small one.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from q8trt.errors import EngineError

if TYPE_CHECKING:
    import onnx

#: ONNX element type -> the name used in reports; what is not listed shows under ONNX's own name.
_NAMES = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16", "DOUBLE": "fp64"}
FLOATS = ("fp32", "fp16", "bf16", "fp64")
QUANTIZED = ("int8", "uint8")
#: Tensors with more elements are described to shape inference, not shown to it.
_SMALL = 4096
_RANDOM = ("RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli")

Dims = tuple[int | None, ...]


@dataclass(frozen=True, eq=False)
class Node:
    """One node of the graph.

    Attributes:
        index: its place in the (topological) order.
        name: its own name, or op and index where it has none.
        op: its type; with the domain in front where that is not ONNX's own, as "com.microsoft.Gelu".
        inputs: names; "" for an optional input that is left out.
        outputs: names.
        proto: the node itself.
    """

    index: int
    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    proto: onnx.NodeProto

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute, or `default` where it is not set."""
        from onnx import helper

        found = next((each for each in self.proto.attribute if each.name == name), None)
        return default if found is None else helper.get_attribute_value(found)

    def input(self, position: int) -> str:
        """The name of an input, or "" where it is left out."""
        return self.inputs[position] if position < len(self.inputs) else ""


class Graph:
    """The graph of one ONNX file; see `read_graph`.

    Attributes:
        path: the file.
        opset: version of ONNX's own operators.
        producer: what wrote the file, such as "pytorch 2.13.0".
        nodes: in topological order, Constant nodes left out.
        inputs: names of the inputs, in their order; initializers are none.
        outputs: names of the outputs.
        producers: tensor -> the node that makes it.
        readers: tensor -> the nodes that read it, each once.
        kept_fp32: node -> why q8trt's exporter left it in FP32, as the file's metadata says; {} for other exporters' files.
    """

    def __init__(self, path: Path, model: onnx.ModelProto) -> None:
        self.path = path
        self.opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
        self.kept_fp32: dict[str, str] = _kept_fp32(model)
        self.producer = f"{model.producer_name} {model.producer_version}".strip() or "unknown"
        model, self._tensors = _skeleton(path, model)
        graph = model.graph
        self.nodes = [_node(index, proto) for index, proto in enumerate(_sorted(path, graph))]
        self.inputs = [value.name for value in graph.input if value.name not in self._tensors]
        self.outputs = [value.name for value in graph.output]
        self.producers = {name: node for node in self.nodes for name in node.outputs if name}
        self.readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(filter(None, node.inputs)):
                self.readers.setdefault(name, []).append(node)
        self._types = _inferred_types(path, model)
        self._values: dict[str, np.ndarray | None] = {}
        self._fill_types()

    def _fill_types(self) -> None:
        """Give outputs that shape inference passed over (ops of other domains) the type of their first float input."""
        for node in self.nodes:
            for name in node.outputs:
                if self.dtype(name):
                    continue
                if node.op in ("QuantizeLinear", "DequantizeLinear"):
                    of = node.input(2 if node.op == "QuantizeLinear" else 1)
                    dtype = self.dtype(of) or "uint8"
                else:
                    dtype = next((kind for each in node.inputs if (kind := self.dtype(each)) in FLOATS), "")
                self._types[name] = (dtype, None)

    def dtype(self, tensor: str) -> str:
        """ "fp32", "fp16", "int8", "int64", "bool" ...; "" where it is not known."""
        return self._types.get(tensor, ("", None))[0]

    def shape(self, tensor: str) -> Dims | None:
        """The sizes, None for a dynamic one; None where not even the rank is known."""
        return self._types.get(tensor, ("", None))[1]

    def size(self, tensor: str) -> int:
        """Number of elements of a tensor of known, fixed shape; 0 for any other."""
        shape = self.shape(tensor)
        return int(np.prod([0 if size is None else size for size in shape])) if shape is not None else 0

    def tensor_bytes(self, tensor: str) -> int:
        """Bytes of a stored constant."""
        width = {"int8": 1, "uint8": 1, "bool": 1, "fp16": 2, "bf16": 2, "int16": 2, "int64": 8, "fp64": 8}
        return self.size(tensor) * width.get(self.dtype(tensor), 4)

    @property
    def stored_tensors(self) -> list[str]:
        """Names of all stored constants: initializers and outputs of Constant nodes."""
        return list(self._tensors)

    def source(self, tensor: str) -> str:
        """`tensor`, or what it is a copy of: exporters share initializers through Identity nodes."""
        while (node := self.producers.get(tensor)) is not None and node.op == "Identity":
            tensor = node.inputs[0]
        return tensor

    def is_stored(self, tensor: str) -> bool:
        """Whether the tensor is a constant as it stands in the file, with nothing left to compute."""
        return self.source(tensor) in self._tensors

    def is_constant(self, tensor: str) -> bool:
        """Whether the tensor depends on no input of the graph."""
        return tensor in self._constants

    @cached_property
    def _constants(self) -> set[str]:
        found = set(self._tensors)
        for node in self.nodes:
            inputs = [name for name in node.inputs if name]
            holds_graphs = any(attribute.HasField("g") for attribute in node.proto.attribute)
            if inputs and not holds_graphs and node.op not in _RANDOM and all(name in found for name in inputs):
                found.update(node.outputs)
        return found

    def value(self, tensor: str) -> np.ndarray | None:
        """The values of a stored constant, also behind Identity or Cast; None for anything else."""
        if tensor not in self._values:
            self._values[tensor] = self._read(tensor)
        return self._values[tensor]

    def _read(self, tensor: str) -> np.ndarray | None:
        from onnx import helper, numpy_helper

        stored = self._tensors.get(tensor)
        if stored is not None:
            return np.asarray(numpy_helper.to_array(stored, str(self.path.parent)))
        node = self.producers.get(tensor)
        if node is None or node.op not in ("Identity", "Cast"):
            return None
        value = self.value(node.inputs[0])
        if value is None or node.op == "Identity":
            return value
        with np.errstate(over="ignore"):
            return value.astype(helper.tensor_dtype_to_np_dtype(node.attribute("to")))

    def scalar(self, tensor: str) -> float | None:
        """The value of a constant of one element."""
        if not self.is_constant(tensor) or self.size(tensor) != 1:
            return None
        value = self.value(tensor)
        return None if value is None or value.dtype.kind not in "fiub" else float(value.reshape(-1)[0])

    @cached_property
    def stream(self) -> set[str]:
        """The activations: what the rows gathered from a float or INT8 table, or a float input, become.

        What is computed from the integer inputs alone (mask, positions, shapes) is none, whatever its type.
        """
        found = {name for name in self.inputs if self.dtype(name) in FLOATS}
        for node in self.nodes:
            if is_table_lookup(self, node) or any(name in found for name in node.inputs):
                found.update(name for name in node.outputs if self._carries(node, name))
        return found

    def _carries(self, node: Node, tensor: str) -> bool:
        dtype = self.dtype(tensor)
        return dtype in FLOATS or dtype in QUANTIZED or not dtype or "Integer" in node.op

    def streams_in(self, node: Node) -> list[str]:
        """The activations among a node's inputs."""
        return [name for name in node.inputs if name in self.stream]

    def reader(self, tensor: str) -> Node | None:
        """The only reader of a tensor; None where there are none or several."""
        readers = self.readers.get(tensor, [])
        return readers[0] if len(readers) == 1 else None


def is_table_lookup(graph: Graph, node: Node) -> bool:
    """Whether the node gathers rows of a constant table: an embedding."""
    if node.op != "Gather" or not graph.is_constant(node.inputs[0]) or graph.is_constant(node.inputs[1]):
        return False
    shape = graph.shape(node.inputs[0])
    return graph.dtype(node.inputs[0]) in (*FLOATS, *QUANTIZED) and shape is not None and len(shape) == 2


def _kept_fp32(model: onnx.ModelProto) -> dict[str, str]:
    """The entry of the metadata, if it is a JSON object."""
    text = next((entry.value for entry in model.metadata_props if entry.key == "kept_fp32"), "{}")
    with contextlib.suppress(ValueError):
        if isinstance(found := json.loads(text), dict):
            return found
    return {}


def read_graph(path: str | Path) -> Graph:
    """Read an ONNX file; local functions are inlined.

    Raises:
        EngineError: the file is missing, is no ONNX file, is truncated, or lacks (part of) its external data.
    """
    import onnx
    from google.protobuf.message import DecodeError

    path = Path(path)
    if not path.is_file():
        raise EngineError(f"{path} does not exist; expected an .onnx file or an engine folder")
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except DecodeError:
        raise EngineError(f"{path} is no ONNX file, or a truncated one; export it again") from None
    if not model.graph.node or not model.opset_import:
        raise EngineError(f"{path} holds no ONNX graph: it is empty, truncated or of another format; export it again")
    return Graph(path, model)


def _constants_of(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Initializers, and what Constant nodes hold, each under the name of its tensor."""
    from onnx import numpy_helper

    yield from graph.initializer
    for node in graph.node:
        if node.op_type != "Constant":
            continue
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


def _skeleton(path: Path, model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, onnx.TensorProto]]:
    """The model with its large constants as inputs, functions inlined, and all constants by name."""
    import onnx
    from onnx import external_data_helper, helper, inliner

    small = onnx.ModelProto(ir_version=max(model.ir_version, 4), opset_import=model.opset_import)
    small.functions.extend(model.functions)
    graph = small.graph
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    if model.functions:
        small = inliner.inline_local_functions(small)
        graph = small.graph
    tensors = {tensor.name: tensor for tensor in _constants_of(graph)} | {t.name: t for t in model.graph.initializer}
    kept = [node for node in graph.node if not node.output or node.output[0] not in tensors]
    del graph.node[:]
    graph.node.extend(kept)
    declared = {value.name for value in graph.input}
    for name, tensor in tensors.items():
        if external_data_helper.uses_external_data(tensor):
            _check_external(path, tensor)
        if np.prod(tensor.dims, dtype=np.int64) <= _SMALL:
            copied = graph.initializer.add()
            copied.CopyFrom(tensor)
            if external_data_helper.uses_external_data(copied):
                external_data_helper.load_external_data_for_tensor(copied, str(path.parent))
        elif name not in declared:
            graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    return small, tensors


def _check_external(path: Path, tensor: onnx.TensorProto) -> None:
    entry = {item.key: item.value for item in tensor.external_data}
    file = path.parent / entry.get("location", "")
    if not file.is_file():
        raise EngineError(f"{path} keeps its weights in {file}, which does not exist; copy it beside the model")
    needs = int(entry.get("offset", 0)) + int(entry.get("length", 0))
    if file.stat().st_size < needs:
        raise EngineError(f"{file} is truncated: {tensor.name} reaches to byte {needs:,}; copy or export it again")


def _sorted(path: Path, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes in topological order, which ONNX asks for and not every tool keeps."""
    maker = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    needs = [{maker[name] for name in node.input if name in maker} for node in graph.node]
    if all(max(needed, default=-1) < index for index, needed in enumerate(needs)):
        return list(graph.node)
    try:
        return [graph.node[index] for index in TopologicalSorter(dict(enumerate(needs))).static_order()]
    except CycleError as error:
        node = graph.node[min(error.args[1])]
        raise EngineError(f"{path} is malformed: its graph has a cycle at {node.name or node.op_type}") from None


def _node(index: int, proto: onnx.NodeProto) -> Node:
    op = proto.op_type if proto.domain in ("", "ai.onnx") else f"{proto.domain}.{proto.op_type}"
    return Node(index, proto.name or f"{op}_{index}", op, tuple(proto.input), tuple(proto.output), proto)


def _inferred_types(path: Path, model: onnx.ModelProto) -> dict[str, tuple[str, Dims | None]]:
    import onnx
    from onnx import shape_inference

    try:
        graph = shape_inference.infer_shapes(model, data_prop=True).graph
    except (shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        raise EngineError(f"{path} is malformed: {' '.join(str(error).split())[:300]}") from None
    types: dict[str, tuple[str, Dims | None]] = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        kind = value.type.tensor_type
        shape = None
        if kind.HasField("shape"):
            shape = tuple(size.dim_value if size.HasField("dim_value") else None for size in kind.shape.dim)
        types[value.name] = (_dtype_name(kind.elem_type), shape)
    for tensor in graph.initializer:
        types[tensor.name] = (_dtype_name(tensor.data_type), tuple(tensor.dims))
    return types


def _dtype_name(number: int) -> str:
    from onnx import TensorProto

    if not number:
        return ""
    name = TensorProto.DataType.Name(number)
    return _NAMES.get(name, name.lower())
