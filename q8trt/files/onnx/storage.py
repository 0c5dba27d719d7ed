"""Checks of the tensors that an ONNX file stores: their sizes, and weights in other files.

A tensor declares its shape, so a file of 1 KB can claim a terabyte. A tensor may also name another file that contains its
values, so a model can request any file on the machine. Libraries do not reject all of this (ONNX Runtime 1.20 reads such a file
anywhere). The functions accept messages of the onnx package and of `q8trt.files.onnx.messages`.
"""

from __future__ import annotations

import math
import mmap
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from q8trt.errors import EngineError
from q8trt.files import MalformedError
from q8trt.files.onnx import messages
from q8trt.files.onnx.size import check_size, graphs_of

#: TensorProto.DataType -> its name in ONNX and the bits of one element; None for strings.
TYPES: dict[int, tuple[str, int | None]] = {
    1: ("FLOAT", 32), 2: ("UINT8", 8), 3: ("INT8", 8), 4: ("UINT16", 16), 5: ("INT16", 16), 6: ("INT32", 32),
    7: ("INT64", 64), 8: ("STRING", None), 9: ("BOOL", 8), 10: ("FLOAT16", 16), 11: ("DOUBLE", 64), 12: ("UINT32", 32),
    13: ("UINT64", 64), 14: ("COMPLEX64", 64), 15: ("COMPLEX128", 128), 16: ("BFLOAT16", 16), 17: ("FLOAT8E4M3FN", 8),
    18: ("FLOAT8E4M3FNUZ", 8), 19: ("FLOAT8E5M2", 8), 20: ("FLOAT8E5M2FNUZ", 8), 21: ("UINT4", 4), 22: ("INT4", 4),
    23: ("FLOAT4E2M1", 4), 24: ("FLOAT8E8M0", 8), 25: ("UINT2", 2), 26: ("INT2", 2),
}  # fmt: skip
#: TensorProto.DataType -> (field of its values, entries per element); all other types use int32_data.
_FIELDS = {
    1: ("float_data", 1), 7: ("int64_data", 1), 8: ("string_data", 1), 11: ("double_data", 1), 12: ("uint64_data", 1),
    13: ("uint64_data", 1), 14: ("float_data", 2), 15: ("double_data", 2),
}  # fmt: skip
_STRING, _EXTERNAL = 8, 1  # TensorProto.DataType, TensorProto.DataLocation
#: Files up to this size in bytes are parsed and checked; larger ones only if they contain the key of external data.
_PARSED = 64 * 2**20
#: Maximum number of elements that a node may create from stored sizes: 1 GiB of FP32.
_LARGEST = 2**28
#: Operator -> index of the input with the sizes of its output, or with the factors by which it grows.
_GROWING = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1}


@dataclass(frozen=True)
class External:
    """The place of a tensor's values in another file: `length` bytes from `offset`."""

    path: Path
    offset: int
    length: int

    def read(self) -> bytes:
        """Return the `length` bytes of the values."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.length)


def check_file(path: Path) -> None:
    """Check an ONNX file before a library opens it by name. This reads the file at most once.

    Raises:
        EngineError: a tensor is stored in fewer or more bytes than its shape needs, or in a file that is missing, too short
            or outside the model's folder; the graph is too large; or the file cannot be read.
    """
    try:
        size = path.stat().st_size
        if size > _PARSED and not _has_external_data(path):
            return
        check_model(messages.parse(path.read_bytes()), path)
    except ValueError as error:
        raise EngineError(f"cannot load {path}, which may be damaged: {error}") from None
    except OSError as error:
        raise EngineError(f"{path} cannot be read: {error.strerror or error}") from None


def _has_external_data(path: Path) -> bool:
    """Return whether the file contains "location", a key of every tensor with external data."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(b"location") >= 0


def check_model(model: Any, path: Path | None) -> None:
    """Check the size of a ModelProto and every tensor in it, including those of subgraphs and functions.

    `path` is its file; None rejects external data. Raises MalformedError for every reason that `check_file` lists.
    """
    check_size(model)
    for graph in graphs_of(model.graph, *model.functions):
        for tensor in getattr(graph, "initializer", ()):
            _check_tensor(tensor, path)
        for sparse in getattr(graph, "sparse_initializer", ()):
            _check_sparse(sparse, path)
        for node in graph.node:
            for attribute in node.attribute:
                _check_attribute(attribute, path)
        _check_growth(graph)


def _check_attribute(attribute: Any, path: Path | None) -> None:
    for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
        _check_tensor(tensor, path)
    sparse_tensors = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
    for sparse in (*sparse_tensors, *attribute.sparse_tensors):
        _check_sparse(sparse, path)


def _check_sparse(sparse: Any, path: Path | None) -> None:
    """Check a sparse tensor, which libraries convert to a dense one."""
    _check_tensor(sparse.values, path)
    _check_tensor(sparse.indices, path)
    if min(sparse.dims, default=0) < 0 or math.prod(sparse.dims) > _LARGEST:
        raise MalformedError(f"sparse tensor {_shown(sparse.values.name)} has the shape {_shape(sparse.dims)}")


