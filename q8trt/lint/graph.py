"""An ONNX file as the linter reads it: an `onnx_ir` graph with the types, shapes and constants of its values.

Values are read only for scales, zero points and small constants. Weights stay on disk, so a file with external data of any
size is read as fast as a small file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx_ir as ir
from onnx import TensorProto

from q8trt.files.onnx import load_external
from q8trt.files.onnx.storage import elements
from q8trt.lint.reading import Source, read
from q8trt.lint.soundness import show
from q8trt.quantization.precision import FORMATS

FLOATS = ("fp32", "fp16", "bf16", "fp64")
#: Types of the formats that q8trt quantizes to, and types of tensors that count as quantized.
FORMAT_TYPES = tuple(each.onnx_type.lower() for each in FORMATS.values())
QUANTIZED = (*FORMAT_TYPES, "uint8")
#: ONNX element type -> its name in reports. All other types have ONNX's own name in lower case.
_NAMES = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16", "DOUBLE": "fp64", "UNDEFINED": ""}
_DTYPES = {number: _NAMES.get(name, name.lower()) for name, number in TensorProto.DataType.items()}
_BYTES = {"int8": 1, "uint8": 1, "bool": 1, "fp16": 2, "bf16": 2, "int16": 2, "int64": 8, "fp64": 8}
#: Limits in elements. Arrays above the first are not cached, arrays above the second are not read.
_CACHED, _LARGEST_READ = 2**18, 2**28
_RANDOM = ("RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli")

Dims = tuple[int | None, ...]
T = TypeVar("T", int, tuple[int, ...])
Value = ir.Value | None


def dtype_name(number: int | None) -> str:
    """Return the name, such as "fp32" or "int8", of an ONNX element type given by number; "" if ONNX does not define it."""
    return _DTYPES.get(number or 0, "")


@lru_cache(4096)
def _op(domain: str, op_type: str) -> str:
    return show(f"{domain}.{op_type}" if domain else op_type)


def op_of(node: ir.Node) -> str:
    """Return a node's type, with the domain if it is not ONNX's own, such as "com.microsoft.Gelu"."""
    return _op(node.domain, node.op_type)


def operand(node: ir.Node, position: int) -> Value:
    """Return an input of a node; None if it is left out."""
    return node.inputs[position] if position < len(node.inputs) else None


def attribute(node: ir.Node, name: str, default: T) -> T:
    """Return an attribute of the type of `default`, an integer or integers; `default` if the node has no such attribute."""
    kind = ir.AttributeType.INT if isinstance(default, int) else ir.AttributeType.INTS
    stored = node.attributes.get(name)
    return default if stored is None or stored.is_ref() or stored.type != kind else stored.value


def inner_nodes(node: ir.Node) -> Iterator[ir.Node]:
    """Yield the nodes of all subgraphs of a node, such as the bodies of If, Loop and Scan, at every depth."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield from attribute.as_graph().all_nodes()
        elif attribute.type == ir.AttributeType.GRAPHS:
            for graph in attribute.as_graphs():
                yield from graph.all_nodes()


