"""An ONNX file as the linter reads it: nodes in order, who makes and who reads a tensor, its type, shape and constants.

Weights stay on disk until their values are asked for, and only scales, zero points and small constants ever are; a file with
external data of any size is read as fast as a small one.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from q8trt.files import MalformedError, parse_json
from q8trt.files.onnx import load_external
from q8trt.files.onnx.storage import elements
from q8trt.lint.reading import Dims, Parts, dtype_name, read
from q8trt.lint.soundness import ONNX_DOMAINS, show
from q8trt.lint.subgraphs import NONE, Bodies, bodies

if TYPE_CHECKING:
    import onnx

FLOATS = ("fp32", "fp16", "bf16", "fp64")
QUANTIZED = ("int8", "uint8")
#: Arrays of more elements are not kept in memory, and those of far more not read.
_KEPT, _LARGEST_READ = 2**18, 2**28
_RANDOM = ("RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli")


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
        bodies: its subgraphs.
    """

    index: int
    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    proto: onnx.NodeProto
    bodies: Bodies = NONE

    @property
    def reads(self) -> tuple[str, ...]:
        """The inputs, and what the node's subgraphs read."""
        return (*self.inputs, *self.bodies.captured)

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
        contradiction: what shape inference finds that cannot be; "" where all shapes agree.
        invalid: what ONNX's own checker says against the graph; "" where it passes.
        kept_fp32: node -> why q8trt's exporter left it in FP32, as the file's metadata says; {} for other exporters' files.
    """

    def __init__(self, parts: Parts) -> None:
        self.path, self.opset, self._tensors = parts.path, parts.opset, parts.tensors
        self.contradiction, self.invalid = parts.contradiction, parts.invalid
        self.kept_fp32 = _kept_fp32(parts.model)
        self.producer = show(f"{parts.model.producer_name} {parts.model.producer_version}".strip()) or "unknown"
        graph = parts.skeleton
        self.nodes = [_node(index, proto) for index, proto in enumerate(graph.node)]
        self.inputs = [value.name for value in graph.input if value.name not in self._tensors]
        self.outputs = [value.name for value in graph.output]
        declared = (*parts.model.graph.input, *parts.model.graph.output)
        self._declared = {value.name: dtype_name(value.type.tensor_type.elem_type) for value in declared}
        self.producers = {name: node for node in self.nodes for name in node.outputs if name}
        self.readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(filter(None, node.reads)):
                self.readers.setdefault(name, []).append(node)
        self._inferred = parts.types
        self._types = dict(parts.types)
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
        return math.prod(0 if size is None else size for size in shape) if shape is not None else 0

    def tensor_bytes(self, tensor: str) -> int:
        """Bytes of a stored constant."""
        width = {"int8": 1, "uint8": 1, "bool": 1, "fp16": 2, "bf16": 2, "int16": 2, "int64": 8, "fp64": 8}
        return self.size(tensor) * width.get(self.dtype(tensor), 4)

    @property
    def stored_tensors(self) -> list[str]:
        """Names of all stored constants: initializers and outputs of Constant nodes."""
        return list(self._tensors)

    def inferred_type(self, tensor: str) -> str:
        """The type as `dtype` names it, "" where it is only guessed from what the node reads."""
        return self._inferred.get(tensor, ("", None))[0]

    def declared_type(self, tensor: str) -> str:
        """The type that the file gives an input or output, as `dtype` names it; "" where it gives none of a tensor."""
        return self._declared.get(tensor, "")

    def stored_type(self, tensor: str) -> str:
        """The type of a stored constant, as `dtype` names it."""
        return dtype_name(self._tensors[tensor].data_type)

    def source(self, tensor: str) -> str:
        """`tensor`, or what it is a copy of: exporters share initializers through Identity nodes."""
        return self._copies.get(tensor, tensor)

    @cached_property
    def _copies(self) -> dict[str, str]:
        """Output of an Identity -> what it is a copy of, at the end of the chain."""
        copies: dict[str, str] = {}
        for node in self.nodes:
            if node.op == "Identity":
                copies[node.outputs[0]] = copies.get(node.inputs[0], node.inputs[0])
        return copies

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
            if inputs and node.bodies is NONE and node.op not in _RANDOM and all(name in found for name in inputs):
                found.update(node.outputs)
        return found

    def value(self, tensor: str) -> np.ndarray | None:
        """The numbers of a stored constant, also behind Identity or Cast; None for anything else, and for huge ones."""
        if tensor in self._values:
            return self._values[tensor]
        found = self._read(tensor)
        if found is None or found.size <= _KEPT:
            self._values[tensor] = found
        return found

    def _read(self, tensor: str) -> np.ndarray | None:
        from onnx import helper

        source = self.source(tensor)
        if (stored := self._tensors.get(source)) is not None:
            return _numbers(stored, self.path) if elements(stored) <= _LARGEST_READ else None
        node = self.producers.get(source)
        if node is None or node.op != "Cast":
            return None
        value = self.value(node.inputs[0])
        if value is None or node.attribute("to") not in helper.get_all_tensor_dtypes():
            return None
        kind = helper.tensor_dtype_to_np_dtype(node.attribute("to"))
        with np.errstate(over="ignore", invalid="ignore"):
            return value.astype(kind) if kind.kind in "fiub" else value

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
            if is_table_lookup(self, node) or any(name in found for name in node.reads):
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


def _numbers(tensor: onnx.TensorProto, path: Path) -> np.ndarray | None:
    """Return the values, small floats and integers that numpy lacks widened to float32; None for strings and the like."""
    import onnx
    from onnx import numpy_helper

    copied = onnx.TensorProto()
    copied.CopyFrom(tensor)
    load_external(copied, path)
    array = np.asarray(numpy_helper.to_array(copied))
    if array.dtype.kind in "fiub":
        return array
    return None if array.dtype.kind in "OSUc" else array.astype(np.float32)


def _kept_fp32(model: onnx.ModelProto) -> dict[str, str]:
    """Return the entry of the metadata, if it is a JSON object of strings."""
    text = next((entry.value for entry in model.metadata_props if entry.key == "kept_fp32"), "{}")
    with contextlib.suppress(MalformedError):
        if isinstance(entries := parse_json(text), dict):
            return {name: show(reason) for name, reason in entries.items() if isinstance(reason, str)}
    return {}


def _node(index: int, proto: onnx.NodeProto) -> Node:
    op = show(proto.op_type if proto.domain in ONNX_DOMAINS else f"{proto.domain}.{proto.op_type}")
    name = show(proto.name) or f"{op}_{index}"
    return Node(index, name, op, tuple(proto.input), tuple(proto.output), proto, bodies(proto))


def read_graph(path: str | Path) -> Graph:
    """Read an ONNX file; see `q8trt.lint.reading.read`, also for what it raises."""
    return Graph(read(Path(path)))