def _check_tensor(tensor: Any, path: Path | None) -> None:
    """Raise MalformedError if the tensor does not store the values that its shape needs."""
    name = _shown(tensor.name)
    if tensor.data_type not in TYPES:
        raise MalformedError(f"tensor {name} has the type number {tensor.data_type}, which ONNX does not define")
    if min(tensor.dims, default=0) < 0:
        raise MalformedError(f"tensor {name} has the shape {_shape(tensor.dims)}")
    if tensor.data_location == _EXTERNAL:
        if path is None:
            raise MalformedError("it keeps weights in another file")
        locate(tensor, path)
        return
    kind, bits = TYPES[tensor.data_type]
    count = elements(tensor)
    field, entries = _FIELDS.get(tensor.data_type, ("int32_data", 1))
    if tensor.HasField("raw_data") and tensor.raw_data:
        if bits is None:
            raise MalformedError(f"tensor {name} stores strings as raw bytes")
        stored, needed, unit = len(tensor.raw_data), _bytes(count, bits), "bytes"
    else:
        packed = 8 // bits if bits is not None and bits < 8 else 1
        stored, needed, unit = len(getattr(tensor, field)), -(-count // packed) * entries, "values"
    if stored != needed:
        shape = _shape(tensor.dims)
        raise MalformedError(f"tensor {name}, {kind} of shape {shape}, needs {needed:,} {unit} but stores {stored:,}")


def elements(tensor: Any) -> int:
    """Return the number of elements of the tensor's shape."""
    return math.prod(tensor.dims)


def _bytes(count: int, bits: int) -> int:
    return -(-count * bits // 8)


def locate(tensor: Any, path: Path) -> External:
    """Return the place of the values of a tensor with external data.

    Links are resolved first. The file must be in the model's folder or, if the model is a link, in the folder of its target,
    because a download cache stores both files as links to one folder.

    Raises:
        MalformedError: the file is missing, too short or outside these folders, or the tensor's entries are not valid.
    """
    name, entries = _shown(tensor.name), {item.key: item.value for item in tensor.external_data}
    if len(entries) != len(tensor.external_data):
        raise MalformedError(f"tensor {name} names the place of its values twice")
    location = entries.get("location", "")
    file = _resolved(location, path, name)
    offset, length = (_number(entries, key, name) for key in ("offset", "length"))
    bits = TYPES[tensor.data_type][1]
    if bits is None:
        raise MalformedError(f"tensor {name} stores strings in another file")
    needed = _bytes(elements(tensor), bits)
    if length not in (None, needed):
        raise MalformedError(f"tensor {name} needs {needed:,} bytes, but claims {length:,} of {_shown(location)}")
    end = (offset or 0) + needed
    size = file.stat().st_size
    if size < end:
        raise MalformedError(
            f"{_shown(location)} is truncated: tensor {name} reaches to byte {end:,} of {size:,}; copy or export it again"
        )
    return External(file, offset or 0, needed)


def _resolved(location: str, path: Path, name: str) -> Path:
    try:
        folders = {path.parent.resolve(), path.resolve().parent}
        file = (path.parent / location).resolve()
        exists = bool(location) and file.is_file()
    except (OSError, ValueError, RuntimeError):  # the name is too long, contains NUL, or is a loop of links
        exists = False
    if not exists:
        raise MalformedError(
            f"it keeps tensor {name} in {_shown(location)}, which does not exist; copy it beside the model"
        )
    if Path(location).is_absolute() or not any(file.is_relative_to(folder) for folder in folders):
        raise MalformedError(
            f"it keeps tensor {name} in {_shown(location)}, which is outside the model's folder; "
            "a model may only read files beside it"
        )
    return file


def _number(entries: dict[str, str], key: str, name: str) -> int | None:
    text = entries.get(key)
    if text is None:
        return None
    if not re.fullmatch("[0-9]{1,19}", text):
        raise MalformedError(f"tensor {name} has the {key} {_shown(text)}, which is not a number of bytes")
    return int(text)


def load_external(tensor: Any, path: Path) -> None:
    """Move the external data of `tensor` into the message. Raises OSError, and MalformedError as `locate` does."""
    if tensor.data_location != _EXTERNAL:
        return
    tensor.raw_data = locate(tensor, path).read()
    del tensor.external_data[:]
    tensor.data_location = 0


def _check_growth(graph: Any) -> None:
    """Raise MalformedError if a node creates a huge tensor from stored sizes, because libraries fold it into a constant."""
    stored = {tensor.name: tensor for tensor in getattr(graph, "initializer", ())}
    growing = [node for node in graph.node if node.op_type in _GROWING]
    if not growing:
        return
    for node in graph.node:
        if node.op_type == "Constant" and node.output and node.attribute and node.attribute[0].HasField("t"):
            stored[node.output[0]] = node.attribute[0].t
    for node in growing:
        position = _GROWING[node.op_type]
        sizes = stored.get(node.input[position]) if len(node.input) > position else None
        if sizes is None or sizes.data_type != messages.INT64 or elements(sizes) > 64:
            continue
        values = messages.to_array(sizes)
        if values is not None and math.prod(abs(int(value)) for value in values.reshape(-1) if value) > _LARGEST:
            raise MalformedError(
                f"{node.op_type} {_shown(node.name)} makes a tensor of shape {_shape(values.reshape(-1))}"
            )


def _shape(dims: Iterable[int]) -> str:
    sizes = [f"{int(size):,}" for size in dims]
    return f"({'; '.join(sizes[:8])}{'; ...' if len(sizes) > 8 else ''})"


def _shown(text: str) -> str:
    """Return a name from the file in quotes, with control characters escaped, and shortened if it is long."""
    return ascii(text if len(text) <= 80 else f"{text[:80]}...")