class Graph:
    """The graph of one ONNX file; see `read_graph`.

    Attributes:
        source: the file as it was read.
        nodes: the nodes in topological order, without Constant nodes. Each has a printable name.
        index: node -> its position in `nodes`.
        inputs: the inputs in their order, without initializers.
        outputs: the outputs.
        constants: stored constant (initializer or output of a Constant node) -> its message, in the order of the file.
        readers: value -> the nodes that read it, each once, also if only a subgraph of the node reads it.
    """

    def __init__(self, source: Source) -> None:
        self.source, graph = source, source.graph
        self.nodes = list(graph)
        self.index = {node: index for index, node in enumerate(self.nodes)}
        for node, index in self.index.items():
            node.name = show(node.name or "") or f"{op_of(node)}_{index}"
        values = {value.name: value for value in (*graph.inputs, *graph.initializers.values())}
        values |= {value.name: value for node in self.nodes for value in node.outputs if value.name}
        self.constants: dict[ir.Value, TensorProto] = {
            values[name]: tensor for name, tensor in source.constants.items()
        }
        self.inputs = [value for value in graph.inputs if value not in self.constants and value.name in source.declared]
        self.outputs = list(graph.outputs)
        self._read = {
            node: [*dict.fromkeys(filter(None, (*node.inputs, *map(values.get, names))))]
            for node, names in zip(self.nodes, source.captured, strict=True)
        }
        self.readers: dict[ir.Value, list[ir.Node]] = {}
        for node, values_read in self._read.items():
            for value in values_read:
                self.readers.setdefault(value, []).append(node)
        self._by_op: dict[str, list[ir.Node]] = {}
        for node in self.nodes:
            self._by_op.setdefault(op_of(node), []).append(node)
        self._guessed: dict[Value, str] = {}
        self._values: dict[Value, np.ndarray | None] = {}
        self._guess_types()

    def _guess_types(self) -> None:
        """Guess the types of outputs without an inferred type, such as those of ops of other domains.

        The output of Q has the type of the zero point, that of DQ the type of the scale, any other that of the first float input.
        """
        for node in self.nodes:
            for value in node.outputs:
                if not value.name or self.dtype(value):
                    continue
                if op_of(node) in ("QuantizeLinear", "DequantizeLinear"):
                    dtype = self.dtype(operand(node, 2 if op_of(node) == "QuantizeLinear" else 1)) or "uint8"
                else:
                    dtype = next((kind for each in node.inputs if (kind := self.dtype(each)) in FLOATS), "")
                self._guessed[value] = dtype

    def nodes_of(self, *ops: str) -> list[ir.Node]:
        """Return the nodes of one of `ops`, in topological order."""
        if len(ops) == 1:
            return self._by_op.get(ops[0], [])
        return sorted((node for op in ops for node in self._by_op.get(op, ())), key=self.index.__getitem__)

    def inferred_type(self, value: Value) -> str:
        """Return the type from shape inference and the file, such as "fp32", "int8" or "bool"; "" if it is not known."""
        if value in self.constants:
            return dtype_name(self.constants[value].data_type)
        return dtype_name(value.dtype) if value is not None and isinstance(value.type, ir.TensorType) else ""

    def dtype(self, value: Value) -> str:
        """Return the `inferred_type`, or else the type that was guessed from the inputs of the node; "" if neither is known."""
        return self.inferred_type(value) or self._guessed.get(value, "")

    def declared_type(self, value: ir.Value) -> str:
        """Return the type that the file declares for an input or output; "" if it declares no tensor type."""
        return dtype_name(self.source.declared.get(value.name or "", 0))

    def shape(self, value: Value) -> Dims | None:
        """Return the sizes, with None for a dynamic size; None if the rank is not known."""
        if value in self.constants:
            return tuple(self.constants[value].dims)
        if value is None or value.shape is None or value in self._guessed or not isinstance(value.type, ir.TensorType):
            return None
        return tuple(size if isinstance(size, int) and size >= 0 else None for size in value.shape)

    def size(self, value: Value) -> int:
        """Return the number of elements of a tensor with a fixed shape; 0 for any other tensor."""
        shape = self.shape(value)
        return math.prod(0 if size is None else size for size in shape) if shape is not None else 0

    def stored_bytes(self, value: Value) -> int:
        """Return the size of a stored constant in bytes."""
        return self.size(value) * _BYTES.get(self.dtype(value), 4)

    def producer(self, value: Value) -> ir.Node | None:
        """Return the node that computes a value; None for inputs and constants."""
        return None if value is None else value.producer()

    def reader(self, value: ir.Value) -> ir.Node | None:
        """Return the only reader of a value; None if there are none or several."""
        readers = self.readers.get(value, [])
        return readers[0] if len(readers) == 1 else None

    def origin(self, value: Value) -> Value:
        """Return `value`, or the value that it copies. Exporters share initializers through Identity nodes."""
        return self._copies.get(value, value)

    @cached_property
    def _copies(self) -> dict[Value, Value]:
        """Output of an Identity -> the value at the start of its chain of Identities."""
        copies: dict[Value, Value] = {}
        for node in self.nodes_of("Identity"):
            copies[node.outputs[0]] = copies.get(node.inputs[0], node.inputs[0])
        return copies

    def is_stored(self, value: Value) -> bool:
        """Return whether the value is a constant that is stored in the file."""
        return self.origin(value) in self.constants

    def is_constant(self, value: Value) -> bool:
        """Return whether the value is a constant, or is computed from constants only."""
        return value in self._fixed

    @cached_property
    def _fixed(self) -> set[Value]:
        fixed: set[Value] = set(self.constants)
        for node, names in zip(self.nodes, self.source.captured, strict=True):
            inputs = [value for value in node.inputs if value is not None]
            pure = not names and op_of(node) not in _RANDOM and next(inner_nodes(node), None) is None
            if inputs and pure and all(value in fixed for value in inputs):
                fixed.update(value for value in node.outputs if value.name)
        return fixed

    def numbers(self, value: Value) -> np.ndarray | None:
        """Return the array of a stored constant, also behind Identity or Cast; None for other values and huge constants."""
        if value in self._values:
            return self._values[value]
        array = self._load(value)
        if array is None or array.size <= _CACHED:
            self._values[value] = array
        return array

    def _load(self, value: Value) -> np.ndarray | None:
        origin = self.origin(value)
        if origin in self.constants:
            tensor = self.constants[origin]
            return _array(tensor, self.source.path) if elements(tensor) <= _LARGEST_READ else None
        node = self.producer(origin)
        if node is None or op_of(node) != "Cast":
            return None
        array, target = self.numbers(node.inputs[0]), attribute(node, "to", 0)
        if array is None or not dtype_name(target) or target == ir.DataType.STRING:
            return None
        kind = ir.DataType(target).numpy()
        with np.errstate(over="ignore", invalid="ignore"):
            return array.astype(kind) if kind.kind in "fiub" else array

    def scalar(self, value: Value) -> float | None:
        """Return the number of a constant of one element; None for any other value."""
        if not self.is_constant(value) or self.size(value) != 1:
            return None
        array = self.numbers(value)
        return None if array is None or array.dtype.kind not in "fiub" else float(array.reshape(-1)[0])

    @cached_property
    def stream(self) -> set[Value]:
        """The activations: all values that are computed from the rows of a float or INT8 table, or from a float input.

        Values computed only from the integer inputs (mask, positions, shapes) are not activations, whatever their type.
        """
        stream: set[Value] = {value for value in self.inputs if self.dtype(value) in FLOATS}
        for node in self.nodes:
            if is_table_lookup(self, node) or any(value in stream for value in self._read[node]):
                stream.update(value for value in node.outputs if value.name and self._carries(node, value))
        return stream

    def _carries(self, node: ir.Node, value: ir.Value) -> bool:
        return self.dtype(value) in (*FLOATS, *QUANTIZED, "") or "Integer" in op_of(node)

    def streams_in(self, node: ir.Node) -> list[ir.Value]:
        """Return the activations among a node's inputs."""
        return [value for value in node.inputs if value is not None and value in self.stream]


def is_table_lookup(graph: Graph, node: ir.Node) -> bool:
    """Return whether the node gathers rows of a constant table: an embedding."""
    if op_of(node) != "Gather" or not graph.is_constant(node.inputs[0]) or graph.is_constant(node.inputs[1]):
        return False
    shape = graph.shape(node.inputs[0])
    return graph.dtype(node.inputs[0]) in (*FLOATS, *QUANTIZED) and shape is not None and len(shape) == 2


def _array(tensor: TensorProto, path: Path) -> np.ndarray | None:
    """Return the values. Types that NumPy lacks become float32. Return None for strings and complex numbers."""
    copied = TensorProto()
    copied.CopyFrom(tensor)
    load_external(copied, path)
    array = ir.serde.deserialize_tensor(copied).numpy()
    if array.dtype.kind in "fiub":
        return array
    return None if array.dtype.kind in "OSUc" else array.astype(np.float32)


def read_graph(path: str | Path) -> Graph:
    """Read an ONNX file. The errors are those of `q8trt.lint.reading.read`."""
    return Graph(read(Path(path)))
