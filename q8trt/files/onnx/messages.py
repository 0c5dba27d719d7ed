"""Reading and writing of ONNX files without the onnx package, which the light install lacks (it and onnx_ir add 141 MiB).

An ONNX file is a protobuf message, and ONNX Runtime depends on protobuf. The schema declares only the fields that this room and
`q8trt.runtime.onnxruntime` read or change. All other fields remain in a message as unknown fields and are written back
unchanged. Names, numbers and types are those of onnx/onnx.proto. An enum is read as an integer. The functions also accept
messages of the onnx package.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from q8trt.files import MalformedError
from q8trt.files.protobuf import Schema, message_class

SCHEMA: Schema = {
    "ModelProto": {
        "graph": (7, "GraphProto", False),
        "opset_import": (8, "OperatorSetIdProto", True),
        "functions": (25, "FunctionProto", True),
    },
    "FunctionProto": {
        "name": (1, "string", False),
        "node": (7, "NodeProto", True),
        "domain": (10, "string", False),
        "value_info": (12, "ValueInfoProto", True),
    },
    "OperatorSetIdProto": {"domain": (1, "string", False), "version": (2, "int64", False)},
    "GraphProto": {
        "node": (1, "NodeProto", True),
        "initializer": (5, "TensorProto", True),
        "input": (11, "ValueInfoProto", True),
        "output": (12, "ValueInfoProto", True),
        "value_info": (13, "ValueInfoProto", True),
        "sparse_initializer": (15, "SparseTensorProto", True),
    },
    "ValueInfoProto": {"name": (1, "string", False), "type": (2, "TypeProto", False)},
    "TypeProto": {"tensor_type": (1, "Tensor", False)},
    "Tensor": {"elem_type": (1, "int32", False)},  # TypeProto.Tensor
    "NodeProto": {
        "input": (1, "string", True),
        "output": (2, "string", True),
        "name": (3, "string", False),
        "op_type": (4, "string", False),
        "attribute": (5, "AttributeProto", True),
        "domain": (7, "string", False),
    },
    "AttributeProto": {
        "name": (1, "string", False),
        "i": (3, "int64", False),
        "t": (5, "TensorProto", False),
        "g": (6, "GraphProto", False),
        "tensors": (10, "TensorProto", True),
        "graphs": (11, "GraphProto", True),
        "sparse_tensor": (22, "SparseTensorProto", False),
        "sparse_tensors": (23, "SparseTensorProto", True),
        "type": (20, "int32", False),
    },
    "SparseTensorProto": {
        "values": (1, "TensorProto", False),
        "indices": (2, "TensorProto", False),
        "dims": (3, "int64", True),
    },
    "StringStringEntryProto": {"key": (1, "string", False), "value": (2, "string", False)},
    "TensorProto": {
        "dims": (1, "int64", True),
        "data_type": (2, "int32", False),
        "float_data": (4, "float", True),
        "int32_data": (5, "int32", True),
        "string_data": (6, "bytes", True),
        "int64_data": (7, "int64", True),
        "name": (8, "string", False),
        "raw_data": (9, "bytes", False),
        "double_data": (10, "double", True),
        "uint64_data": (11, "uint64", True),
        "external_data": (13, "StringStringEntryProto", True),
        "data_location": (14, "int32", False),
    },
}
# TensorProto.DataType
FLOAT, UINT8, INT8, INT32, INT64, BOOL, FLOAT16, DOUBLE, BFLOAT16 = 1, 2, 3, 6, 7, 9, 10, 11, 16
DTYPES = {
    FLOAT: np.float32, UINT8: np.uint8, INT8: np.int8, INT32: np.int32, INT64: np.int64, BOOL: np.bool_,
    FLOAT16: np.float16, DOUBLE: np.float64,
}  # fmt: skip
_TYPED = {FLOAT: "float_data", INT64: "int64_data", DOUBLE: "double_data"}
_INT = 2  # AttributeProto.AttributeType


@functools.cache
def _model_class() -> Any:
    return message_class(SCHEMA, "ModelProto", "q8trt.onnx")


def parse(data: bytes) -> Any:
    """Return the ModelProto in `data`. Raises MalformedError if there is none."""
    model = _model_class()()
    try:
        model.ParseFromString(data)
    except Exception as error:  # google.protobuf.message.DecodeError, which is not imported here
        raise MalformedError(f"it is not an ONNX model: {error}") from error
    return model


def to_array(tensor: Any) -> np.ndarray | None:
    """Return the values of a TensorProto in its shape; None if its type is not in `DTYPES`."""
    dtype = DTYPES.get(tensor.data_type)
    if dtype is None:
        return None
    shape = tuple(tensor.dims)
    if tensor.raw_data:
        return np.frombuffer(tensor.raw_data, np.dtype(dtype).newbyteorder("<")).reshape(shape)
    values = getattr(tensor, _TYPED.get(tensor.data_type, "int32_data"))
    if tensor.data_type == FLOAT16:  # stored as the 16 bits
        return np.array(values, np.uint16).view(np.float16).reshape(shape)
    return np.array(values, dtype).reshape(shape)


def set_array(tensor: Any, array: np.ndarray) -> None:
    """Replace the values, type and shape of a TensorProto, but not its name."""
    name = tensor.name
    tensor.Clear()
    tensor.name, tensor.data_type = name, next(key for key, dtype in DTYPES.items() if dtype == array.dtype)
    tensor.dims.extend(array.shape)
    tensor.raw_data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def add_initializer(graph: Any, name: str, array: np.ndarray) -> Any:
    """Add a constant to a GraphProto and return its TensorProto."""
    tensor = graph.initializer.add(name=name)
    set_array(tensor, array)
    return tensor


def new_node(
    graph: Any, op_type: str, inputs: Sequence[str], output: str, name: str, domain: str = "", **integers: int
) -> Any:
    """Return a new NodeProto with one output and integer attributes, of the class of the nodes of `graph` but not in it."""
    node = type(graph)().node.add(op_type=op_type, input=inputs, output=[output], name=name)
    if domain:
        node.domain = domain
    for key, value in integers.items():
        node.attribute.add(name=key, i=value, type=_INT)
    return node


def integer_attribute(node: Any, name: str, default: int) -> int:
    """Return the integer attribute `name` of a NodeProto, or `default`."""
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)
